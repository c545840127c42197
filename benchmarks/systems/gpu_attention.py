"""Attention inside forests, way by way: `python gpu_attention.py FOLDER REPORT STEPS`.

FlexAttention under the forest's block mask, varlen flash attention merged by log-sum-exp, and what prefopt does by
itself on this device: the same queries, keys and values of one layer, forward, and forward with backward. Every way is
held against the textbook in float32 first, so that no time is that of a wrong result.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor, nn

from benchmarks.systems.gpu_common import Settings, answer, hardware, read_steps, seconds
from benchmarks.systems.gpu_floor import pairs_seen
from prefopt.errors import first_line
from prefopt.records import Batch
from prefopt.scoring.attention import FLEX_OPTIONS, attend, block_mask
from prefopt.scoring.forest import Forest, plant
from prefopt.scoring.varlen import seams, varlen

# Prompts and the completions after each, in tokens; beside them stands the first step of the pairs.
Groups = list[tuple[int, tuple[int, ...]]]
GROUPS: dict[str, dict[str, Groups]] = {
    "cuda": {
        "a prompt of 2,048, two of 512": [(2048, (512, 512))],
        "a prompt of 512, eight of 384": [(512, (384,) * 8)],
    },
    "cpu": {"a prompt of 20, three of 9": [(20, (9, 9, 9))]},
}
REPEATS = 10
Way = Callable[[Tensor, Tensor, Tensor], Tensor]  # q, k, v [1, heads, T, D] to [1, T, heads, D]
Parts = tuple[Tensor, ...]  # output, and the gradients of q, k and v


def forest_of(groups: Groups) -> Forest:
    """The largest of what the groups are packed into."""
    prompts = [torch.zeros(prompt, dtype=torch.long) for prompt, _ in groups]
    rows = [(i, n) for i, (_, branches) in enumerate(groups) for n in branches]
    ids = [torch.zeros(n, dtype=torch.long) for _, n in rows]
    planted = plant(Batch.of("rollouts", prompts, ids, [i for i, _ in rows]))
    return max(planted.forests, key=len)


def forests(settings: Settings, folder: Path, name: str) -> dict[str, Forest]:
    first: Groups = [
        (len(prompt), (len(chosen), len(rejected))) for prompt, chosen, rejected in read_steps(folder, name)[0]
    ]
    groups = {f"{len(first)} pairs of {name}": first, **GROUPS[settings.device]}
    return {told: forest_of(some) for told, some in groups.items()}


def ways(forest: Forest, scale: float, device: str) -> dict[str, Way]:
    """Masks and seams are made once, as they are for all layers of a forward pass."""
    mask, flex = block_mask(replace(forest), torch.device(device)), _flex(device)
    layer, own = nn.Module(), replace(forest)

    def by_flex(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        grouped = q.shape[1] != k.shape[1]
        return flex(q, k, v, block_mask=mask, scale=scale, enable_gqa=grouped, kernel_options=FLEX_OPTIONS).transpose(
            1, 2
        )

    def by_varlen(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return varlen(q, k, v, scale, own)

    def by_prefopt(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(layer, q, k, v, None, scaling=scale, forest=own)[0]

    return {"FlexAttention": by_flex, "merged varlen": by_varlen, "prefopt": by_prefopt}


def _flex(device: str) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True) if device == "cuda" else flex_attention


def textbook(forest: Forest, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """A tree at a time, all of its scores: a token sees itself and what comes before in its prompt and its branch."""
    groups, parts = q.shape[1] // k.shape[1], []
    for tree in forest.trees:
        at = slice(tree.start, tree.end)
        own, keys, values = q[:, :, at], *(t[:, :, at].repeat_interleave(groups, 1) for t in (k, v))
        lengths = torch.tensor([tree.prompt, *tree.branches], device=q.device)
        branch = torch.arange(len(lengths), device=q.device).repeat_interleave(lengths)
        may = ((branch == branch[:, None]) | (branch == 0)).tril()
        scores = (own @ keys.transpose(2, 3) * scale).masked_fill(~may, float("-inf"))
        parts.append(scores.softmax(-1) @ values)
    return torch.cat(parts, 2).transpose(1, 2)


def drawn(settings: Settings, tokens: int) -> tuple[list[Tensor], Tensor]:
    """q, k, v as a layer hands them over, a token's heads side by side in memory, and the gradient of the output."""
    torch.manual_seed(settings.seed)
    heads, keys = settings.sizes["num_attention_heads"], settings.sizes["num_key_value_heads"]
    size = settings.sizes["hidden_size"] // heads

    def random(count: int) -> Tensor:
        return torch.randn(1, tokens, count, size, device=settings.device, dtype=settings.dtype)

    return [random(n).transpose(1, 2).requires_grad_() for n in (heads, keys, keys)], random(heads)


