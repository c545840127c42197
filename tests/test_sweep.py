"""Sweeps: every job in its own process and folder, once; what fails is shown, what is killed goes on."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from prefopt.config import compose_request
from prefopt.config.explain import points
from prefopt.config.sweeps import _summary
from prefopt.errors import FAILED, OK, WRONG, RequestError
from prefopt.files import replacing
from prefopt.jobs.train import train
from prefopt.sweep.ledger import Job, Ledger
from prefopt.sweep.processes import Sweep, hear, interrupt, quoted
from prefopt.train import main
from tests.models.saved import pairs_file, saved_model
from tests.test_resume import read
from tests.test_storage import killed_in


@pytest.fixture
def model(tmp_path) -> str:
    pairs_file(tmp_path)
    return saved_model(tmp_path / "model")


def command(folder: Path, model: str, *overrides: str) -> list[str]:
    fixed = ["model=hf", f"model.name={model}", "data=jsonl", f"data.train={folder / 'pairs.jsonl'}"]
    fixed += ["data.prompts=text", "data.batch_size=8", "trainer.max_steps=3", "trainer.accelerator=cpu"]
    fixed += ["evaluation.prompts=2", "evaluation.samples_per_prompt=2", "evaluation.max_new_tokens=3"]
    fixed += [f"cache_dir={folder / 'cache'}", f"sweep_dir={folder / 'sweep'}"]
    return [sys.executable, "-m", "prefopt.train", "-m", *fixed, *overrides]


def sweep(folder: Path, model: str, *overrides: str, **environment: str) -> subprocess.CompletedProcess[str]:
    done = {**os.environ, **environment}
    return subprocess.run(command(folder, model, *overrides), env=done, cwd=folder, capture_output=True, text=True)


def ledger(folder: Path) -> list[dict]:
    return json.loads((folder / "sweep" / "sweep.json").read_text())["jobs"]


def summary(folder: Path, job: dict) -> dict:
    return json.loads((folder / "sweep" / job["name"] / "summary.json").read_text())


def test_every_job_runs_once_whatever_the_environment(model, tmp_path):
    """As a rank of nobody's run, in a process of its own; a wider grid starts only what is new."""
    pretending = {"WORLD_SIZE": "4", "MASTER_ADDR": "nowhere", "MASTER_PORT": "1", "NODE_RANK": "0"}
    done = sweep(tmp_path, model, "loss=dpo,sft", "seed=1", "hydra.launcher.parallel=2", **pretending)
    assert done.returncode == OK, done.stderr
    jobs = ledger(tmp_path)
    assert [job["status"] for job in jobs] == ["finished"] * 2
    found = [summary(tmp_path, job) for job in jobs]
    assert [(s["loss"], s["seed"]) for s in found] == [("dpo", 1), ("sft", 1)]
    assert len({s["comparable_hash"] for s in found}) == 1
    assert "2 of 2 jobs finished" in done.stderr
    before = [(tmp_path / "sweep" / job["name"] / "summary.json").stat().st_mtime_ns for job in jobs]

    again = sweep(tmp_path, model, "loss=dpo,ipo,sft", "seed=1")
    assert again.returncode == OK, again.stderr
    assert "3 jobs in" in again.stderr
    assert "2 of them done before" in again.stderr
    assert len(ledger(tmp_path)) == 3
    after = [(tmp_path / "sweep" / job["name"] / "summary.json").stat().st_mtime_ns for job in jobs]
    assert before == after


