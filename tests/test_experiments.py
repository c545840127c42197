"""The committed experiments: what they ask for is sound, and what is said of them is what their files hold."""

from __future__ import annotations

import csv
import gzip
import importlib
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import methods
from experiments import common
from experiments.label_noise.__main__ import method, tabulated, write
from prefopt.errors import OK
from prefopt.sweep.processes import Sweep
from prefopt.train import main

ROOT = Path(__file__).parents[1]
FOLDERS = sorted(path.parent.name for path in (ROOT / "experiments").glob("*/__main__.py"))
JOBS = {"beta_by_loss": 42, "label_noise": 36, "on_policy": 21, "overoptimisation": 31, "real_hh": 18, "sums": 3}
FIRST = {**JOBS, "overoptimisation": 10, "real_hh": 1, "sums": 1}  # of the first sweep, which is the judges'


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long) if FIRST[name] > 15 else name for name in FOLDERS]
)
def test_what_it_asks_for_is_sound(name, tmp_path, cache_dir, monkeypatch):
    asked = []

    def run(command: list[str], check: bool) -> SimpleNamespace:
        monkeypatch.setattr(sys, "argv", ["prefopt.train", *command[3:], f"cache_dir={cache_dir}"])
        assert main() == OK
        return SimpleNamespace(returncode=77)  # which ends the experiment: nothing has run

    rows = tmp_path / "hh-harmless"
    rows.mkdir()
    for split in ("train", "test"):
        with gzip.open(rows / f"{split}.jsonl.gz", "wt") as stream:
            stream.writelines(f'{{"prompt": "{split} {i}", "chosen": "b", "rejected": "c"}}\n' for i in range(9))
    monkeypatch.setenv("PREFOPT_TEST_DATA", str(tmp_path))
    monkeypatch.setattr(Sweep, "run", lambda self, jobs: asked.extend(jobs) or OK)
    monkeypatch.setattr(common.subprocess, "run", run)
    monkeypatch.setattr(sys, "argv", ["experiment"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"experiments.{name}.__main__").main()
    assert ended.value.code == 77
    assert len(asked) == FIRST[name]


def run_of(loss: dict[str, Any], agreement: float, world: int, gain: float) -> common.Made:
    config = {"loss": {"_target_": "prefopt.objectives.dpo.DPO", **loss}}
    config["data"] = {"seed": world, "world": {"agreement": agreement}}
    return "run", config, {"world": {"gold_gain": gain, "accuracy_true": 0.75}, "samples": {"kl": 2.0}}


def test_label_noise_is_counted_by_method_and_agreement(tmp_path):
    smooth = {"label_smoothing": 0.1, "robust": False}
    made = [run_of({"label_smoothing": 0.0}, 0.9, world, gain) for world, gain in ((0, 1.0), (1, 2.0))]
    made += [run_of(smooth, 0.9, 0, 3.0), run_of({**smooth, "robust": True}, 0.9, 0, 4.0)]
    write(tabulated(made), tmp_path)
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    found = [(row["method"], row["worlds"], float(row["gold_gain"]), float(row["gold_gain_range"])) for row in rows]
    assert found == [("DPO", "2", 1.5, 1.0), ("cDPO", "1", 3.0, 0.0), ("robust DPO", "1", 4.0, 0.0)]
    assert (tmp_path / "noise.png").stat().st_size > 10_000
    assert method({"loss": {"_target_": "prefopt.objectives.ipo.IPO"}}) == "IPO"
    with pytest.raises(SystemExit, match=r"two settings of DPO at 0\.9"):
        tabulated([made[0], made[0]])


def test_an_environment_names_what_differs(tmp_path, monkeypatch):
    common_part = {"status": "finished", "train_seconds": 1.4, "versions": {"torch": "2"}, "device": "cpu"}
    common_part |= {"loss": "dpo", "seed": 0, "test": {"accuracy": 0.5}, "samples": None, "world": None}
    for i in (1, 2):
        (tmp_path / f"runs/{i}").mkdir(parents=True)
        (tmp_path / f"runs/{i}/summary.json").write_text(json.dumps({**common_part, "git": f"g{i}"}))
        (tmp_path / f"runs/{i}/config.json").write_text('{"data": {"seed": 3}}')
    (tmp_path / "name").mkdir()
    monkeypatch.setattr(common, "HERE", tmp_path)
    monkeypatch.setattr(sys, "argv", ["experiment", "trainer.max_steps=2"])
    common.keep_environment(tmp_path / "runs", "name")
    common.keep_runs("name", tmp_path / "runs")
    assert (tmp_path / "name/runs.csv").read_text().splitlines()[1:] == [f"{i},dpo,0,3,0.5,,,,,,," for i in (1, 2)]
    found = json.loads((tmp_path / "name/environment.json").read_text())
    assert found["command"] == "python -m experiments.name trainer.max_steps=2"
    assert (found["runs"], found["train_seconds"], found["git"], found["device"]) == (2, 3, ["g1", "g2"], "cpu")


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
    assert len(list(csv.DictReader((folder / "runs.csv").open()))) >= JOBS[name]
    assert f"]({name}/" in (folder.parent / "README.md").read_text()


def test_the_readmes_table_is_of_the_committed_results():
    readme = (ROOT / "README.md").read_text()
    assert methods.written(readme) == readme
    assert methods.table() in readme