def both(way: Way, given: list[Tensor], grad: Tensor) -> Parts:
    out = way(*given)
    return out.detach(), *torch.autograd.grad(out, given, grad)


def checked(way: Way, given: list[Tensor], grad: Tensor, truth: Parts) -> dict[str, Any]:
    """errors: of the output and of the gradients, relative to the size of the whole tensor. absent: why it has none of
    these, or no gradients."""
    found: dict[str, Any] = {"errors": {}, "forward": [], "both": []}
    try:
        with torch.no_grad():
            found["errors"]["out"] = _apart(way(*(t.detach() for t in given)), truth[0])
        parts = zip(("out", "dq", "dk", "dv"), both(way, given, grad), truth, strict=True)
        found["errors"] |= {name: _apart(one, other) for name, one, other in parts}
    except Exception as error:  # kernels and their compilers fail in ways of their own
        found["absent"] = first_line(error)
    return found


def _apart(found: Tensor, truth: Tensor) -> float:
    return float((found.float() - truth).norm() / truth.norm())


def compared(settings: Settings, forest: Forest) -> dict[str, Any]:
    given, grad = drawn(settings, len(forest))
    scale = given[0].shape[-1] ** -0.5
    exact = [t.detach().float().requires_grad_() for t in given]
    truth = both(lambda q, k, v: textbook(forest, q, k, v, scale), exact, grad.float())
    chosen = ways(forest, scale, settings.device)
    found = {name: checked(way, given, grad, truth) for name, way in chosen.items()}
    for _ in range(settings.passes):
        for name, told in found.items():
            if "absent" not in told:
                for kind, took in _times(chosen[name], given, grad, settings.device).items():
                    told[kind].append(took)
    about = {"tokens": len(forest), "trees": len(forest.trees), "flops": _flops(settings, forest)}
    return about | {"ways": found, "masks": _preparing(forest, settings.device)}


def _times(way: Way, given: list[Tensor], grad: Tensor, device: str) -> dict[str, float]:
    with torch.no_grad():
        forward = seconds(lambda: way(*given), device, REPEATS)
    return {"forward": forward, "both": seconds(lambda: both(way, given, grad), device, REPEATS)}


def _preparing(forest: Forest, device: str) -> dict[str, float]:
    """Seconds of what is made once for all layers of a forward pass."""
    place = torch.device(device)
    return {
        "block mask": seconds(lambda: block_mask(replace(forest), place), device, REPEATS),
        "seams": seconds(lambda: seams(forest.trees, place), device, REPEATS),
    }


def _flops(settings: Settings, forest: Forest) -> int:
    """Of one layer's forward pass, where a token may look."""
    return 4 * settings.sizes["hidden_size"] * sum(pairs_seen(tree.prompt, tree.branches) for tree in forest.trees)


def main(folder: Path, name: str) -> dict[str, Any]:
    settings = Settings.read(folder)
    found: dict[str, Any] = {told: compared(settings, one) for told, one in forests(settings, folder, name).items()}
    return {"forests": found, "hardware": hardware(settings.device)}


if __name__ == "__main__":
    answer(main)