@pytest.mark.long
def test_what_fails_is_shown_and_the_others_go_on(model, tmp_path):
    done = sweep(tmp_path, model, "optimizer.lr=1e38,0.001", "trainer.clip=null", "loss=sft")
    assert done.returncode == FAILED
    assert [job["status"] for job in ledger(tmp_path)] == ["failed", "finished"]
    first = ledger(tmp_path)[0]
    log = tmp_path / "sweep" / "logs" / f"{first['name']}.log"
    assert "failed (exit 1): model=hf" in done.stderr
    assert first["name"].startswith("lr1e")
    assert str(log) in done.stderr.replace("\n", "")
    assert "the run failed" in log.read_text()
    assert "1 of 2 jobs finished" in done.stderr


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["loss=dpo,kto", "loss.label_smoothing=0.1"], "loss.label_smoothing"),
        (["loss=dpo,dpoo"], "did you mean 'dpo'?"),
        (["loss.beta=0.1,-1"], "beta"),
        (["run_dir=x", "seed=0,1"], "sweep_dir"),
        (["save_by=1:00:00", "seed=0,1"], "counts from the start of one run"),
        (["sweep=offlin"], "did you mean 'offline'?"),
        (["hydra.launcher.parallel=0"], "parallel"),
        (["loss.beta=interval(0.1,1)"], "hydra/sweeper=optuna"),
        (["loss.bta=interval(0.1,1)", "hydra/sweeper=optuna"], "did you mean 'beta'?"),
        (["loss.beta=interval(-1,1)", "hydra/sweeper=optuna"], "beta"),
        (["hydra/sweeper=optuna", "seed=0,1"], "searches intervals"),
    ],
)
def test_a_wrong_job_is_refused_before_any_begins(overrides, said, model, tmp_path, monkeypatch, capsys):
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(sys, "argv", ["prefopt.train", *command(tmp_path, model, *overrides)[3:]])
    assert main() == WRONG
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) <= 2, error
    assert sorted(tmp_path.iterdir()) == before


