"""The update does not depend on how the rows of a step reach the model: micro-batches, ranks, a partial last step.

Two SGD steps in float64 on 22 weighted rows, 16 and 6; every split must end with the same weights to 1e-9. Of a
policy's own answers, to 20 prompts, two passes of two steps.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from prefopt.objectives import create, get, names
from tests.toy import Watch, toy_rollouts, train_toy

ROOT = Path(__file__).parents[1]
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


def two_ranks(worker, *arguments, timeout=300):
    """Run a module in two processes that talk through gloo. timeout: seconds."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    shared |= {"PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", worker, *map(str, arguments)],
            cwd=ROOT,
            env={**shared, "LOCAL_RANK": str(r), "RANK": str(r), "NODE_RANK": "0"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for r in range(2)
    ]
    errors = [rank.communicate(timeout=timeout)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(errors)[-3000:]


@pytest.mark.parametrize("micro_batch_size", [8, 3])
def test_two_gloo_ranks(whole, tmp_path, micro_batch_size):
    """Two processes, each with half of the rows; with 3 a step, the last micro-batches are partial or empty."""
    two_ranks("tests.gloo_worker", tmp_path / "found.pt", micro_batch_size)
    found = torch.load(tmp_path / "found.pt")
    for name in OBJECTIVES:
        same(found[name], whole[name])
