"""A policy in shards trains as a whole one does: two gloo ranks against one process, and whole runs against ddp's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from prefopt.jobs.strategy import ZeRO, lightning_strategy
from prefopt.models.base import weights_hash
from prefopt.models.policy import Policy
from prefopt.models.recompute import recompute_layers
from prefopt.models.sharding import shard, whole, whole_tensor
from prefopt.objectives import create
from prefopt.scoring import forest, fused, layout, score, shares_prompts, sharing, tokens_read
from prefopt.settings import StrategySettings
from tests.gloo_worker import ROOT, run_ranks
from tests.models.saved import pairs_file, saved_model
from tests.scoring.test_forest import batch_of, llama, lora
from tests.test_resume import read, rows
from tests.toy import Watch, train_toy

pytestmark = pytest.mark.usefixtures("exact_rmsnorm")
OBJECTIVES = ("kto", "bradley_terry")
ROWS = [(5, [2, 3], False), (3, [1], False), (4, [1, 4], False)]


def outcome(name, sharded=False):
    """What two SGD steps end with, the second one partial: micro-batches of 3 rows a rank, one of them of none."""
    watch = Watch()
    asked = {"micro_batch_size": 3, "world": 2} if sharded else {}
    strategy = lightning_strategy(StrategySettings(name="fsdp" if sharded else "single"), 2)
    module = train_toy(create(name), **asked, callbacks=(watch,), strategy=strategy)
    assert module.policy.sharded == sharded
    weights = {name: whole_tensor(p).detach().clone() for name, p in module.policy.named_parameters()}
    return weights, watch.statistics, watch.losses


@pytest.fixture
def mesh():
    """Of this process alone: the machinery of shards without another one to wait for."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


@pytest.mark.parametrize("make", [llama, lora])
def test_the_life_of_shards(make, mesh):
    """Scores, logits, reference and gradients are those of a whole policy, step after step, computed again or not;
    in between every process has whole weights, and gives them back."""
    heads = frozenset({"lm", "scalar"})  # the latter in float32, on weights in float64
    plain, own = Policy(make(), heads), Policy(make(), heads)
    own.heads.load_state_dict(plain.heads.state_dict())
    recompute_layers(own)
    for policy in (plain, own):
        assert shares_prompts(policy, 1)
    shard(own, mesh)
    some = batch_of(ROWS)
    for _ in range(2):
        with own.evaluating(), whole(own), torch.no_grad():
            assert not own.sharded
            assert not any(isinstance(p, DTensor) for p in own.parameters())
            assert torch.equal(own.causal(input_ids=torch.arange(5)[None]).logits, logits(plain))
            assert torch.equal(score(own, some).logps, score(plain, some).logps)
        assert own.sharded
        assert all(isinstance(p, DTensor) for p in own.parameters())
        for policy in (plain, own):
            policy.train().zero_grad()
            scores = score(policy, some, heads)
            said = scores.logps.exp().sum() + scores.rewards.sum()
            if policy.adapted:
                with policy.adapter_off(), torch.no_grad():
                    score(policy, some)
            said.backward()
        for name, weight in plain.trainable().items():
            torch.testing.assert_close(whole_tensor(own.trainable()[name].grad), weight.grad, rtol=0, atol=1e-12)
        norms = [torch.stack([p.grad.norm() for p in policy.trainable().values()]).norm() for policy in (plain, own)]
        assert float(whole_tensor(norms[1])) == pytest.approx(float(norms[0]), rel=1e-12)
        assert weights_hash(own.trainable().items()) == weights_hash(plain.trainable().items())
        for policy in (plain, own):
            torch.optim.SGD(list(policy.trainable().values()), lr=0.1).step()


def test_parts_are_told_from_shards_too(mesh):
    """Where nobody has asked before the weights were shards: the same norms are computed in fewer passes."""
    own = Policy(llama())
    shard(own, mesh)
    parts = fused._parts(own.causal)
    assert (len(parts.norms), len(parts.rotary)) == (5, 1)


def logits(policy):
    return policy.causal(input_ids=torch.arange(5)[None]).logits


