"""The judges and the policies of the experiment, as their run folders tell of them."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from prefopt.rollouts.guards import smoothed

USUAL_SIZE, USUAL_PAIRS = 128, 2000
SHOWN = ("annotation", "watched", "sampled_kl")


@dataclass(frozen=True)
class Judge:
    """A reward model. size: of its hidden layer. accuracy: on the true order of held-out pairs."""

    path: str
    seed: int
    size: int
    pairs: int
    accuracy: float

    @classmethod
    def of(cls, folder: Path, config: dict[str, Any], summary: dict[str, Any]) -> Judge:
        size, pairs = config["model"]["tiny"]["hidden_size"], config["data"]["world"]["pairs"]
        return cls(str(folder.absolute()), summary["seed"], size, pairs, summary["world"]["accuracy_true"])

    @property
    def usual(self) -> bool:
        return (self.size, self.pairs) == (USUAL_SIZE, USUAL_PAIRS)


@dataclass(frozen=True)
class Run:
    """A policy that was optimised for a judge, or for several at once."""

    folder: Path
    config: dict[str, Any]
    summary: dict[str, Any]
    judges: Sequence[Judge]

    @property
    def judge(self) -> Judge:
        """Whose word it was optimised for; of several the first."""
        reward = self.config["reward"]
        name = reward["name"] or reward["names"][0]
        return next(judge for judge in self.judges if judge.path == name)

    @property
    def remedy(self) -> str:
        if self.config["reward"]["kind"] == "ensemble":
            return "worst of three"
        if self.config["loss"]["beta"]:
            return f"KL, β = {self.config['loss']['beta']:g}"
        return "guard" if self.config["guards"]["overoptimised"]["do"] == "rollback" else "none"

    @cached_property
    def curves(self) -> dict[str, np.ndarray]:
        """By collection: what is optimised, what watches, and nats per answer from the base; medians of five."""
        with (self.folder / "metrics.csv").open(newline="", encoding="utf-8") as stream:
            rows = [{name: float(row[name]) for name in SHOWN} for row in csv.DictReader(stream)]
        return {**smoothed(rows, 5), "start": np.array([rows[0][name] for name in SHOWN])}

    @property
    def gains(self) -> np.ndarray:
        """Of the true reward over that of the first collection, which is the base's."""
        return self.curves["watched"] - self.curves["start"][SHOWN.index("watched")]

    @cached_property
    def base_answers(self) -> tuple[np.ndarray, np.ndarray]:
        """[prompts, answers] what the judge says of the base's answers, and their true reward."""
        with (self.folder / "samples.jsonl").open(encoding="utf-8") as stream:
            rows = [json.loads(line) for line in stream]
        return np.array([row["base_annotation"] for row in rows]), np.array([row["base_gold"] for row in rows])
