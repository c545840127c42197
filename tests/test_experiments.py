"""The committed experiments: what they ask for is sound, and what is said of them is what their files hold."""

from __future__ import annotations

import csv
import json
import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import methods
from experiments import common
from prefopt.errors import OK
from prefopt.sweep.processes import Sweep
from prefopt.train import main

ROOT = Path(__file__).parents[1]
FOLDERS = sorted(path.parent.name for path in (ROOT / "experiments").glob("*/__main__.py"))
JOBS = {"beta_by_loss": 42, "label_noise": 36, "real_hh": 18}


@pytest.mark.parametrize("name", FOLDERS)
def test_what_it_asks_for_is_sound(name, tmp_path, cache_dir, monkeypatch):
    asked = []

    def run(command: list[str], check: bool) -> SimpleNamespace:
        monkeypatch.setattr(sys, "argv", ["prefopt.train", *command[3:], f"cache_dir={cache_dir}"])
        assert main() == OK
        return SimpleNamespace(returncode=77)  # which ends the experiment: nothing has run

    rows = tmp_path / "hh-harmless"
    rows.mkdir()
    for split in ("train", "test"):
        (rows / f"{split}.jsonl.gz").touch()
    monkeypatch.setenv("PREFOPT_TEST_DATA", str(tmp_path))
    monkeypatch.setattr(Sweep, "run", lambda self, jobs: asked.extend(jobs) or OK)
    monkeypatch.setattr(common.subprocess, "run", run)
    monkeypatch.setattr(sys, "argv", ["experiment"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"experiments.{name}", run_name="__main__")
    assert ended.value.code == 77
    assert len(asked) == JOBS[name]


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_is_complete(name):
    folder = ROOT / "experiments" / name
    text = (folder / "README.md").read_text()
    made = json.loads((folder / "environment.json").read_text())
    assert f"python -m experiments.{name}" in text
    assert made["runs"] == JOBS[name]
    assert {"torch", "prefopt", "lightning"} <= set(made["versions"])
    for shown in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (folder / shown).exists(), shown
    assert list(csv.DictReader((folder / "results.csv").open()))
    assert f"]({name}/" in (folder.parent / "README.md").read_text()


def test_the_readmes_table_is_of_the_committed_results():
    readme = (ROOT / "README.md").read_text()
    assert methods.written(readme) == readme
    assert methods.table() in readme