@pytest.mark.long
def test_two_ranks_with_a_shard_each(tmp_path):
    """The whole step's statistics, reduced gradients, a head of its own and tied embeddings, to 1e-9."""
    run_ranks("tests.fsdp_worker", tmp_path / "found.pt")
    found = torch.load(tmp_path / "found.pt")
    for name in OBJECTIVES:
        expected = outcome(name)
        for key, weight in expected[0].items():
            torch.testing.assert_close(found[name][0][key], weight, rtol=0, atol=1e-9)
        for part in (1, 2):
            for one, other in zip(found[name][part], expected[part], strict=True):
                assert one == pytest.approx(other, rel=1e-9, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("path", ["forest", "padded"])
def test_a_batch_is_one_call_where_there_are_shards(path, monkeypatch):
    """Another process may have trees of other sizes: were each to need calls of its own, they would wait for ever."""
    monkeypatch.setattr(forest, "ROOM", 8)
    monkeypatch.setattr(layout, "ROOM", 8)
    policy, some = Policy(llama()), batch_of(ROWS)
    monkeypatch.setitem(sharing._known, policy.causal, {("cpu", None): "told so" if path == "padded" else ""})
    calls, hidden_states = [], policy.hidden_states
    monkeypatch.setattr(
        policy,
        "hidden_states",
        lambda ids, *more, **others: calls.append(ids.numel()) or hidden_states(ids, *more, **others),
    )
    apart = score(policy, some).logps
    assert len(calls) > 1
    assert sum(calls) == tokens_read(policy, some)[0]
    calls.clear()
    policy.sharded = True
    torch.testing.assert_close(score(policy, some).logps, apart, rtol=0, atol=1e-12)
    assert calls == [tokens_read(policy, some)[0]]


def test_deepspeed_does_not_divide_by_the_accumulation_again():
    """Lightning has: its loss is that of a micro-batch's share of the step."""
    asked = {}

    class Plugin:
        pre_backward = post_backward = staticmethod(lambda loss, module: loss)
        backward = staticmethod(lambda *found, **options: asked.update(options))

    strategy = object.__new__(ZeRO)
    strategy._precision_plugin, strategy._lightning_module, strategy._model = Plugin(), SimpleNamespace(), None
    strategy.backward(torch.zeros(()), None)
    assert asked == {"scale_wrt_gas": False}


# ------------------------------------------------------------------------------------------------ whole runs


def command(run: Path, cache: Path, strategy: str, *more: str) -> list[str]:
    few = ["evaluation.prompts=2", "evaluation.samples_per_prompt=2", "evaluation.max_new_tokens=4"]
    fixed = [*few, f"run_dir={run}", f"cache_dir={cache}", f"strategy={strategy}", "trainer.checkpoint_every=3"]
    two = ["trainer.devices=2", "trainer.accelerator=cpu", "trainer.max_steps=12", "data.micro_batch_size=4"]
    rows = ["data=jsonl", f"data.train={run.parent / 'pairs.jsonl'}", "data.batch_size=8"]
    return [sys.executable, "-m", "prefopt.train", *fixed, *two, *rows, f"model.name={run.parent / 'model'}", *more]


def train(*asked) -> tuple:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command(*asked), env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return read(asked[0])


def kill_at(step: int, *asked) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    running = subprocess.Popen(command(*asked), env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while len(rows(asked[0])) < step and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL, "the run ended before it was killed"


RUNS = {
    "whole": ["model=hf", "loss=dpo", "trainer.val_every=5", "model.learning_rate=0.001"],
    "adapter, recomputed": ["model=hf_lora", "loss=kto", "model.gradient_checkpointing=true"],
    "reward model in bfloat16": ["model=hf", "loss=bradley_terry", "trainer.precision=bf16-true"],
}


@pytest.mark.long
@pytest.mark.parametrize("kind", RUNS)
def test_a_run_is_that_of_ddp_and_goes_on_where_it_was_killed(kind, tmp_path):
    saved_model(tmp_path / "model")
    pairs_file(tmp_path, rows=48)
    cache_dir = tmp_path / "cache"
    found = train(tmp_path / "fsdp", cache_dir, "fsdp", *RUNS[kind])
    expected = train(tmp_path / "ddp", cache_dir, "ddp", *RUNS[kind], "model.reference_store=false")
    near = {"rel": 0.05, "abs": 0.05} if "bfloat16" in kind else {"rel": 1e-3, "abs": 1e-4}
    for one, other in zip(found[1], expected[1], strict=True):
        assert {name: float(value) for name, value in one.items() if name != "packing"} == pytest.approx(
            {name: float(value) for name, value in other.items() if name != "packing"}, **near
        )
    ours, theirs = ([json.loads(line) for line in text[2].splitlines()] for text in (found, expected))
    assert [row["row"] for row in ours] == [row["row"] for row in theirs]
    assert [row["reward"] for row in ours] == pytest.approx([row["reward"] for row in theirs], **near)
    for key in ("base_hash", "data_hash", "row_order_hash", "parameters", "trainable", "steps", "tokens"):
        assert found[0][key] == expected[0][key], key
    kill_at(8, tmp_path / "killed", cache_dir, "fsdp", *RUNS[kind])
    assert train(tmp_path / "killed", cache_dir, "fsdp", *RUNS[kind]) == found
    assert json.loads((tmp_path / "killed/summary.json").read_text())["resumed_at"]
