"""The update does not depend on how the rows of a step reach the model: micro-batches, ranks, a partial last step.

Two SGD steps in float64 on 22 weighted rows, 16 and 6; every split must end with the same weights to 1e-9. Of a
policy's own answers, to 20 prompts, two passes of two steps.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch

from prefopt.objectives import create, get, names
from tests.gloo_worker import two_ranks
from tests.toy import Watch, toy_rollouts, train_toy

OFFLINE = [name for name in names() if get(name).needs.data in ("demonstrations", "pairs", "labels")]
SPEAKS = [name for name in names() if get(name).needs.data == "rollouts"]
LIVE = "answers of its own"
OBJECTIVES = {
    **{f"{name} on {LIVE}": partial(create, name) for name in (*SPEAKS, "sft", "dpo", "kto")},
    **{name: partial(create, name) for name in OFFLINE},
    **{f"{name} and sft": partial(create, name, sft_weight=0.5) for name in OFFLINE},
    "orpo on text": partial(create, "orpo", nll_scope="text"),
    "sft by sequences": partial(create, "sft", nll_scope="text", reduction="sequences"),
}


def outcome(name, micro_batch_size, world=1):
    watch, objective = Watch(), OBJECTIVES[name]()
    source = toy_rollouts(objective, 22, 16, 4, micro_batch_size) if name.endswith(LIVE) else None
    asked = {"micro_batch_size": micro_batch_size, "world": world, "callbacks": (watch,), "source": source}
    module = train_toy(objective, **asked)
    weights = {name: p.detach().clone() for name, p in module.policy.named_parameters()}
    return weights, watch.statistics, watch.losses


def outcomes(micro_batch_size):
    """Of one rank of two."""
    return {name: outcome(name, micro_batch_size, world=2) for name in OBJECTIVES}


@pytest.fixture(scope="module")
def whole():
    """Each objective's outcome with every step in one micro-batch."""
    return {name: outcome(name, micro_batch_size=16) for name in OBJECTIVES}


def same(found, expected):
    for name, weight in expected[0].items():
        torch.testing.assert_close(found[0][name], weight, rtol=0, atol=1e-9, msg=lambda text, n=name: f"{n}: {text}")
    for part in (1, 2):
        for one, other in zip(found[part], expected[part], strict=True):
            assert one == pytest.approx(other, rel=1e-9, abs=1e-9, nan_ok=True)


def test_the_steps_move_and_the_baseline_counts(whole):
    """What the comparison below stands on: weights move by far more than its tolerance, and KTO's z is not clamped."""
    start = {name: p.detach() for name, p in train_toy(create("sft"), lr=0.0).policy.named_parameters()}
    for name, (weights, statistics, _) in whole.items():
        moved = max(float((weights[key] - start[key]).abs().max()) for key in weights if key in start)
        assert moved > 1e-4, name
        assert len(statistics) == (4 if name.endswith(LIVE) else 2)
        if name.startswith("kto"):
            assert all(step["z"] > 1e-3 for step in statistics)


@pytest.mark.parametrize("micro_batch_size", [8, 4, 1])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_micro_batches(whole, name, micro_batch_size):
    same(outcome(name, micro_batch_size), whole[name])


@pytest.mark.parametrize("micro_batch_size", [8, 3])
@pytest.mark.long
def test_two_gloo_ranks(whole, tmp_path, micro_batch_size):
    """Two processes, each with half of the rows; with 3 a step, the last micro-batches are partial or empty."""
    found = two_ranks(tmp_path, outcomes, micro_batch_size)
    for name in OBJECTIVES:
        same(found[name], whole[name])