def test_trials_that_are_equal_are_one_run(monkeypatch, tmp_path, capsys):
    """Of four trials over two whole numbers, proposed at once, each has its answer."""

    def run(self, jobs):
        for job in jobs:
            self.ledger.run_dir(job).mkdir()
            told = {"status": "finished", "val": {"accuracy": 0.5}}
            (self.ledger.run_dir(job) / "summary.json").write_text(json.dumps(told))
        return OK

    monkeypatch.setattr(Sweep, "run", run)
    asked = ["-m", "hydra/sweeper=optuna", "hydra.sweeper.trials=4", "hydra.launcher.parallel=4"]
    asked += ["trainer.max_steps=int(interval(1,2))", f"sweep_dir={tmp_path / 'sweep'}", f"cache_dir={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["prefopt.train", *asked])
    assert main() == OK
    assert len(ledger(tmp_path)) <= 2
    assert "the best of 4 trials" in capsys.readouterr().err


@pytest.mark.long
def test_a_search(model, tmp_path):
    """Optuna's trials are jobs of the sweep; again, they are there."""
    asked = ["hydra/sweeper=optuna", "hydra.sweeper.trials=2", "loss.beta=tag(log,interval(0.01,1))"]
    asked += ["hydra.launcher.parallel=2"]
    done = sweep(tmp_path, model, *asked)
    assert done.returncode == OK, done.stderr
    jobs = ledger(tmp_path)
    assert [job["status"] for job in jobs] == ["finished"] * 2
    betas = [json.loads((tmp_path / "sweep" / j["name"] / "config.json").read_text())["loss"]["beta"] for j in jobs]
    assert betas[0] != betas[1]
    assert [job["name"].startswith(f"beta{beta}") for job, beta in zip(jobs, betas, strict=True)] == [True, True]
    assert "the best of 2 trials" in done.stderr
    again = sweep(tmp_path, model, *asked)
    assert "the best of 2 trials" in again.stderr
    assert "job" not in again.stderr


@pytest.mark.long
def test_hydras_own_launchers(model, tmp_path):
    """joblib's processes read the same configuration files, and what fails there is told."""
    asked = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=1", "loss=sft", "trainer.clip=null"]
    done = sweep(tmp_path, model, *asked, "optimizer.lr=0.001,1e38")
    assert done.returncode == FAILED, done.stderr
    found = [json.loads(file.read_text()) for file in sorted((tmp_path / "runs").glob("*/summary.json"))]
    assert [run["status"] for run in found] == ["finished", "failed"]


@pytest.mark.long
def test_a_killed_sweep_takes_its_jobs_along_and_goes_on(model, tmp_path):
    """kill -9 in the middle; the same command ends where an uninterrupted sweep does."""
    asked = ["loss=dpo,sft", "trainer.max_steps=40", "trainer.checkpoint_every=5"]
    assert sweep(tmp_path, model, *asked, f"sweep_dir={tmp_path / 'whole'}").returncode == OK
    running = subprocess.Popen(command(tmp_path, model, *asked), cwd=tmp_path, stderr=subprocess.DEVNULL)
    place, deadline = tmp_path / "sweep", time.monotonic() + 120
    while len(list(place.glob("*/checkpoints/last.ckpt"))) < 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL, "the sweep ended before it was killed"
    time.sleep(1)
    assert not alive(str(place)), "a job outlived its sweep"
    done = sweep(tmp_path, model, *asked)
    assert done.returncode == OK, done.stderr
    for job in ledger(tmp_path):
        assert job["status"] == "finished"
        assert read(place / job["name"]) == read(tmp_path / "whole" / job["name"])


def alive(text: str) -> list[str]:
    """Command lines of processes that mention it."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if text in line and "prefopt.train" in line:
            found.append(line)
    return found


@pytest.mark.long
def test_one_and_two_processes_in_one_sweep(model, tmp_path):
    """Each job has a folder and the ranks that it asked for, and nothing runs twice. Where each micro-batch holds the
    same rows and a gradient has two parts, two ranks write what one process writes, whatever the loss."""
    losses = ("dpo", "kto", "orpo", "bradley_terry")
    asked = [f"loss={','.join(losses)}", "trainer.devices=1,2", "strategy=ddp"]
    done = sweep(tmp_path, model, *asked, "data.batch_size=2", "data.micro_batch_size=1", "evaluation.batch_size=2")
    assert done.returncode == OK, done.stderr
    jobs = ledger(tmp_path)
    assert [job["devices"] for job in jobs] == [1, 2] * len(losses)
    folders = {entry.name for entry in (tmp_path / "sweep").iterdir() if entry.is_dir()}
    assert folders == {job["name"] for job in jobs} | {"logs"}
    found = [summary(tmp_path, job) for job in jobs]
    assert [s["steps"] for s in found] == [3] * len(jobs)
    assert len({s["row_order_hash"] for s in found}) == 1
    for alone, both in zip(jobs[::2], jobs[1::2], strict=True):
        one, other = (read(tmp_path / "sweep" / job["name"]) for job in (alone, both))
        assert one[1:] == other[1:]
        assert len(one[1]) == 3
        assert (one[0]["val"], one[0]["model_hash"]) == (other[0]["val"], other[0]["model_hash"])


def test_other_ranks_than_asked_for_are_refused(model, tmp_path, monkeypatch, capsys):
    """So a job that has ended well had them."""
    alone = SimpleNamespace(world_size=1)
    monkeypatch.setattr("prefopt.jobs.train.build_trainer", lambda *_: alone)
    asked = [word for word in command(tmp_path, model)[4:] if not word.startswith("sweep_dir")]
    run = tmp_path / "run"
    assert train(compose_request([*asked, f"run_dir={run}", "trainer.devices=2", "strategy=ddp"])) == WRONG
    assert "trainer.devices=2, but there are 1 processes" in capsys.readouterr().err
    assert not run.exists()


def test_points_of_a_grid():
    assert points(["loss=dpo", "loss.beta=0.1,0.3", "seed=range(2)"]) == [
        ["loss=dpo", "loss.beta=0.1", "seed=0"],
        ["loss=dpo", "loss.beta=0.1", "seed=1"],
        ["loss=dpo", "loss.beta=0.3", "seed=0"],
        ["loss=dpo", "loss.beta=0.3", "seed=1"],
    ]


def test_names_of_jobs():
    """Readable, short, and different where the request is; where the run lies is no part of it."""
    plain = {"seed": 0, "run_dir": "a"}
    own = ["loss=dpo", "loss.beta=0.1", "data.train=/a/b.jsonl", "seed=0"]
    job = Job.of(["model=tiny", *own], own, plain, 1)
    assert job.name == f"dpo-beta0.1-trainb.jsonl-seed0-{job.key[:6]}"
    assert Job.of(own, [], {**plain, "run_dir": "b"}, 1).key == job.key
    assert Job.of(own, [], {**plain, "run_dir": "b"}, 1).name == f"run-{job.key[:6]}"
    assert Job.of(own, own, {**plain, "seed": 1}, 1).key != job.key


@pytest.mark.parametrize("name", ["plain", "it's = \\'odd\\ {x}", 'two "quotes"', "a,b"])
def test_folders_of_any_name(name):
    (override,) = OverridesParser.create().parse_overrides([f"run_dir={quoted(name)}"])
    assert override.value() == name


def test_jobs_on_a_cpu_need_no_gpu(monkeypatch, tmp_path):
    """Of one GPU nothing is taken, and two ranks on the CPU are not too many."""
    seen: list[Job] = []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(Sweep, "run", lambda self, jobs: seen.extend(jobs) or OK)
    asked = ["-m", "strategy=ddp", "trainer.devices=2", "trainer.accelerator=cpu", "seed=0,1"]
    asked += [f"sweep_dir={tmp_path / 'sweep'}", f"cache_dir={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["prefopt.train", *asked])
    assert main() == OK
    assert [(job.devices, job.gpus) for job in seen] == [(2, 0)] * 2


def test_what_was_killed_has_failed(tmp_path):
    """Its folder says "interrupted", since nobody was left to say more; a search would wait for it for ever."""
    ledger, job = Ledger(tmp_path), Job("0" * 12, "dpo-000000", [])
    ledger.run_dir(job).mkdir()

    def told(status: str, folder: str | None) -> str | None:
        job.status = status
        (ledger.run_dir(job) / "summary.json").write_text(json.dumps({"status": folder} if folder else {}))
        return _summary(ledger, job).get("status")

    assert told("failed", "interrupted") == told("failed", None) == told("failed", "failed") == "failed"
    assert told("interrupted", "interrupted") == "interrupted"
    assert told("failed", "finished") == told("finished", "finished") == "finished"
    assert told("interrupted", None) is None


WAITING = """
import signal, sys, time
signal.signal(signal.SIGINT, lambda *_: (time.sleep(float(sys.argv[1])), sys.exit(7)))
print("ready", flush=True)
time.sleep(60)
"""


def waiting(seconds: float) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", WAITING, str(seconds)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_jobs_save_as_long_as_it_takes_until_a_second_signal():
    quick, slow = waiting(0.0), waiting(0.5)
    interrupt([quick, slow])
    assert (quick.returncode, slow.returncode) == (7, 7)
    first, second = waiting(60.0), waiting(60.0)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        interrupt([first, second])
    finally:
        signal.signal(signal.SIGALRM, before)
    assert (first.returncode, second.returncode) == (-signal.SIGKILL, -signal.SIGKILL)


SAVING = """
import pathlib, signal, sys, time
def save(*_):
    pathlib.Path("saved").touch()
    sys.exit(130)
signal.signal(signal.SIGINT, save)
pathlib.Path("trains").touch()
time.sleep(60)
"""


def full_disk(*_: object) -> None:
    """What a ledger's `write` meets once its job trains."""
    deadline = time.monotonic() + 30
    while not Path("trains").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_jobs_save_where_the_sweep_fails(tmp_path, monkeypatch):
    """Its disk is full, and it ends; they would be killed with it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("prefopt.sweep.processes.hear", lambda: None)
    monkeypatch.setattr("prefopt.sweep.processes.python_command", lambda *_: [sys.executable, "-c", SAVING])
    monkeypatch.setattr(Ledger, "write", full_disk)
    job = Job("0" * 12, "dpo-000000", [])
    with pytest.raises(OSError, match="No space left"):
        Sweep(Ledger(tmp_path), [], 1, []).run([job])
    assert Path("saved").exists()
    assert job.status == "interrupted"


def test_what_a_kill_left_in_a_sweeps_folder_is_removed(tmp_path):
    for file in (tmp_path / "sweep.json", tmp_path / "logs/dpo-000000.log"):
        killed_in(replacing, file)
    assert len(list(tmp_path.rglob(".*.prefopt"))) == 2
    with Ledger(tmp_path):
        assert not list(tmp_path.rglob(".*.prefopt"))


@pytest.mark.parametrize("slurm", [True, False])
def test_slurms_warning_ends_a_sweep_as_ctrl_c_does(slurm, monkeypatch):
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    if slurm:
        monkeypatch.setenv("SLURM_JOB_ID", "4242")
    try:
        hear()
        assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
        assert (signal.getsignal(signal.SIGUSR1) is signal.default_int_handler) == slurm
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_folder_that_cannot_hold_runs_refuses_no_sweep(model, tmp_path, monkeypatch):
    """Whose runs lie elsewhere."""
    (tmp_path / "runs").write_text("a file")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Sweep, "run", lambda self, jobs: OK)
    monkeypatch.setattr(sys, "argv", ["prefopt.train", *command(tmp_path, model, "seed=0,1")[3:]])
    assert main() == OK


@pytest.mark.parametrize(
    "content", ["{}", '{"jobs": [5]}', '{"jobs": [{"key": "a", "colour": 1}]}', "{", '{"schema": 2}']
)
def test_a_foreign_ledger_is_refused_and_let_go(content, tmp_path):
    (tmp_path / "sweep.json").write_text(content)
    for _ in range(2):
        with pytest.raises(RequestError, match=r"its sweep\.json .*\nname a new sweep_dir"), Ledger(tmp_path):
            pass
