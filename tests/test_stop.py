"""A run that is asked to end before it is done: by a signal, by the clock, by Slurm; and which process answers."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from prefopt.callbacks import steps
from prefopt.callbacks.checkpoints import Checkpoints
from prefopt.callbacks.steps import Steps
from prefopt.callbacks.stop import Stop
from prefopt.config import compose_request
from prefopt.errors import FAILED, INTERRUPTED, OK, WRONG, RequestError
from prefopt.jobs import train as job
from prefopt.jobs.launched import MAIN
from prefopt.jobs.others import others_hash
from prefopt.jobs.train import train
from prefopt.progress import is_main_process
from prefopt.run import without_places
from prefopt.settings import Settings
from prefopt.settings.checks import seconds_of
from prefopt.sweep.processes import clean_environment
from tests.test_resume import read

STEPS = 5


def ask(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


def test_a_signal_waits_for_the_step_and_a_second_one_does_not():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with Stop(main_process=True) as stop:
        stop.waits = True
        ask()
        assert stop.asked
        with pytest.raises(KeyboardInterrupt):
            ask(signal.SIGINT)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_outside_of_training_the_main_process_ends_at_once_and_no_other():
    with Stop(main_process=True), pytest.raises(KeyboardInterrupt):
        ask()
    with Stop(main_process=False) as stop:
        ask()
        ask()
        stop.waits = True
        ask()
        assert stop.asked


def test_slurms_warning_is_no_second_signal(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with Stop(main_process=True):
        assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with Stop(main_process=True) as stop:
        stop.waits = True
        ask(signal.SIGUSR1)
        ask(signal.SIGUSR1)
        assert stop.asked
        assert stop.requeue
        stop.waits = False
        ask(signal.SIGUSR1)  # while what training left is written down
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


@pytest.mark.parametrize(
    ("said", "seconds"),
    [("90", 90), ("1.5e3", 1500), ("0:01:30", 90), ("23:50:00", 85800), ("1-12:00:00", 129600), ("100:00:00", 360000)],
)
def test_times(said, seconds):
    assert seconds_of(said) == seconds


@pytest.mark.parametrize("said", ["soon", "1:30", "1:60:00", "", "0:00:00", "-5", "true"])
def test_what_is_no_time_is_refused(said):
    with pytest.raises(RequestError, match=r"save_by must be seconds, HH:MM:SS or D-HH:MM:SS"):
        compose_request([f"save_by='{said}'"])


def test_a_time_limit_is_no_part_of_a_run():
    asked = compose_request(["save_by=1:30:00"])
    assert asked.settings.time_limit == 5400
    assert "save_by" not in without_places(asked.plain)


def test_a_step_and_its_save_must_be_done_in_time(monkeypatch):
    callback = Checkpoints(None, None, None, None, stop := Stop(True, limit=100))
    callback._longest_step, callback._longest_save = 30, 20
    now = time.monotonic()
    for passed, late in ((0, False), (49, False), (51, True)):
        monkeypatch.setattr(time, "monotonic", lambda passed=passed: now + passed)
        assert callback._late == late
    stop.limit = None
    assert not callback._late
    assert stop.left == math.inf


@pytest.mark.parametrize(
    ("environment", "main"),
    [
        ({}, True),
        ({"LOCAL_RANK": "1"}, False),
        ({"LOCAL_RANK": "0", "NODE_RANK": "1"}, False),
        ({"RANK": "1", "LOCAL_RANK": "0"}, False),  # torchrun on a second node
        ({"RANK": "0", "LOCAL_RANK": "0", "SLURM_PROCID": "1"}, True),  # torchrun numbers nodes its own way
        ({"SLURM_PROCID": "1", "SLURM_LOCALID": "0"}, False),  # srun
        ({"SLURM_PROCID": "0", "LOCAL_RANK": "1"}, False),  # started by Lightning inside of an interactive job
    ],
)
def test_which_process_is_the_main_one(environment, main, monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_main_process() == main


def test_jobs_of_a_sweep_are_no_tasks_of_slurm(monkeypatch):
    for name in ("SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID", "PREFOPT_MAIN", "SLURM_TMPDIR"):
        monkeypatch.setenv(name, "1")
    assert set(clean_environment()) & {"SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID", "PREFOPT_MAIN"} == set()
    assert "SLURM_TMPDIR" in clean_environment()


RANK = """
import os, time
from prefopt.jobs.launched import together
with together(main_process=False):
    print(os.getpid(), flush=True)
    time.sleep(60)
