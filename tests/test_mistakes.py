"""What a person gets wrong: exit code 2 and a line or two that name the key or the place, and nothing left behind."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from prefopt import cli
from prefopt.config import command, compose_request, config_dir
from prefopt.errors import FAILED, WRONG
from prefopt.objectives import Needs, Objective
from prefopt.train import task
from tests.mistakes import edges, pipelines, places, requests, rows
from tests.mistakes.asking import Mistake, left, pairs
from tests.models.saved import saved_model

TABLE = [
    *(*requests.OPTIONS, *requests.LOSSES, *requests.DEVICES, *requests.TARGETS, *requests.FILES, *requests.HYDRA),
    *(*rows.FILES, *rows.ROWS, *rows.SPLITS),
    *(*places.MODELS, *places.RUNS),
    *(*edges.SETTINGS, *edges.PLACES, *edges.ROWS),
    *(*pipelines.NAMES, *pipelines.STAGES, *pipelines.FOLDERS),
]
REAL = [row for row in TABLE if row.values[0].real]
PROGRESS = ("data.train: ", "data.val: ", "data.prompts: ", "examples: ", "warning: ")  # said on the way there
# Seconds of CPU, start to end. What a loss says of its options it says with torch loaded, which alone takes over two.
QUICK, WITH_TORCH = 3.0, 5.0


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> dict[str, str]:
    """Folders: a sound model, and one whose tokenizer is larger than its embedding."""
    root = tmp_path_factory.mktemp("models")
    return {"model": saved_model(root / "model"), "large": saved_model(root / "large", size=25)}


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """The current folder of a command; its cache and its temporary files go to folders beside it."""
    for name in ("here", "tmp"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return tmp_path / "here"


def nothing_left(here: Path, before: dict[str, bytes | None]) -> None:
    """No file anywhere but what the cache holds whole, and its empty locks."""
    assert left(here) == before
    assert left(here.parent / "tmp") == {}
    cache = here.parent / "cache"
    whole = {path.parent for path in cache.rglob("prepared.json") if not path.parent.name.startswith(".")}
    files = [path for path in cache.rglob("*") if path.is_file() and path.parent not in whole]
    assert [path for path in files if path.suffix != ".lock" or path.stat().st_size] == []


def told(error: str, said: tuple[str, ...]) -> None:
    """In one or two lines, all of it, and without a traceback."""
    lines = [line for line in error.strip().splitlines() if not line.startswith(PROGRESS)]
    assert 1 <= len(lines) <= 2, error
    assert "Traceback" not in error
    for part in said:
        assert part in error


@pytest.mark.parametrize("wrong", TABLE)
def test_a_mistake_is_answered(wrong: Mistake, here: Path, models, monkeypatch, capsys):
    if wrong.needs == "user" and os.geteuid() == 0:
        pytest.skip("root may read and write everything")
    if wrong.needs and wrong.needs != "user":
        monkeypatch.setitem(sys.modules, wrong.needs, None)
    wrong.make(here)
    before = left(here)
    arguments = wrong.arguments.replace("{model}", models["model"]).replace("{large}", models["large"])
    monkeypatch.setattr(sys, "argv", ["prefopt.train", *arguments.split(" ")])
    assert command("train", task) == WRONG
    told(capsys.readouterr().err, wrong.said)
    nothing_left(here, before)


@pytest.mark.parametrize("wrong", REAL)
def test_the_real_command_answers_at_once(wrong: Mistake, here: Path, capsys):
    """CPU time is measured, not the clock: a busy machine makes nobody wait for the processor's own work."""
    wrong.make(here)
    before, began = left(here), resource.getrusage(resource.RUSAGE_CHILDREN)
    found = subprocess.run(
        [sys.executable, "-m", "prefopt.train", *wrong.arguments.split(" ")],
        env={**os.environ, "PYTHONPATH": str(Path(config_dir()).parent)},
        capture_output=True,
        text=True,
    )
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime
    with capsys.disabled():
        if os.environ.get("PREFOPT_TEST_TIMES"):
            print(f"{seconds:6.2f} s  {wrong.arguments}")
    assert found.returncode == WRONG
    told(found.stderr, wrong.said)
    nothing_left(here, before)
    assert seconds < (
        WITH_TORCH if wrong.arguments.startswith("loss.") and "_target_" not in wrong.arguments else QUICK
    )


def test_a_command_misspelt(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["prefopt", "trian", "loss=dpo"])
    assert cli.main() == WRONG
    told(capsys.readouterr().err, ("prefopt trian: no such command; did you mean 'train'?", "accepted: train"))


