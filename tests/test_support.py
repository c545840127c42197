"""The matrix of what runs: it answers before any weight is loaded, the README prints it, and what it says runs does."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import support as script
from prefopt.config import compose_request
from prefopt.errors import RequestError
from prefopt.models.base import Base
from prefopt.settings import support
from prefopt.settings.support import FREE, HELD, LIVE, MODELS, REWARDS, RULES, SYNCED, Case, refusal
from tests.gloo_worker import run_ranks
from tests.models.saved import pairs_file, saved_model

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")
LOSSES = {HELD: ["loss=dpo"], FREE: ["loss=sft"], REWARDS: ["loss=bradley_terry"]}
LIVE_RUN = ["loss=grpo", "reward=rule", "reward.rule=exact", "source.samples=2", "source.max_new_tokens=4"]
OPTIONS = {(False, False): "hf", (False, True): "hf_lora", (True, True): "hf_4bit", (True, False): "hf_4bit"}


def asked(case: Case, name: str = "model") -> list[str]:
    """The request that a case stands for. name: of the model."""
    found = [f"model={OPTIONS[case.quantised, case.adapted]}", f"model.name={name}", f"strategy={case.strategy}"]
    found += LIVE_RUN if case.family == LIVE else LOSSES[case.family]
    found += [f"trainer.devices={case.devices}", f"trainer.precision={case.precision}", "trainer.accelerator=cpu"]
    found += ["model.adapter=null"] if case.quantised and not case.adapted else []
    found += ["model.sync_every=1"] if case.reference == SYNCED else [f"model.reference={case.reference}"]
    found += [f"model.reference_name={name}"] if case.reference == "model" else []
    found += [f"strategy.stage={case.stage}"] if case.stage else []
    found += ["model.adapter.bias=lora_only"] if case.keeps_start else []
    return found


def running(strategy: str) -> list[Case]:
    """All cases of a column that run, but for references that nobody asks and precisions of every model."""
    found = []
    for model in MODELS:
        for case in support.cases(model, strategy, cuda=False):
            unread = case.family != HELD and case.reference not in ("auto", "none", SYNCED)
            repeated = case.precision != "32" and (model != "whole" or case.precision in ("auto", "64-true", "32-true"))
            if not (refusal(case) or unread or repeated):
                found.append(case)
    return list(dict.fromkeys(found))


# ------------------------------------------------------------------------------------------------ refusals


REFUSED = [
    ("trainer.devices=2", "trainer.devices=2 needs strategy=ddp; strategy=single is one device"),
    ("model=hf_4bit model.name=model model.adapter=null", "model.quant must be null without an adapter"),
    ("model.reference=start", "model.reference=start needs an adapter; model.adapter is null: take auto or copy"),
    ("model.reference=none", "model.reference=none, but this loss is held against a reference; take auto"),
    ("strategy=deepspeed", "strategy=deepspeed runs on NVIDIA GPUs only; take strategy=fsdp or ddp"),
    ("strategy=fsdp model=hf_4bit model.name=model", "strategy=fsdp shards floating-point weights only"),
    ("strategy=fsdp loss=ppo", "strategy=fsdp trains on recorded rows only; on own answers take strategy=ddp"),
    ("strategy=fsdp model=tiny_lora model.reference=start", "strategy=fsdp: a reference that is a copy of what trains"),
    ("strategy=fsdp model.sync_every=1", "strategy=fsdp: a reference that is a copy of what trains"),
    ("strategy=fsdp model=tiny_lora model.adapter.bias=all", "strategy=fsdp: evaluation compares with the start"),
    ("strategy=fsdp trainer.precision=16-mixed", "trainer.precision=16-mixed: sharded gradients are not scaled"),
    ("strategy=fsdp strategy.stage=3", "strategy.stage: no such key"),
    ("strategy=deepspeed strategy.stage=1", "strategy.stage must be 2 or 3; got 1"),
    ("strategy=deepspeed +strategy.x=1", "strategy.x: no such key"),
    ("strategy=ddp strategy.name=dpp", "strategy.name must be one of single, ddp, fsdp, deepspeed; got 'dpp'"),
]


@pytest.mark.parametrize(("overrides", "said"), REFUSED, ids=[overrides for overrides, _ in REFUSED])
def test_refused_before_any_weight_is_loaded(overrides, said, tmp_path, monkeypatch):
    monkeypatch.setattr(Base, "causal", lambda self: pytest.fail("weights were loaded"))
    monkeypatch.chdir(tmp_path)
    if "model.name=model" in overrides:
        pytest.importorskip("bitsandbytes")
        saved_model(tmp_path / "model")
    with pytest.raises(RequestError, match=re.escape(said)):
        compose_request([*overrides.split(), "trainer.accelerator=cpu", f"cache_dir={tmp_path}"])


def test_an_adapter_named_as_the_model_goes_on_too(tmp_path):
    """Sharded, its start could only be kept as a copy of it; the rule is that of model.adapter.start."""
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/adapter_config.json").write_text("{}")
    asked = ["model=hf_lora", f"model.name={tmp_path / 'adapter'}", f"cache_dir={tmp_path}", "trainer.accelerator=cpu"]
    with pytest.raises(RequestError, match="strategy=fsdp: evaluation compares with the start"):
        compose_request([*asked, "strategy=fsdp", "trainer.devices=2"])


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ("", r"strategy=deepspeed needs DeepSpeed: pip install 'prefopt\[deepspeed\]'"),
        ("strategy.stage=3", "strategy.stage=3: hashes, checks and saving read whole weights, which no process has"),
        ("loss=grpo", "strategy=deepspeed trains on recorded rows only"),
        ("model.sync_every=1", "strategy=deepspeed: a reference that is a copy of what trains"),
        ("trainer.precision=bf16-mixed", "trainer.precision=bf16-mixed: DeepSpeed casts the policy, not its reference"),
        ("save_by=01:00:00", "save_by=01:00:00: strategy=deepspeed saves nothing, its runs begin again; take"),
    ],
)
def test_deepspeed_where_there_is_a_gpu(overrides, said, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(RequestError, match=said):
        compose_request(["strategy=deepspeed", "trainer.devices=2", *overrides.split(), f"cache_dir={tmp_path}"])


def test_every_rule_is_reached():
    """No rule is hidden behind an earlier one."""
    cells = [(model, strategy) for model in MODELS for strategy in support.STRATEGIES]
    found = {support._first(case) for cell in cells for cuda in (False, True) for case in support.cases(*cell, cuda)}
    assert found - {None} == set(RULES) - {RULES[0]}
    assert refusal(Case(devices=2)) == RULES[0].why.format(devices=2)


def test_one_line_each():
    """That says what to take instead."""
    for rule in RULES:
        assert "\n" not in rule.why
        assert re.search(r"take |needs strategy=ddp", rule.why), rule.why


# ------------------------------------------------------------------------------------------------ the table


def test_the_readme_has_the_table():
    assert script.written(README) == README
    assert support.table() in README


def test_its_cells():
    """By hand: what a cell says, and how many rules it names."""
    rows = {}
    for line in support.table().splitlines():
        if line.startswith("| ") and "---" not in line:
            name, *cells = [cell.strip() for cell in line.strip("|").split("|")]
            rows[name] = [(cell.split(" [")[0], cell.count("[")) for cell in cells]
    gpu = "GPU, untested"
    assert rows["whole"] == [("runs", 2), ("runs", 3), ("runs", 6), (gpu, 6), ("–", 1)]
    assert rows["adapter"] == [("runs", 1), ("runs", 2), ("runs", 6), (gpu, 6), ("–", 1)]
    assert rows["4-bit, adapter"] == [("runs", 2), ("runs", 3), ("–", 1), ("–", 1), ("–", 1)]
    assert rows["4-bit"] == [("–", 1)] * 5


# ------------------------------------------------------------------------------------------------ it runs


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["single", "ddp", "fsdp"])
def test_what_it_says_runs_does(strategy, tmp_path):
    """Every case that is not refused, whole runs of two steps one after another; ddp and fsdp in two processes."""
    pytest.importorskip("bitsandbytes")
    saved_model(tmp_path / "model")
    pairs_file(tmp_path)
    if strategy == "single":
        from tests.support_worker import run_all

        run_all(strategy, tmp_path)
    else:
        run_ranks("tests.support_worker", strategy, tmp_path, timeout=1200)
    found = [json.loads(file.read_text()) for file in tmp_path.glob("run-*/summary.json")]
    assert [summary["status"] for summary in found] == ["finished"] * len(running(strategy))