"""


ENDING = """
import atexit, sys
import torch.distributed as dist
from prefopt.errors import FAILED, OK
from prefopt.jobs import train
atexit.register(lambda: print(dist.is_initialized()))
def ended(request, run, stop):
    dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}/group", rank=0, world_size=1)
    return OK if sys.argv[2] == "well" else FAILED
train._recorded, train.print_summary = ended, lambda *_: None
from prefopt.config import compose_request
train.train(compose_request([f"run_dir={sys.argv[1]}/run", f"cache_dir={sys.argv[1]}"]))
"""


@pytest.mark.parametrize(("how", "left"), [("well", "False"), ("fails", "True")])
def test_the_group_is_left_before_the_interpreter_ends(tmp_path, how, left):
    """Else one process in some dozens aborts in gloo's threads; after a failure nobody waits for what was under way."""
    asked = [sys.executable, "-c", ENDING, str(tmp_path), how]
    done = subprocess.run(asked, env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"}, capture_output=True, text=True)
    assert done.stdout.strip() == left, done.stderr


def gone(pid: int) -> bool:
    try:
        return "zombie" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True


def test_a_rank_ends_with_its_main_process():
    """One that is killed while the rank runs, and one that was gone before it came so far."""
    main = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {RANK!r}]); time.sleep(60)"
    own = {key: value for key, value in os.environ.items() if key != MAIN}
    with subprocess.Popen([sys.executable, "-c", main], stdout=subprocess.PIPE, env=own, text=True) as running:
        rank = int(running.stdout.readline())
        running.kill()
        deadline = time.monotonic() + 20
        while not gone(rank) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert gone(rank)
    orphan = subprocess.run([sys.executable, "-c", RANK], env={**os.environ, MAIN: "1234567"}, timeout=50)
    assert orphan.returncode == FAILED


# ---------------------------------------------------------------- whole runs


@pytest.fixture
def asked(small) -> list[str]:
    return [*small[:-1], "model=tiny_lora", "model.adapter.dropout=0.3", "evaluation.prompts=2",
            f"trainer.max_steps={STEPS}", "trainer.val_every=2", "trainer.checkpoint_every=null"]  # fmt: skip


def at_step(step: int, monkeypatch, do) -> None:
    """Something happens while the step is written down."""
    write = Steps._write

    def written(self, row):
        write(self, row)
        if row["step"] == step:
            do()

    monkeypatch.setattr(Steps, "_write", written)


def test_stopped_and_continued(asked, tmp_path, monkeypatch, capsys):
    """By a signal, by the clock and by Slurm, each at a step of its own; no look at held-out rows out of turn."""
    assert train(compose_request([*asked, f"run_dir={tmp_path / 'whole'}"])) == OK
    looks = (tmp_path / "whole/validation.jsonl").read_text()
    assert [json.loads(line)["step"] for line in looks.splitlines()] == [2, 4]
    run = tmp_path / "run"
    again = [*asked, f"run_dir={run}"]

    def terminated():
        assert isinstance(signal.getsignal(signal.SIGTERM).__self__, Stop), "Lightning's handler waits for ever"
        ask()

    for step, limit, do in (
        (1, "null", lambda _: terminated()),
        (2, "1:00:00", lambda patch: patch.setattr(Stop, "left", 0.0)),
        (3, "null", lambda _: ask(signal.SIGUSR1)),
    ):
        with monkeypatch.context() as patch:
            at_step(step, patch, partial(do, patch))
            patch.setenv("SLURM_JOB_ID", "4242")
            patch.setenv("PATH", f"{fake_scontrol(tmp_path)}:{os.environ['PATH']}")
            assert train(compose_request([*again, f"save_by={limit}"])) == INTERRUPTED
        assert json.loads((run / "summary.json").read_text())["status"] == "interrupted"
        assert step_of(run) == step
        assert (tmp_path / "scontrol.log").exists() == (step == 3)
    assert (tmp_path / "scontrol.log").read_text() == "requeue 4242\n"
    assert "Slurm job 4242 is queued again" in capsys.readouterr().err
    assert train(compose_request(again)) == OK
    assert (run / "validation.jsonl").read_text() == looks
    assert read(run) == read(tmp_path / "whole")


