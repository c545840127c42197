"""A killed run started again by the same command ends where the uninterrupted one does, to the bit."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lightning.pytorch.trainer.states import TrainerFn

from prefopt.config import compose_request
from prefopt.errors import INTERRUPTED, OK
from prefopt.jobs.train import train as trained_here
from prefopt.module import PreferenceModule
from tests.conftest import SMALL

TIMES = ("seconds", "pairs_per_second", "tokens_per_second")  # the columns that differ from run to run
STEPS = 20
# What a resumed run may say differently: when it was resumed, and everything a clock or a memory gauge says.
DIFFERS = {"resumed_at", "command", "train_seconds", "pairs_per_second", "tokens_per_second", "peak_memory_bytes"}
DIFFERS |= {"sampling_seconds", "git"}  # somebody may commit meanwhile
# Four steps a collection, a reward and a KL coefficient with a running state.
SPEAKING = ["source.prompts=32", "source.passes=2", f"trainer.max_steps={STEPS}", "reward.scale=running"]
SPEAKING += ["source.kl_target=0.5", "source.kl_horizon=500", "model.adapter.dropout=0"]


def command(loss: str, run: Path, cache: Path, *more: str) -> list[str]:
    fixed = [*SMALL, f"loss={loss}", f"run_dir={run}", f"cache_dir={cache}", "trainer.checkpoint_every=3"]
    return [sys.executable, "-m", "prefopt.train", *fixed, "model=tiny_lora", "model.adapter.dropout=0.2", *more]


def train(loss: str, run: Path, cache: Path, *more: str) -> None:
    """Here, whatever else has been computed in this process; what is killed has one of its own."""
    assert trained_here(compose_request(command(loss, run, cache, *more)[3:])) == OK


def rows(run: Path) -> list[dict[str, str]]:
    if not (run / "metrics.csv").exists():
        return []
    with (run / "metrics.csv").open(newline="") as stream:
        return [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(stream)]


def kill_at(step: int, *arguments) -> None:
    """SIGKILL as soon as metrics.csv shows the step."""
    running = subprocess.Popen(command(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    run = arguments[1]
    deadline = time.monotonic() + 120
    while len(rows(run)) < step and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL, "the run ended before it was killed"


def read(run: Path) -> tuple[dict, list, str, str]:
    summary = json.loads((run / "summary.json").read_text())
    kept = {key: value for key, value in summary.items() if key not in DIFFERS}
    return kept, rows(run), (run / "val.jsonl").read_text(), _text(run / "samples.jsonl")


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def check(loss: str, kills: list[int], cache: Path, folder: Path, *more: str) -> None:
    train(loss, folder / "whole", cache, *more)
    expected = read(folder / "whole")
    assert len(expected[1]) == STEPS
    for step in kills:
        run = folder / f"killed-{step}"
        kill_at(step, loss, run, cache, *more)
        assert json.loads((run / "summary.json").read_text())["status"] == "interrupted"
        train(loss, run, cache, *more)
        found = read(run)
        for part, other in zip(found, expected, strict=True):
            assert part == other, f"killed at step {step}"
        resumed_at = json.loads((run / "summary.json").read_text())["resumed_at"]
        # The kill comes a moment after the row is written: perhaps after the checkpoint of that step, or the next.
        saves = {step // 3 * 3, (step - 1) // 3 * 3, step // 3 * 3 + 3} - {0}
        assert set(resumed_at) <= saves
        assert resumed_at or step <= 3


def test_killed_once(cache_dir, tmp_path):
    check("kto", [8], cache_dir, tmp_path)


@pytest.mark.long
def test_killed_inside_a_collection(cache_dir, tmp_path):
    """Answers, optimiser, value head, coefficient and running statistics go on where they were."""
    check("ppo", [10], cache_dir, tmp_path, *SPEAKING)
    summary = json.loads((tmp_path / "whole/summary.json").read_text())
    assert summary["rollouts"]["collections"] == STEPS / 4
    assert summary["rollouts"]["beta"] != 0.05


@pytest.mark.long
def test_an_on_policy_run_killed_at_five_random_steps(cache_dir, tmp_path):
    check("ppo", sorted(random.Random("ppo").sample(range(1, STEPS), 5)), cache_dir, tmp_path, *SPEAKING)


@pytest.mark.long
@pytest.mark.parametrize("loss", ["dpo", "kto", "sft", "bradley_terry"])
def test_killed_at_five_random_steps(loss, cache_dir, tmp_path):
    check(loss, sorted(random.Random(loss).sample(range(1, STEPS), 5)), cache_dir, tmp_path)


@pytest.mark.long
def test_a_look_that_was_killed_is_looked_again(small, tmp_path, monkeypatch):
    """At a step in between and at the last, each after its checkpoint: validation.jsonl lacks no line and has none
    twice, the last one cut off or not, and the run goes on as if nothing had been."""
    fixed = [*small, "model=tiny_lora", "model.adapter.dropout=0.3", "data.micro_batch_size=8"]
    fixed += ["trainer.max_steps=6", "trainer.val_every=2", "trainer.checkpoint_every=2"]
    whole = tmp_path / "whole"
    assert trained_here(compose_request([*fixed, f"run_dir={whole}"])) == OK
    looks = [json.loads(line)["step"] for line in (whole / "validation.jsonl").open()]
    assert looks == [2, 4, 6]
    step_of = PreferenceModule.validation_step

    def killed(self, *arguments):
        if self.trainer.global_step == last and self.trainer.state.fn == TrainerFn.FITTING:
            raise KeyboardInterrupt
        return step_of(self, *arguments)

    for last, rest in ((4, ""), (6, '{"step": 6, "lo')):
        run = tmp_path / f"killed-{last}"
        request = [*fixed, f"run_dir={run}"]
        with monkeypatch.context() as patch:
            patch.setattr(PreferenceModule, "validation_step", killed)
            assert trained_here(compose_request(request)) == INTERRUPTED
        with (run / "validation.jsonl").open("a") as stream:
            stream.write(rest)
        assert trained_here(compose_request(request)) == OK
        assert (run / "validation.jsonl").read_text() == (whole / "validation.jsonl").read_text()
        assert read(run)[1:] == read(whole)[1:]


@pytest.mark.long
def test_asked_to_end(cache_dir, tmp_path):
    """SIGTERM saves and exits 130; the same command continues; a finished run is left alone."""
    train("dpo", tmp_path / "whole", cache_dir)
    run = tmp_path / "asked"
    running = subprocess.Popen(command("dpo", run, cache_dir), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while len(rows(run)) < 5 and running.poll() is None:
        time.sleep(0.002)
    running.send_signal(signal.SIGTERM)
    assert running.wait() == 130
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    train("dpo", run, cache_dir)
    assert read(run) == read(tmp_path / "whole")
    before = os.stat(run / "summary.json").st_mtime_ns
    train("dpo", run, cache_dir)
    assert os.stat(run / "summary.json").st_mtime_ns == before


def test_checkpoint_holds_what_trains_and_loads_safely(cache_dir, tmp_path):
    """The adapter and its optimiser, no base; readable without running any code."""
    import torch

    train("dpo", tmp_path / "run", cache_dir)
    checkpoint = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["state_dict"]
    assert all("lora_" in name for name in checkpoint["state_dict"])
    trained = sum(t.numel() * t.element_size() for t in checkpoint["state_dict"].values())
    size = (tmp_path / "run/checkpoints/last.ckpt").stat().st_size
    assert size < 1.2 * trained * 3  # AdamW keeps two moments; the rest is names and random states
