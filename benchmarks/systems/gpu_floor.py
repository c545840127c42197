"""The floor: FLOPs of a step, counted by hand, and the rate at which this device does matrix products of their shapes.

`python gpu_floor.py FOLDER REPORT STEPS MODE…` A prompt counts once, whatever a system reads.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor

from benchmarks.systems.gpu_common import Settings, Step, answer, hardware, read_steps, seconds

Sizes = dict[str, Any]


def layer_weights(sizes: Sizes) -> list[tuple[int, int]]:
    """(out, in) of a layer's seven matrices: q, k, v, o, gate, up, down."""
    hidden, inner = sizes["hidden_size"], sizes["intermediate_size"]
    keys = hidden // sizes["num_attention_heads"] * sizes["num_key_value_heads"]
    attention = [(hidden, hidden), (keys, hidden), (keys, hidden), (hidden, hidden)]
    return [*attention, (inner, hidden), (inner, hidden), (hidden, inner)]


def products(sizes: Sizes, tokens: int, spoken: int) -> list[tuple[int, int, int]]:
    """(rows, in, out) of every matrix product of a forward pass over `tokens`, the head on `spoken` of them."""
    layer = [(tokens, into, out) for out, into in layer_weights(sizes)]
    return layer * sizes["num_hidden_layers"] + [(spoken, sizes["hidden_size"], sizes["vocab_size"])]


def step_flops(sizes: Sizes, tokens: int, spoken: int, rank: int | None = None) -> int:
    """Products of a step, two FLOPs for a multiplication and its addition; without attention's own, see below.

    rank: None for full training, which goes forward once and backward twice, by inputs and by weights. Under LoRA
    weights need no gradient, but its two factors of that rank do everything three times.
    """
    base = 2 * sum(rows * into * out for rows, into, out in products(sizes, tokens, spoken))
    if rank is None:
        return 3 * base
    factors = sum(into + out for out, into in layer_weights(sizes)) * sizes["num_hidden_layers"]
    return 2 * base + 3 * 2 * tokens * rank * factors


def attention_flops(sizes: Sizes, step: Step) -> int:
    """Of q·k and of the weights times v, forward and backward (twice): only where a token may look."""
    seen = sum(pairs_seen(len(prompt), (len(chosen), len(rejected))) for prompt, chosen, rejected in step)
    return 3 * 4 * sizes["hidden_size"] * sizes["num_hidden_layers"] * seen


def pairs_seen(prompt: int, branches: tuple[int, ...]) -> int:
    """(query, key) pairs of a tree: a token sees its prompt and its own branch up to itself."""
    return prompt * (prompt + 1) // 2 + sum(prompt * n + n * (n + 1) // 2 for n in branches)


def counted(step: Step) -> tuple[int, int]:
    """Tokens of a step with every prompt once, and those of its completions."""
    spoken = sum(len(chosen) + len(rejected) for _, chosen, rejected in step)
    return spoken + sum(len(prompt) for prompt, _, _ in step), spoken


def matmul_seconds(settings: Settings, tokens: int, spoken: int, by_weights: bool, repeats: int = 5) -> float:
    """Seconds of all products of one step, one after the other and nothing else, each layer with weights of its own, so
    that no cache serves two layers. by_weights: whether gradients of the weights are among them."""
    place: dict[str, Any] = {"device": settings.device, "dtype": settings.dtype}
    work = products(settings.sizes, tokens, spoken)
    weights = [torch.randn(out, into, **place) for _, into, out in work]
    rows: dict[tuple[int, int], Tensor] = {}
    for count, into, out in work:
        for width in (into, out):
            rows.setdefault((count, width), torch.randn(count, width, **place))

    def sweep() -> None:
        for (count, into, out), weight in zip(work, weights, strict=True):
            below, above = rows[count, into], rows[count, out]
            below @ weight.t()
            above @ weight
            if by_weights:
                above.t() @ below

    with torch.no_grad():
        return seconds(sweep, settings.device, repeats)


def measured(settings: Settings, steps: list[Step], mode: str) -> dict[str, float]:
    """rate: FLOP/s on a mean step's products; flops, attention_flops: of a mean step."""
    sizes, rank = settings.sizes, settings.rank if mode == "lora" else None
    counts = [counted(step) for step in steps]
    tokens, spoken = (round(sum(column) / len(steps)) for column in zip(*counts, strict=True))
    base = 2 * sum(rows * into * out for rows, into, out in products(sizes, tokens, spoken))
    passes = 2 if mode == "lora" else 3
    took = matmul_seconds(settings, tokens, spoken, by_weights=passes == 3)
    return {
        "rate": passes * base / took,
        "flops": sum(step_flops(sizes, *count, rank) for count in counts) / len(steps),
        "attention_flops": sum(attention_flops(sizes, step) for step in steps) / len(steps),
        "tokens": tokens,
        "completions": spoken,
    }


def main(folder: Path, name: str, *modes: str) -> dict[str, Any]:
    settings = Settings.read(folder)
    steps = read_steps(folder, name)
    found: dict[str, Any] = {mode: measured(settings, steps, mode) for mode in modes}
    return found | {"hardware": hardware(settings.device)}


if __name__ == "__main__":
    answer(main)
