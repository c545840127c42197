"""Run folders, read: which there are, which have ended, and what their files hold. No torch, no model."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import csv as arrow_csv
from pyarrow import json as arrow_json

from prefopt.errors import RequestError, first_line, nearest
from prefopt.files import at_home, check_can_be_named
from prefopt.run import ENDED, config_hash, without_places
from prefopt.run.held import LARGEST, held_config, held_summary

NUMBERS = ("reward", "logp", "ref_logp")
ROWS = pa.schema(
    [
        *(("row", pa.string()), ("chosen", pa.bool_()), ("slice", pa.string()), ("prompt", pa.float64())),
        *((name, pa.float64()) for name in NUMBERS),
    ]
)
AT_ONCE = (("evaluation", "batch_size"), ("data", "micro_batch_size"))  # how many rows go through a model at once
CURVES = ("step", "loss", "accuracy", "chosen_logp_delta", "rejected_logp_delta", "grad_norm")

UNREADABLE = (pa.ArrowException, OSError, ValueError, KeyError)  # text that is not UTF-8, a column that stands twice

Columns = dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Pairs:
    """Held-out pairs, sorted by name: what the chosen completion has over the rejected one. All [P]. prompt: the number
    of each one's; None where the run does not say."""

    name: np.ndarray
    slice: np.ndarray
    prompt: np.ndarray | None
    reward: np.ndarray
    logratio: np.ndarray
    logp: np.ndarray


@dataclass(frozen=True, eq=False)
class Worth:
    """What sampled answers are worth by prompt, of the policy and of its base; empty prompts where there are none."""

    own: list[list[float]]
    base: list[list[float]]


@dataclass(frozen=True, eq=False)
class Run:
    """path: the folder. rows_file: the held-out rows that are compared, val.jsonl or test.jsonl. judged: what a reward
    model says of the answers, where one was asked."""

    path: Path
    config: dict[str, Any]
    summary: dict[str, Any]
    rows_file: str = "val.jsonl"
    judged: Worth | None = None

    @property
    def method(self) -> str:
        """A loss on answers of the policy's own that could learn from recorded ones is another method."""
        live = (self.config.get("source") or {}).get("kind") == "rollouts"
        return f"online {self.summary.get('loss')}" if live else str(self.summary.get("loss"))

    @property
    def seed(self) -> Any:
        return self.summary.get("seed")

    def measured(self, section: str, name: str) -> float | None:
        return (self.summary.get(section) or {}).get(name)

    @cached_property
    def rows(self) -> Columns | None:
        """The held-out completions by column; None where the run has written none."""
        file = self.path / self.rows_file
        if not file.is_file() or not file.stat().st_size:
            return None
        options = arrow_json.ParseOptions(explicit_schema=ROWS, unexpected_field_behavior="ignore")
        try:
            table = arrow_json.read_json(file, parse_options=options)
            return {name: table.column(name).to_numpy() for name in ROWS.names}
        except UNREADABLE as error:
            raise RequestError(f"{self.path}: its {self.rows_file} cannot be read: {first_line(error)}") from error

    @cached_property
    def pairs(self) -> Pairs | None:
        """None where the rows are no pairs."""
        return None if self.rows is None else _pairs(self.rows)

    @cached_property
    def curves(self) -> Columns:
        """What training logged, [steps] each; nan where a column is missing."""
        file = self.path / "metrics.csv"
        if not file.is_file() or not file.stat().st_size:
            return {name: np.empty(0) for name in CURVES}
        types = arrow_csv.ConvertOptions(
            column_types=dict.fromkeys(CURVES, pa.float64()), include_columns=CURVES, include_missing_columns=True
        )
        try:
            table = arrow_csv.read_csv(file, convert_options=types)
            return {name: table.column(name).to_numpy() for name in CURVES}
        except UNREADABLE as error:
            raise RequestError(f"{self.path}: its metrics.csv cannot be read: {first_line(error)}") from error

    @cached_property
    def samples(self) -> list[dict[str, Any]]:
        """The fixed prompts with their answers; empty where the run gave none."""
        file = self.path / "samples.jsonl"
        if not file.is_file():
            return []
        try:
            lines = file.read_text("utf-8").split("\n")  # splitlines splits texts too
            found = [json.loads(line) for line in lines if line.strip()]
        except (OSError, ValueError, RecursionError) as error:
            raise RequestError(f"{self.path}: its samples.jsonl cannot be read: {first_line(error)}") from error
        if wrong := next((number for number, row in enumerate(found, 1) if not _is_sample(row)), None):
            raise RequestError(f"{self.path}: its samples.jsonl: row {wrong} holds no answers as a run writes them")
        return found

    @cached_property
    def gold(self) -> Worth | None:
        """The true rewards of the sampled answers; None where they are not known."""
        own, base = ([row.get(key) or [] for row in self.samples] for key in ("gold", "base_gold"))
        return Worth(own, base) if own and all(own) else None

    @property
    def worth(self) -> Worth | None:
        """What answers are held to be worth: the true reward where it is known, else the reward model's."""
        return self.gold or self.judged