def test_a_folder_that_may_not_be_made(here: Path, monkeypatch, capsys):
    """As a user meets it; root, whom nothing is forbidden, is told so here."""
    (here.parent / "cache").mkdir()
    monkeypatch.setattr("prefopt.files.os.access", lambda path, mode: False)
    for key in ("run_dir", "cache_dir"):
        monkeypatch.setattr(sys, "argv", ["prefopt.train", f"{key}=new/folder"])
        assert command("train", task) == WRONG
        told(capsys.readouterr().err, (f"{key}=new/folder: ", "here cannot be written to; name another folder"))
    nothing_left(here, {})


def full(*arguments, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def sound(here: Path, models, monkeypatch) -> list[str]:
    """A request without a mistake."""
    pairs("a.jsonl")(here)
    arguments = ["data=jsonl", "data.train=a.jsonl", "model=hf", f"model.name={models['model']}", "run_dir=run"]
    monkeypatch.setattr(sys, "argv", ["prefopt.train", *arguments])
    return arguments


def test_a_disk_that_is_full_from_the_start(here: Path, sound, monkeypatch, capsys):
    """No mistake of the request: the run failed. Nothing of it is left."""
    before = left(here)
    monkeypatch.setattr("prefopt.files.tempfile.mkstemp", full)
    assert command("train", task) == FAILED
    told(capsys.readouterr().err, ("failed: OSError: [Errno 28] No space left on device", "debug=true shows where"))
    nothing_left(here, before)


def test_a_disk_that_fills_up(here: Path, sound, monkeypatch, capsys):
    """The reason cannot be written down either, and is said; what was written before stays whole."""

    def prepare(request):
        monkeypatch.setattr("prefopt.files.tempfile.mkstemp", full)
        full()

    monkeypatch.setattr("prefopt.jobs.train.prepare_parts", prepare)
    assert command("train", task) == FAILED
    told(capsys.readouterr().err, ("the run failed: OSError: [Errno 28]", "run cannot be written to: No space left"))
    assert json.loads((here / "run/summary.json").read_text())["status"] == "interrupted"
    assert not [path for path in (here / "run").iterdir() if path.name.startswith(".") and path.name != ".lock"]


def test_a_summary_that_was_damaged(here: Path, sound, monkeypatch, capsys):
    """The run is somebody's: nothing in it is touched."""
    monkeypatch.setattr("prefopt.jobs.train.prepare_parts", lambda request: full())
    assert command("train", task) == FAILED
    (here / "run/summary.json").write_text("{")
    before = left(here)
    capsys.readouterr()
    assert command("train", task) == WRONG
    told(capsys.readouterr().err, ("run_dir=run: its summary.json cannot be read: ", "name a new run_dir"))
    assert left(here) == before


@pytest.mark.parametrize("debug", [False, True])
def test_what_nobody_thought_of_is_one_line(here: Path, monkeypatch, capsys, debug):
    """And a traceback for who asks for it."""
    monkeypatch.setattr(sys, "argv", ["prefopt.train", *(["debug=true"] if debug else [])])
    assert command("train", lambda cfg: 1 // 0) == FAILED
    error = capsys.readouterr().err
    assert "failed: ZeroDivisionError: integer division or modulo by zero" in error
    assert ("Traceback" in error) is debug


def test_dropout_where_no_ratio_is_taken():
    """A loss on pairs holds the policy against nobody who answered."""
    compose_request(["loss=dpo", "source=rollouts", "model=tiny_lora", "model.adapter.dropout=0.1"])


@pytest.mark.parametrize("source", ["auto", "recorded", "rollouts"])
@pytest.mark.parametrize("kind", ["rankings", "steps"])
def test_a_loss_on_what_no_source_has(kind, source, here: Path, monkeypatch, capsys):
    """Not taken for one on own answers, which would be sampled first."""

    class Own(Objective):
        name = "own"
        needs = Needs(data=kind)

    monkeypatch.setattr("prefopt.config.request.build_objective", lambda cfg, soft: Own())
    monkeypatch.setattr(sys, "argv", ["prefopt.train", f"source={source}"])
    assert command("train", task) == WRONG
    accepted = "accepted: demonstrations, pairs, labels, rollouts"
    told(capsys.readouterr().err, (f"loss=own needs {kind}, which no source has; {accepted}",))
    nothing_left(here, {})


def test_a_target_is_refused_before_it_is_imported(here: Path, monkeypatch):
    """A module beside the configuration must not run because a file names it."""
    (here / "evil.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(here)
    monkeypatch.setattr(sys, "argv", ["prefopt.train", "loss._target_=evil.Loss"])
    assert command("train", task) == WRONG
    assert "evil" not in sys.modules
