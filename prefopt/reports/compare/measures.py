"""What a run is measured by, each with its words, and what a setting's seeds say together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prefopt.reports.compare.optimum import Optimum
from prefopt.reports.compare.runs import Run
from prefopt.reports.compare.settings import Method, Setting
from prefopt.reports.compare.statistics import (
    Estimate,
    area,
    brier,
    calibration_error,
    estimate,
    win_rate_at_equal_length,
)

Numbers = dict[str, float | None]
Summary = dict[str, Estimate | None]
Values = dict[Setting, Summary]  # of all settings
TAIL = 0.1  # of the steps: what «at the end of training» is


@dataclass(frozen=True)
class Measure:
    """error: a standard error, whose mean over seeds shrinks with their number."""

    key: str
    label: str
    form: str
    meaning: str
    error: bool = False


MEASURES = (
    Measure("accuracy", "accuracy, own reward", ".3f", "test pairs that the method's own reward orders rightly"),
    Measure("accuracy_logratio", "accuracy, log-ratio", ".3f", "the same by log π − log π of the base"),
    Measure("accuracy_logp", "accuracy, log-prob", ".3f", "the same by log π"),
    Measure("gap", "train − test", "+.3f", "accuracy by own reward in the last tenth of training, less that on test"),
    Measure("auc", "AUC", ".3f", "how often any chosen completion's reward lies above any rejected one's"),
    Measure("margin", "margin", ".3f", "mean reward of chosen less rejected, in the method's own units"),
    Measure("ece", "ECE", ".3f", "expected calibration error of σ(reward difference), ten bins"),
    Measure("brier", "Brier", ".3f", "mean squared error of σ(reward difference); a coin has 0.25"),
    Measure("kl", "KL", ".3f", "nats per answer to the base, on own samples"),
    Measure("kl_stderr", "± KL", ".3f", "Monte-Carlo standard error of the KL", error=True),
    Measure("gold_reward", "gold reward", ".3f", "true reward of own samples, where it is known"),
    Measure("gold_reward_stderr", "± gold", ".3f", "its standard error over prompts", error=True),
    Measure("judged_reward", "reward model", ".3f", "what the reward model of --reward says of own samples"),
    Measure("judged_reward_stderr", "± reward model", ".3f", "its standard error over prompts", error=True),
    Measure("share_of_optimum", "share of optimum", ".0%", "of the most gold reward that any policy gains at this KL"),
    Measure("share_stderr", "± share", ".1%", "standard error of that share", error=True),
    Measure(
        "win_rate_vs_reference",
        "wins",
        ".3f",
        "answers of higher gold reward than the base's, else of higher judged one",
    ),
    Measure("win_rate_same_length", "wins, same length", ".3f", "the same, had the base's answers the same length"),
    Measure("length", "length", ".1f", "tokens of an answer"),
    Measure("distinct_2", "distinct-2", ".3f", "different bigrams over all bigrams of the answers"),
    Measure("self_bleu", "self-BLEU", ".3f", "how alike the answers to one prompt are; 1 where they are the same"),
    Measure("repetition", "repetition", ".3f", "trigrams that an answer has said before"),
    Measure("tokens_per_second", "tokens/s", ".0f", "in training"),
    Measure("peak_memory", "memory, MiB", ".0f", "peak: resident, or the GPU's allocation"),
    Measure("train_seconds", "seconds", ".1f", "optimiser steps and the reference's pass"),
)
BY_KEY = {measure.key: measure for measure in MEASURES}
IN_SLICES = ("accuracy", "accuracy_logratio", "accuracy_logp", "auc", "margin", "ece", "brier")
SAMPLED = (
    *("kl", "kl_stderr", "gold_reward", "gold_reward_stderr", "length", "distinct_2", "self_bleu"),
    "repetition",
)


def is_log_odds(run: Run) -> bool:
    """Runs of before this was written down are taken for it, and the report says so."""
    return run.summary.get("reward_is_log_odds") is not False


def run_values(run: Run, optimum: Optimum | None = None) -> Numbers:
    """Every measure of one run; None where it does not apply."""
    memory = run.summary.get("peak_memory_bytes")
    share, share_stderr = (optimum.share(run) if optimum else None) or (None, None)
    return {
        **{key: run.measured("test", key) for key in ("accuracy", "accuracy_logratio", "accuracy_logp", "margin")},
        **{key: value for key, value in row_values(run).items() if key in ("auc", "ece", "brier")},
        **{key: run.measured("samples", key) for key in SAMPLED},
        **_judged(run),
        "win_rate_vs_reference": _wins(run),
        "share_of_optimum": share,
        "share_stderr": share_stderr,
        "gap": _gap(run),
        "win_rate_same_length": _wins_at_equal_length(run),
        "tokens_per_second": run.summary.get("tokens_per_second"),
        "peak_memory": None if memory is None else memory / 2**20,
        "train_seconds": run.summary.get("train_seconds"),
    }


def base_value(run: Run, key: str) -> float | None:
    """What the base itself has, on the answers that the run sampled of it."""
    if key == "judged_reward":
        known = run.judged is not None and all(run.judged.base)
        return float(np.mean([np.mean(said) for said in run.judged.base])) if known else None
    return run.measured("samples_reference", key)


def row_values(run: Run, part: str | None = None) -> Numbers:
    """What the held-out rows themselves say, every row with the same weight. part: of one slice only."""
    found: Numbers = dict.fromkeys(IN_SLICES)
    if run.rows is None:
        return found
    here = np.ones(len(run.rows["row"]), dtype=bool) if part is None else run.rows["slice"] == part
    found["auc"] = area(run.rows["reward"][here], run.rows["chosen"][here].astype(bool))
    if run.pairs is None:
        return found
    inside = np.ones(len(run.pairs.name), dtype=bool) if part is None else run.pairs.slice == part
    reward, logratio, logp = (v[inside] for v in (run.pairs.reward, run.pairs.logratio, run.pairs.logp))
    if not inside.any():
        return found
    for key, gaps in (("accuracy", reward), ("accuracy_logratio", logratio), ("accuracy_logp", logp)):
        found[key] = float(np.heaviside(gaps, 0.5).mean()) if np.isfinite(gaps).all() else None
    if np.isfinite(reward).all():
        found["margin"] = float(reward.mean())
        if is_log_odds(run):
            found |= {"ece": calibration_error(reward), "brier": brier(reward)}
    return found


def slices(runs: Sequence[Run]) -> list[str]:
    """The names of the slices in the held-out rows; none where rows have none."""
    named = {str(name) for run in runs if run.rows is not None for name in run.rows["slice"] if name is not None}
    return sorted(named)


def summarised(values: Sequence[Numbers]) -> Summary:
    """Over seeds, by measure; None where a run lacks it."""
    found: Summary = {}
    for key in values[0]:
        known = [entry[key] for entry in values if entry[key] is not None]
        found[key] = _together(key, known) if len(known) == len(values) else None
    return found


def all_values(methods: Sequence[Method], optimum: Optimum | None = None) -> Values:
    settings = [setting for method in methods for setting in method.settings]
    return {setting: summarised([run_values(run, optimum) for run in setting.runs]) for setting in settings}


def _together(key: str, known: list[float]) -> Estimate:
    if BY_KEY[key].error:
        return Estimate(float(np.sqrt(np.square(known).sum()) / len(known)), None, None, len(known))
    return estimate(known)


def _judged(run: Run) -> Numbers:
    if run.judged is None:
        return {"judged_reward": None, "judged_reward_stderr": None}
    prompts = np.array([np.mean(said) for said in run.judged.own])
    stderr = float(prompts.std(ddof=1) / np.sqrt(len(prompts))) if len(prompts) > 1 else None
    return {"judged_reward": float(prompts.mean()), "judged_reward_stderr": stderr}


def _won(run: Run) -> np.ndarray | None:
    """Of every sampled answer whether it is worth more than the base's beside it, a tie one half."""
    if run.worth is None or not all(run.worth.base):
        return None
    own, base = (np.concatenate(of) for of in (run.worth.own, run.worth.base))
    return np.heaviside(own - base, 0.5)


def _wins(run: Run) -> float | None:
    """As the run itself says, by gold; else by what a reward model says."""
    told, won = run.measured("samples", "win_rate_vs_reference"), _won(run)
    return told if told is not None or won is None else float(won.mean())


def _wins_at_equal_length(run: Run) -> float | None:
    """By characters, as the texts are what a run keeps."""
    won = _won(run)
    if won is None:
        return None
    long, short = ([len(text) for row in run.samples for text in row[key]] for key in ("sampled", "base_sampled"))
    return win_rate_at_equal_length(won, np.subtract(long, short).astype(float))


def _gap(run: Run) -> float | None:
    curve, tested = run.curves["accuracy"], run.measured("test", "accuracy")
    last = curve[-max(1, int(TAIL * len(curve))) :]
    if tested is None or not len(last) or not np.isfinite(last).all():
        return None
    return float(last.mean() - tested)