@dataclass(frozen=True)
class Found:
    """The runs that can be compared, a sentence for each that was left out, and one on who judged the answers."""

    runs: list[Run]
    left_out: list[str] = field(default_factory=list)
    judge: str = ""


def read_runs(folders: Sequence[Path]) -> Found:
    """The finished runs in these folders and below, by path. RequestError where there is none."""
    found = Found([])
    held: dict[Any, Path] = {}
    for path in dict.fromkeys(run.resolve() for folder in folders for run in _below(folder)):
        run, why = _read(path)
        request = _request(run) if run else None
        if request in held and request is not None:
            why = f"the same request as {held[request]}"
        if why:
            found.left_out.append(f"{path}: {why}")
        elif run:
            held[request] = path
            found.runs.append(run)
    if not found.runs:
        raise RequestError(f"no finished run to compare\n{'; '.join(found.left_out)}")
    return Found(_with_rows(found.runs), found.left_out)


def _request(run: Run) -> str | None:
    """What it was asked, but for what changes no result: one seed is one run, however many rows went at once."""
    config = without_places(run.config)
    for section, key in AT_ONCE:
        if isinstance(config.get(section), dict):
            config[section] = {name: value for name, value in config[section].items() if name != key}
    return config_hash(config) if config else run.summary.get("config_hash")


def _with_rows(runs: list[Run]) -> list[Run]:
    """Test rows where every run has them: those of val have chosen the settings already."""
    tested = all((run.path / "test.jsonl").is_file() for run in runs)
    return [replace(run, rows_file="test.jsonl" if tested else "val.jsonl") for run in runs]


def _read(path: Path) -> tuple[Run | None, str]:
    """A run, or why it is left out."""
    if not (path / "summary.json").is_file():
        return None, "interrupted before its first summary"
    summary = held_summary(path / "summary.json", str(path))
    if summary.get("status") not in ENDED:
        return None, f"{summary.get('status')}, not finished"
    config = held_config(path / "config.json", str(path)) if (path / "config.json").is_file() else {}
    return Run(path, config, summary), ""


def _below(folder: Path) -> Iterable[Path]:
    """The run folders in a folder, itself included."""
    folder = at_home(folder, "DIR")
    check_can_be_named(folder, str(folder))
    if not folder.is_dir():
        beside = [entry.name for entry in folder.parent.iterdir()] if folder.parent.is_dir() else []
        raise RequestError(f"{folder}: no such folder{nearest(folder.name, beside)}")
    found = []
    for place, inside, files in os.walk(folder):
        inside.sort()
        if "summary.json" in files or {"config.json", ".lock"} <= set(files):
            found.append(Path(place))
            inside.clear()  # checkpoints and models
    if not found:
        raise RequestError(f"{folder}: no run there: no summary.json in it or below")
    return found


def _is_sample(row: Any) -> bool:
    """Whether a row of samples.jsonl holds lists of answers, and as many numbers as answers where it says their
    worth."""
    if not isinstance(row, dict):
        return False
    own, base = (row.get(key) or [] for key in ("sampled", "base_sampled"))
    if not all(isinstance(side, list) and all(isinstance(text, str) for text in side) for side in (own, base)):
        return False
    if base and len(base) != len(own):
        return False
    return all(_are_worth(row.get(key), side) for key, side in (("gold", own), ("base_gold", base)))


def _are_worth(values: Any, answers: list[str]) -> bool:
    if not values:
        return True
    numbers = isinstance(values, list) and all(isinstance(v, (int, float)) and abs(v) <= LARGEST for v in values)
    return numbers and len(values) == len(answers)


def _pairs(rows: Columns) -> Pairs | None:
    example = np.array([str(name).rpartition(".")[0] for name in rows["row"]])
    good = rows["chosen"].astype(bool)
    chosen, rejected = (np.flatnonzero(side)[np.argsort(example[side], kind="stable")] for side in (good, ~good))
    names = example[chosen]
    if not len(names) or len(np.unique(names)) < len(names) or not np.array_equal(names, example[rejected]):
        return None
    logratio = rows["logp"] - rows["ref_logp"]
    slices = np.array(["" if name is None else str(name) for name in rows["slice"][chosen]])
    gaps = (values[chosen] - values[rejected] for values in (rows["reward"], logratio, rows["logp"]))
    prompts = rows["prompt"][chosen]
    return Pairs(names, slices, prompts if np.isfinite(prompts).all() else None, *gaps)
