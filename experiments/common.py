"""What every experiment does: a sweep, the report on it, and what of that is kept beside the question."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.systems.launch import processor
from prefopt.run import ENDED

HERE = Path(__file__).resolve().parent
Made = tuple[str, dict[str, Any], dict[str, Any]]
KEPT = ("results.csv", "results.md", "optimum.csv")


def sweep(name: str, *asked: str) -> Path:
    """Run what is missing of a sweep in `sweeps/NAME`; the words of the command line, like
    `hydra.launcher.parallel=2`, go with it. Returns the folder; ends the program where a job failed."""
    folder = Path("sweeps", name)
    _run("train", "-m", *asked, f"sweep_dir={folder}", *sys.argv[1:])
    return folder


def report(runs: Path, *asked: str) -> Path:
    """Compare the runs of a folder, into `report/NAME`. Returns that folder; ends the program where it cannot."""
    out = Path("report", runs.name)
    _run("compare", str(runs), "--out", str(out), *asked)
    return out


def _run(command: str, *words: str) -> None:
    code = subprocess.run([sys.executable, "-m", f"prefopt.{command}", *words], check=False).returncode
    if code:
        sys.exit(code)


def keep(made: Path, name: str, *figures: str) -> None:
    """The report's tables and these of its figures, in `experiments/NAME`."""
    for file in KEPT:
        if (made / file).is_file():
            shutil.copyfile(made / file, HERE / name / file)
    for figure in figures:
        shutil.copyfile(made / "figures" / f"{figure}.png", HERE / name / f"{figure}.png")


def summaries(runs: Path) -> list[Made]:
    """Of every run of a sweep that has ended its name, config and summary, by name."""
    found = []
    for file in sorted(runs.glob("*/summary.json")):
        summary = json.loads(file.read_text("utf-8"))
        if summary["status"] in ENDED:
            config = json.loads((file.parent / "config.json").read_text("utf-8"))
            found.append((file.parent.name, config, summary))
    return found


OF_A_RUN = {
    "test": ("accuracy", "accuracy_logratio"),
    "samples": ("kl", "gold_reward", "length", "distinct_2"),
    "world": ("gold_gain", "accuracy_true"),
}


def keep_runs(name: str, *sweeps: Path) -> None:
    """A line a run, in `experiments/NAME/runs.csv`: what the tables hold means of."""
    keys = [key for part in OF_A_RUN.values() for key in part]
    with (HERE / name / "runs.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["run", "loss", "seed", "data_seed", *keys])
        for run, config, summary in (found for sweep in sweeps for found in summaries(sweep)):
            measured = [(summary[part] or {}).get(key) for part, some in OF_A_RUN.items() for key in some]
            numbers = ["" if value is None else f"{value:.5g}" for value in measured]
            writer.writerow([run, summary["loss"], summary["seed"], config["data"]["seed"], *numbers])


def keep_environment(runs: Path, name: str) -> None:
    """What the runs were made with, in `experiments/NAME/environment.json`."""
    made = [summary for _, _, summary in summaries(runs)]
    found = {
        "command": " ".join([f"python -m experiments.{name}", *sys.argv[1:]]),
        "runs": len(made),
        "train_seconds": round(sum(summary["train_seconds"] for summary in made)),
        **{key: _different(summary[key] for summary in made) for key in ("git", "versions", "device")},
        "machine": {"cores": os.cpu_count(), "processor": processor()},
    }
    (HERE / name / "environment.json").write_text(json.dumps(found, indent=2) + "\n", "utf-8")


def _different(values: Iterable[Any]) -> Any:
    """The value that all have, or a list of what there is."""
    found: list[Any] = []
    for value in values:
        if value not in found:
            found.append(value)
    return found[0] if len(found) == 1 else found