def fake_scontrol(folder) -> str:
    script = folder / "bin/scontrol"
    script.parent.mkdir(exist_ok=True)
    script.write_text(f'#!/bin/sh\necho "$@" >> "{folder}/scontrol.log"\n')
    script.chmod(0o755)
    return str(script.parent)


def step_of(run) -> int:
    return torch.load(run / "checkpoints/last.ckpt", weights_only=True)["global_step"]


def test_asked_when_the_last_step_is_done(asked, tmp_path, monkeypatch):
    """While the weights are evaluated, and between the last look for signals and the end of training: all has been
    saved, and the same command evaluates."""
    for where, name in ((job, "evaluate_split"), (Steps, "on_train_end")):  # which comes before the one that saves
        run = [*asked, f"run_dir={tmp_path / name}"]
        with monkeypatch.context() as patch:
            patch.setattr(where, name, lambda *_: ask())
            assert train(compose_request(run)) == INTERRUPTED
        assert step_of(tmp_path / name) == STEPS
        with monkeypatch.context() as patch:
            patch.setattr(steps, "peak_memory_bytes", lambda: 1)  # of the attempt that only evaluates
            patch.setattr(job, "peak_memory_bytes", lambda: 1)
            assert train(compose_request(run)) == OK
        summary = json.loads((tmp_path / name / "summary.json").read_text())
        assert summary["resumed_at"] == [STEPS]
        assert summary["peak_memory_bytes"] > 2**20


# ---------------------------------------------------------------- what a run stands on


def test_a_reference_that_has_changed_is_refused_by_its_key(asked, cache_dir, tmp_path, monkeypatch, capsys):
    import shutil

    assert train(compose_request([*asked, f"run_dir={tmp_path / 'first'}"])) == OK
    base = next(path for path in (cache_dir / "base").iterdir() if path.is_dir())
    shutil.copytree(base, tmp_path / "other")
    run = [*asked, f"run_dir={tmp_path / 'run'}", "model.reference=model", f"model.reference_name={tmp_path}/other"]
    with monkeypatch.context() as patch:
        at_step(1, patch, ask)
        assert train(compose_request(run)) == INTERRUPTED
    weights = load_file(tmp_path / "other/model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, tmp_path / "other/model.safetensors", {"format": "pt"})
    capsys.readouterr()
    assert train(compose_request(run)) == WRONG
    assert "the weights of model.reference_name were" in capsys.readouterr().err


def test_reward_models_are_told_by_their_weights(tmp_path):
    for name, value in (("one", 1.0), ("two", 2.0)):
        (tmp_path / name).mkdir()
        save_file({"score.weight": torch.full((1, 4), value)}, tmp_path / name / "model.safetensors", {"format": "pt"})

    def found(on_policy: bool, watch, *names):
        reward = SimpleNamespace(models=lambda: [("reward.names", str(tmp_path / name)) for name in names])
        model, source = SimpleNamespace(reference="auto"), SimpleNamespace(watch=watch)
        settings = SimpleNamespace(model=model, source=source, reward=reward)
        settings.judges = lambda: Settings.judges(settings)
        return others_hash(SimpleNamespace(settings=settings, on_policy=on_policy, objective=None))

    both = found(True, str(tmp_path / "two"), "one", "two")
    assert set(both) == {"reward.names", "source.watch"}
    assert both["source.watch"] == found(True, "gold", "two")["reward.names"]
    assert both["reward.names"] not in (found(True, None, "one")["reward.names"], both["source.watch"])
    assert found(True, "auto") == found(False, str(tmp_path / "two"), "one") == {}
