"""Differences between methods, paired by held-out row or prompt and by seed, and what may be said of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from prefopt.reports.compare.settings import NAMES, Method, Setting
from prefopt.reports.compare.statistics import holm, judged, over_seeds, resampled_means

ALPHA = 0.05
WORTH = {"gold_reward": "gold reward", "judged_reward": "what the reward model says"}
MEASURED = {**NAMES, **WORTH}


@dataclass(frozen=True, eq=False)
class Difference:
    """first less second. low, high: 95 %, uncorrected. corrected: Holm's p over the page."""

    first: Setting
    second: Setting
    roles: str
    measure: str
    mean: float
    low: float
    high: float
    p: float
    seeds: int
    corrected: float = 1.0

    @property
    def shown(self) -> bool:
        return self.corrected < ALPHA

    @property
    def sentence(self) -> str:
        what = MEASURED[self.measure]
        if not self.shown:
            return f"no difference shown between {self.first.name} and {self.second.name} in {what}"
        better, worse = (self.first, self.second) if self.mean > 0 else (self.second, self.first)
        return f"{better.name} is above {worse.name} in {what} by {abs(self.mean):.3f}"

    @property
    def line(self) -> str:
        seeds = "1 seed" if self.seeds == 1 else f"{self.seeds} seeds" if self.seeds else "no seed in common"
        numbers = f"{self.mean:+.3f}, {self.low:+.3f} to {self.high:+.3f}, corrected p {self.corrected:.3g}"
        return f"{self.sentence} ({self.roles}: {numbers}, {seeds})"


@dataclass(frozen=True, eq=False)
class _Resampled:
    """A measure's seeds, each over the held-out rows as they are and as their prompts were drawn. units: prompts."""

    means: np.ndarray  # [seeds]
    draws: np.ndarray  # [seeds, draws]
    units: int


def differences(methods: Sequence[Method]) -> list[Difference]:
    """Every method with every other one: default settings, best settings; corrected for their number."""
    asked = _comparisons(methods)
    settings = list(dict.fromkeys(setting for first, second in asked for setting in (first, second)))
    resampled = {measure: _resample(settings, measure) for measure in MEASURED}
    rng = np.random.default_rng(1)
    found = []
    for (first, second), roles in asked.items():
        # The same measure for every policy, where both have one; a reward model has its own reward only.
        accuracies = [m for m in ("accuracy_logratio", "accuracy") if {first, second} <= resampled[m].keys()]
        for measure in (*accuracies[:1], *WORTH):
            table = resampled[measure]
            if {first, second} <= table.keys():
                found.append(_difference(first, second, roles, measure, table, rng))
    return [replace(d, corrected=p) for d, p in zip(found, holm([d.p for d in found]), strict=True)]


def _comparisons(methods: Sequence[Method]) -> dict[tuple[Setting, Setting], str]:
    """Pairs of settings with the roles they are compared in: a pair that is both is one comparison."""
    found: dict[tuple[Setting, Setting], str] = {}
    for one, other in combinations(methods, 2):
        if one.default is not None and other.default is not None:
            found[one.default, other.default] = "default"
        pair = (one.best, other.best)
        found[pair] = f"{found[pair]}, best" if pair in found else "best"
    return found


def _resample(settings: Sequence[Setting], measure: str) -> dict[Setting, _Resampled]:
    """The same draws of prompts for all settings that have the measure: what is said under one prompt is no news of
    others."""
    values = {setting: found for setting in settings if (found := unit_values(setting, measure)) is not None}
    if not values:
        return {}
    lines = np.concatenate(list(values.values()))
    prompts = _prompts(list(values)) if measure not in WORTH else None
    units = np.arange(lines.shape[1]) if prompts is None else prompts
    sums = np.array([np.bincount(units, line) for line in lines])
    draws = resampled_means(sums, np.random.default_rng(0), sizes=np.bincount(units))
    ends = np.cumsum([len(found) for found in values.values()])[:-1]
    parts = zip(values, np.split(lines.mean(1), ends), np.split(draws, ends), strict=True)
    return {setting: _Resampled(means, drawn, sums.shape[1]) for setting, means, drawn in parts}


