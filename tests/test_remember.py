"""Reference log-probs through whole runs: a sweep computes them once, and what a run learns does not depend on them."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prefopt.config import compose_request
from prefopt.errors import OK
from prefopt.jobs.train import train
from prefopt.scoring.store import ReferenceStore
from tests.models.saved import pairs_file, saved_model

ROWS = 24


@pytest.fixture
def made(monkeypatch) -> list[int]:
    """Rows that each fill had to compute."""
    found: list[int] = []
    fill = ReferenceStore._fill

    def counted(self, *arguments):
        found.append(fill(self, *arguments))
        return found[-1]

    monkeypatch.setattr(ReferenceStore, "_fill", counted)
    return found


@pytest.fixture
def model(tmp_path) -> str:
    pairs_file(tmp_path, ROWS)
    return saved_model(tmp_path / "model")


def asked(folder: Path, name: str, model: str, *overrides: str) -> list[str]:
    fixed = ["model=hf", f"model.name={model}", "data=jsonl", f"data.train={folder / 'pairs.jsonl'}"]
    fixed += ["data.batch_size=8", "evaluation.prompts=1", "evaluation.samples_per_prompt=1", "data.prompts=text"]
    fixed += ["evaluation.max_new_tokens=2", f"cache_dir={folder / 'cache'}", f"run_dir={folder / name}"]
    return [*fixed, "trainer.accelerator=cpu", *overrides]


def run(folder: Path, name: str, model: str, *overrides: str) -> list[float]:
    """The losses of its steps."""
    assert train(compose_request(asked(folder, name, model, *overrides))) == OK
    with (folder / name / "metrics.csv").open() as stream:
        return [float(row["loss"]) for row in csv.DictReader(stream)]


def test_a_sweep_computes_it_once(model, made, tmp_path):
    """β, loss and seed: the first run asks for every completion of the data, KTO for its mismatched rows besides,
    nobody else for anything."""
    run(tmp_path, "first", model)
    assert sum(made) == 2 * ROWS
    made.clear()
    for loss in ("dpo", "ipo"):
        for beta in (0.05, 0.5):
            for seed in (1, 2):
                run(tmp_path, f"{loss}{beta}{seed}", model, f"loss={loss}", f"loss.beta={beta}", f"seed={seed}")
    assert sum(made) == 0
    run(tmp_path, "kto", model, "loss=kto")
    mismatched = sum(made)
    assert 0 < mismatched <= 2 * ROWS
    run(tmp_path, "kto-again", model, "loss=kto", "loss.beta=0.5", "seed=3")
    assert sum(made) == mismatched


@pytest.mark.parametrize("loss", ["dpo", "kto"])
def test_the_store_changes_no_loss(loss, model, tmp_path):
    more = [f"loss={loss}", "optimizer.lr=0.01", "trainer.max_epochs=2"]
    told = run(tmp_path, "with", model, *more)
    live = run(tmp_path, "without", model, *more, "model.reference_store=false")
    assert len(told) == 6
    assert told == pytest.approx(live, abs=1e-6)


def test_another_reference_or_another_text_misses(model, made, tmp_path):
    run(tmp_path, "first", model)
    made.clear()
    run(tmp_path, "other-weights", saved_model(tmp_path / "other", seed=1))
    assert sum(made) == 2 * ROWS
    made.clear()
    run(tmp_path, "other-precision", model, "trainer.precision=bf16-mixed")
    assert sum(made) == 2 * ROWS
    made.clear()
    lines = [json.loads(line) for line in (tmp_path / "pairs.jsonl").open()]
    longer = [{**line, "prompt": f"w1 {line['prompt']}"} for line in lines]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in longer))
    run(tmp_path, "other-prompts", model)
    assert sum(made) == 2 * ROWS


def test_the_references_pass_is_training_time(model, tmp_path, monkeypatch):
    """That over the training rows is, that over the held-out rows is evaluation's; another run pays for neither."""
    fill, clock, slept = ReferenceStore._fill, time.perf_counter, [0.0]

    def slow(self, *arguments):
        made = fill(self, *arguments)
        slept[0] += 1000.0 if made else 0.0
        return made

    monkeypatch.setattr(ReferenceStore, "_fill", slow)
    monkeypatch.setattr(time, "perf_counter", lambda: clock() + slept[0])

    def seconds(name: str) -> float:
        run(tmp_path, name, model)
        return json.loads((tmp_path / name / "summary.json").read_text())["train_seconds"]

    assert 1000.0 < seconds("first") < 2000.0
    assert seconds("second") < 1000.0


FILL = """
import sys
from tests.test_remember import ROWS, asked
from pathlib import Path
from prefopt.config import compose_request
from prefopt.jobs.train import train
from prefopt.scoring import store
import time
store.PART = 1
write = store.ReferenceStore._write
def slowly(self, new):
    write(self, new)
    time.sleep(0.05)
store.ReferenceStore._write = slowly
from prefopt.data.loader import ByLength
before = ByLength.__init__
def small(self, view, rows, room=24):
    before(self, view, rows, room)
ByLength.__init__ = small
folder, name, model = sys.argv[1:]
sys.exit(train(compose_request(asked(Path(folder), name, model))))
"""


@pytest.mark.long
def test_two_processes_fill_and_one_is_killed(model, made, tmp_path):
    """Both begin at once; the one that fills is killed in the middle; the other one goes on, and what lies there then
    is whole: a third run computes nothing and learns the same."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

    def start(name: str) -> subprocess.Popen:
        return subprocess.Popen([sys.executable, "-c", FILL, str(tmp_path), name, model], env=environment)

    def parts() -> int:
        return len(list((tmp_path / "cache").glob("reference/*/*.safetensors")))

    first = start("one")
    deadline = time.monotonic() + 100
    while parts() < 2 and time.monotonic() < deadline:
        time.sleep(0.005)
    second = start("two")
    while parts() < 4 and time.monotonic() < deadline:
        time.sleep(0.005)
    first.send_signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL, "the first one ended before it was killed"
    assert parts() < 2 * ROWS
    assert second.wait(timeout=100) == OK
    told = run(tmp_path, "three", model)
    assert sum(made) == 0
    assert told == pytest.approx(run(tmp_path, "live", model, "model.reference_store=false"), abs=1e-6)
