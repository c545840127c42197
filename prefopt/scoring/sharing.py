"""Whether a model's prompts can be shared: tried on a small forest, not guessed from its name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from prefopt.errors import first_line
from prefopt.models.dropout import drops_attention
from prefopt.models.policy import Policy
from prefopt.progress import say
from prefopt.records import Batch
from prefopt.scoring.attention import NAME, attention_named
from prefopt.scoring.forest import Forest, plant
from prefopt.scoring.fused import fused
from prefopt.scoring.kv_cache import SharedPrompts
from prefopt.scoring.narrow import leave_whole, narrowed

# By what the products are made of and where: reasons against, "" where there is none.
_known: WeakKeyDictionary[torch.nn.Module, dict[tuple[str, torch.dtype | None], str]] = WeakKeyDictionary()


def shares_prompts(policy: Policy, longest: int) -> bool:
    """Whether rows of up to `longest` tokens can be scored as a forest. Says once why not."""
    known, surroundings = _known.setdefault(policy.causal, {}), _surroundings(policy)
    if policy.sharded and known:  # what a model refuses would leave shards half gathered
        surroundings = next(iter(known))
    if surroundings not in known:
        reason = why_not(policy)
        if reason and all(reason not in said.values() for said in _known.values()):  # a copy says nothing new
            say(f"prompts are encoded once for each of their completions, padded: {reason}")
        known[surroundings] = reason
    bounds = (_window(policy), policy.rope_bound)
    return not known[surroundings] and all(bound is None or longest <= bound for bound in bounds)


def _surroundings(policy: Policy) -> tuple[str, torch.dtype | None]:
    """Where products are made, and of what autocast makes them: on a GPU that decides who attends. A CPU's rounds by
    shape, which would pass for a difference, and is left out."""
    kind = policy.device.type
    mixed = kind != "cpu" and torch.is_autocast_enabled(kind)
    return kind, torch.get_autocast_dtype(kind) if mixed else None


def forest_states(policy: Policy, forest: Forest, read: Tensor | None = None) -> Tensor:
    """[T, H]. read: [T] bool, where states are needed; elsewhere they may mean nothing."""
    with policy.within(partial(_as_forest, policy, read)):
        return policy.hidden_states(forest.ids, None, forest.positions, forest=forest)[0]


@contextmanager
def _as_forest(policy: Policy, read: Tensor | None) -> Iterator[None]:
    with attention_named(policy.config, NAME), narrowed(policy, read), fused(policy):
        yield


def why_not(policy: Policy) -> str:
    """Nothing where the states of a forest are those of its rows; else a reason in words."""
    config = policy.config
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if kinds:
        return f"the model has layers of the kind {sorted(kinds)[0]}"
    if drops_attention(policy.causal):
        return "the model drops attention out in training"
    kind, mixed = _surroundings(policy)
    near = 1e-3 if policy.precision in (torch.float32, torch.float64) and mixed is None else 5e-2
    try:
        with policy.evaluating(), torch.autocast(kind, mixed, enabled=mixed is not None):
            return _tried(policy, near)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # models fail in their own ways when their attention is not what they expect
        return f"{type(policy.causal).__name__}: {first_line(error)}"


@torch.no_grad()
def _tried(policy: Policy, near: float) -> str:
    """Two trees against their rows one by one, in the model's own attention. near: a difference, relative to the
    largest state, that is rounding."""
    device, size = policy.device, policy.config.vocab_size

    def ids(n: int, first: int) -> Tensor:
        return ((torch.arange(n) * 7 + first) % size).to(device)

    prompts, completions = [ids(3, 1), ids(2, 5)], [ids(2, 3), ids(3, 4), ids(1, 9)]
    batch = Batch.of("rollouts", prompts, completions, [0, 0, 1]).to(device)
    planted = plant(batch)
    (forest,) = planted.forests
    states = forest_states(policy, forest)
    if not _narrows(policy, forest, states, near):
        leave_whole(policy)
    sampled = SharedPrompts(policy, prompts, room=1)
    sampled.start()
    # The prompts' first completions begin with these; so they are what a sampler would have drawn.
    first, third = sampled.step(torch.stack([completions[0][0], completions[2][0]]))
    drawn = {0: first, 2: third}
    worst = 0.0
    for row, group in enumerate([0, 0, 1]):
        whole = torch.cat((prompts[group], completions[row]))[None]
        positions = torch.arange(whole.shape[1], device=device)[None]
        alone = policy.hidden_states(whole, torch.ones_like(whole), positions)[0]
        said = alone[len(prompts[group]) :]
        gaps = [states[planted.completion_at[row] :][: len(said)] - said]
        if row in drawn:
            gaps.append(drawn[row] - said[0])
        worst = max(worst, *(float(gap.abs().max() / alone.abs().max().clamp(min=1e-6)) for gap in gaps))
    return "" if worst <= near else f"a forest's states differ from those of its rows by {worst:.1g}"


def _narrows(policy: Policy, forest: Forest, states: Tensor, near: float) -> bool:
    """Whether every third token's state is what it was while the last layer works for those alone."""
    read = torch.arange(len(forest), device=states.device) % 3 == 0
    try:
        found = forest_states(policy, forest, read)[read]
    except torch.OutOfMemoryError:
        raise
    except Exception:  # as above: whatever a model does with parts that have these names
        return False
    return float((found - states[read]).abs().max() / states.abs().max().clamp(min=1e-6)) <= near


def _window(policy: Policy) -> int | None:
    config = policy.config
    if not getattr(config, "use_sliding_window", True):
        return None
    return getattr(config, "sliding_window", None)