def _prompts(settings: Sequence[Setting]) -> np.ndarray | None:
    """[pairs] the number of each held-out pair's prompt, counted from 0; None where no run has written it. All runs
    stand on the same rows."""
    known = (run.pairs.prompt for setting in settings for run in setting.runs if run.pairs is not None)
    found = next((prompt for prompt in known if prompt is not None), None)
    return None if found is None else np.unique(found, return_inverse=True)[1]


def unit_values(setting: Setting, measure: str) -> np.ndarray | None:
    """[seeds, pairs or prompts]: of every held-out pair whether it is ordered rightly, a tie one half; of every prompt
    its answers' mean worth. None where the measure does not apply."""
    if measure in WORTH:
        found = [run.gold if measure == "gold_reward" else run.judged for run in setting.runs]
        return np.array([[np.mean(of) for of in worth.own] for worth in found]) if all(found) else None
    if any(run.pairs is None for run in setting.runs):
        return None
    name = "logratio" if measure == "accuracy_logratio" else "reward"
    gaps = np.array([getattr(run.pairs, name) for run in setting.runs])
    return np.heaviside(gaps, 0.5) if np.isfinite(gaps).all() else None


def _difference(
    first: Setting,
    second: Setting,
    roles: str,
    measure: str,
    table: dict[Setting, _Resampled],
    rng: np.random.Generator,
) -> Difference:
    """Of the seeds that both have; without any, their seeds are independent."""
    a, b = table[first], table[second]
    common = [seed for seed in first.seeds if seed in second.seeds]
    if common:
        here, there = ([s.seeds.index(seed) for seed in common] for s in (first, second))
        groups = [a.means[here] - b.means[there]]
        mean = float(groups[0].mean())
        draws = over_seeds(a.draws[here] - b.draws[there], rng)
    else:
        groups = [a.means, b.means]
        mean = float(a.means.mean() - b.means.mean())
        draws = over_seeds(a.draws, rng) - over_seeds(b.draws, rng)
    low, high, p = judged(mean, draws, groups, a.units)
    return Difference(first, second, roles, measure, mean, low, high, p, len(common))


def win_rates(methods: Sequence[Method]) -> list[list[float | None]]:
    """[methods, methods]: how often an answer of the row's best setting is worth more than one of the column's
    to the same prompt, a tie one half; empty where nothing tells what answers are worth."""
    runs = [run for method in methods for run in method.best.runs]
    true = all(run.gold for run in runs) or not any(run.judged for run in runs)
    answers = [_answers(method.best, true) for method in methods]
    if len(methods) < 2 or all(entry is None for entry in answers):
        return []
    return [[None if a is None or b is None or a is b else _wins(a, b) for b in answers] for a in answers]


def _answers(setting: Setting, true: bool) -> list[list[list[float]]] | None:
    """What they are worth by seed and prompt: truly, or to the reward model."""
    found = [run.gold if true else run.judged for run in setting.runs]
    return [worth.own for worth in found] if all(found) else None


def _wins(ours: list[list[list[float]]], theirs: list[list[list[float]]]) -> float:
    """Any of our seeds against any of theirs, any answer against any other."""
    prompts = zip(*(zip(*side, strict=True) for side in (ours, theirs)), strict=True)
    return float(np.mean([_above(np.concatenate(a), np.concatenate(b)) for a, b in prompts]))


def _above(ours: np.ndarray, theirs: np.ndarray) -> float:
    held = np.sort(theirs)
    below = np.searchsorted(held, ours, "left") + np.searchsorted(held, ours, "right")
    return float(below.mean() / (2 * len(held)))
