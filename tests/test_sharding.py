"""A policy in shards trains as a whole one does: two gloo ranks against one process, in float64."""

from __future__ import annotations

import pytest
import torch

from prefopt.jobs.strategy import lightning_strategy
from prefopt.models.sharding import whole_tensor
from prefopt.objectives import create
from prefopt.settings import StrategySettings
from tests.test_invariance import two_ranks
from tests.toy import Watch, train_toy

OBJECTIVES = ("dpo", "kto", "orpo", "bradley_terry")


def outcome(name, sharded=False):
    """What two SGD steps end with, the second one partial: micro-batches of 3 rows a rank, one of them of none."""
    watch = Watch()
    asked = {"micro_batch_size": 3, "world": 2} if sharded else {}
    strategy = lightning_strategy(StrategySettings(name="fsdp" if sharded else "single"), 2)
    module = train_toy(create(name), **asked, callbacks=(watch,), strategy=strategy)
    assert module.policy.sharded == sharded
    weights = {name: whole_tensor(p).detach().clone() for name, p in module.policy.named_parameters()}
    return weights, watch.statistics, watch.losses


@pytest.mark.parametrize("nothing", [0])
def test_two_ranks_with_a_shard_each(nothing, tmp_path):
    two_ranks("tests.fsdp_worker", tmp_path / "found.pt")
    found = torch.load(tmp_path / "found.pt")
    for name in OBJECTIVES:
        expected = outcome(name)
        for key, weight in expected[0].items():
            torch.testing.assert_close(found[name][0][key], weight, rtol=0, atol=1e-9)
        for part in (1, 2):
            for one, other in zip(found[name][part], expected[part], strict=True):
                assert one == pytest.approx(other, rel=1e-9, abs=1e-9, nan_ok=True)
