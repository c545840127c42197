"""The numbers: how far each policy rose and fell, best-of-n beside it, and the curves that are fitted to both."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.overoptimisation.runs import SHOWN, Run
from prefopt.metrics.answers import best_of

LEAST = 0.1  # of a gain that is one
NS = (1, 2, 4, 8, 16, 32, 64, 128)


def tabulate(runs: Sequence[Run], folder: Path) -> None:
    rows = sorted((row(run) for run in runs), key=lambda row: [str(value) for value in row.values()])
    write(folder / "results.csv", rows)
    write(folder / "fits.csv", [fit_row for run in many(runs) for fit_row in fitted(run)])
    write(folder / "best_of_n.csv", [one for run in many(runs) for one in best_of_n(run)])
    write(folder / "curves.csv", [one for run in runs for one in curve_rows(run)])


def many(runs: Iterable[Run]) -> list[Run]:
    """One policy for each of the judges, the least data first."""
    found = [run for run in runs if run.summary["loss"] == "ppo" and run.remedy == "none" and not run.summary["seed"]]
    return sorted(found, key=lambda run: (run.judge.size, run.judge.pairs))


def named(run: Run) -> dict[str, Any]:
    judge = run.judge
    of_judge = {"judge_size": judge.size, "judge_pairs": judge.pairs, "judge_accuracy": f"{judge.accuracy:.3f}"}
    return {"loss": run.summary["loss"], "remedy": run.remedy, **of_judge, "seed": run.summary["seed"]}


def row(run: Run) -> dict[str, Any]:
    """peak: the largest gain of the true reward. lost: its share that was gone when training ended, blank where nothing
    was gained. kept: its share at the step that the guard went back to, in the collections there and by what the policy
    has then said to unseen prompts. proxy: what the judge said at the peak, and at last. gold: of the final policy on
    unseen prompts, as base_gold of the base."""
    gains, said, samples = run.gains, run.curves["annotation"], run.summary["samples"]
    base = run.summary["samples_reference"]["gold_reward"]
    peak = int(gains.argmax())
    back_to = next((alarm["back_to"] for alarm in run.summary["health"] or [] if alarm["action"] == "rollback"), None)
    return {
        **named(run),
        "steps": run.summary["steps"],
        "peak": f"{gains[peak]:.3f}",
        "peak_step": peak + 4,
        "lost": f"{1 - gains[-1] / gains[peak]:.3f}" if gains[peak] > LEAST else "",
        "back_to": "" if back_to is None else back_to,
        "kept": "" if back_to is None else f"{gains[back_to - 4] / gains[peak]:.3f}",
        "proxy_at_peak": f"{said[peak]:.3f}",
        "proxy_at_end": f"{said[-1]:.3f}",
        "kept_unseen": "" if back_to is None else f"{(samples['gold_reward'] - base) / gains[peak]:.3f}",
        "base_gold": f"{base:.3f}",
        "gold": f"{samples['gold_reward']:.3f}",
        "gold_stderr": f"{samples['gold_reward_stderr']:.3f}",
        "kl": f"{samples['kl']:.2f}",
    }


def curve_rows(run: Run) -> Iterable[dict[str, Any]]:
    for i in range(len(run.gains)):
        yield {**named(run), "step": i + 4, **{name: f"{run.curves[name][i]:.4f}" for name in SHOWN}}


# ---------------------------------------------------------------- best of n, and fits


def best_of_n(run: Run) -> list[dict[str, Any]]:
    """kl: log n - (n - 1) / n nats, an upper bound that is near where answers are many (Beirami et al. 2024,
    https://arxiv.org/abs/2401.01879). gold: the gain over n = 1; judged: the same in standard deviations of the
    judge's words over the base's answers."""
    judged, gold = run.base_answers
    found = []
    for n in NS:
        worth = {
            "gold": best_of(n, judged, gold) - gold.mean(),
            "judged": (best_of(n, judged, judged) - judged.mean()) / judged.std(),
        }
        found.append({**named(run), "n": n, "kl": np.log(n) - (n - 1) / n, **worth})
    return found


def fitted(run: Run) -> Iterable[dict[str, Any]]:
    """The curves of Gao et al. 2022 (https://arxiv.org/abs/2210.10760) in d = √KL: gain = d (α - β d) of best-of-n and
    d (α - β log d) of a policy; the latter up to where half of the best gain is lost, since no policy falls below the
    floor of the true reward, and not where it never gained a tenth."""
    drawn = best_of_n(run)[1:]
    d, gain = np.sqrt([one["kl"] for one in drawn]), np.array([one["gold"] for one in drawn])
    yield {**named(run), "by": "best of n", **fit(gain, d, -d * d)}
    d, gain = until_half_is_lost(run)
    if gain.max(initial=0.0) < LEAST:
        return
    yield {**named(run), "by": "policy", **fit(gain, d, -d * np.log(d))}


def until_half_is_lost(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """√KL and gain, from 0.1 nats on."""
    gains, kl = run.gains, run.curves["sampled_kl"]
    peak = int(gains.argmax())
    fallen = np.flatnonzero(gains[peak:] < gains[peak] / 2)
    end = peak + int(fallen[0]) if len(fallen) else len(gains)
    far = kl[:end] > 0.1
    return np.sqrt(kl[:end][far]), gains[:end][far]


def fit(gain: np.ndarray, *features: np.ndarray) -> dict[str, Any]:
    """Least squares; r2: the share of the gains' variance that it explains."""
    table = np.stack(features, 1)
    found, *_ = np.linalg.lstsq(table, gain, rcond=None)
    left = gain - table @ found
    r2 = 1 - float(left @ left) / float(((gain - gain.mean()) ** 2).sum())
    return {"alpha": found[0], "beta": found[1], "r2": r2}


def write(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with file.open("w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        table.writeheader()
        for one in rows:
            table.writerow({name: f"{v:.4f}" if isinstance(v, float) else v for name, v in one.items()})
