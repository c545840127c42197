"""What is optimised and what watches, against the distance from the base."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.overoptimisation.runs import Run
from experiments.overoptimisation.tables import best_of_n, fitted, many, until_half_is_lost

DISTANCE = "√KL to the base, √nats"


def draw(runs: Sequence[Run], folder: Path) -> None:
    seeds(runs).savefig(folder / "seeds.png", dpi=110)
    judges(many(runs)).savefig(folder / "judges.png", dpi=110)


def seeds(runs: Sequence[Run]) -> Figure:
    """Every seed on its way, by step, and where its guard went back to."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for run in runs:
        if run.summary["loss"] != "ppo" or not run.judge.usual or run.remedy not in ("none", "guard"):
            continue
        color, steps = f"C{run.summary['seed']}", np.arange(len(run.gains)) + 4
        if run.remedy == "none":
            left.plot(steps, run.curves["annotation"], color=color, lw=1.2, label=f"seed {run.summary['seed']}")
            right.plot(steps, run.gains, color=color, lw=1.2)
        for alarm in run.summary["health"] or []:
            if alarm["action"] == "rollback" and alarm["back_to"] is not None:
                right.plot(alarm["back_to"], run.gains[alarm["back_to"] - 4], "o", color=color, mec="black", zorder=3)
    left.set(xlabel="optimiser step", title="what is optimised: the reward model's word")
    right.set(xlabel="optimiser step", title="what watches: gain of the true reward\n(dots: the guard goes back here)")
    left.legend(frameon=False, fontsize=8)
    _plain(left, right)
    return figure


def judges(runs: Sequence[Run]) -> Figure:
    """A row a size of the judge: best of n, and the policy; a colour an amount of pairs."""
    sizes = sorted({run.judge.size for run in runs})
    figure = Figure(figsize=(9, 3.2 * len(sizes)), layout="constrained")
    grid = figure.subplots(len(sizes), 2, squeeze=False)
    for run in runs:
        own = sorted({one.judge.pairs for one in runs}).index(run.judge.pairs)
        _draw_judge(grid[sizes.index(run.judge.size)], run, f"C{own}")
    for axes, size in zip(grid, sizes, strict=True):
        axes[0].set(title=f"best of n, judge of width {size}", ylabel="gain of the true reward")
        axes[1].set(title=f"PPO without a KL term, judge of width {size}")
        for one in axes:
            one.set(xlabel=DISTANCE)
        axes[0].legend(frameon=False, fontsize=8, title="pairs")
    _plain(*grid.flat)
    return figure


def _draw_judge(axes: Sequence[Axes], run: Run, color: str) -> None:
    """Points as measured, lines as fitted."""
    drawn = best_of_n(run)
    d, gains = np.sqrt([one["kl"] for one in drawn]), [one["gold"] for one in drawn]
    curves = {one["by"]: one for one in fitted(run)}
    at = np.linspace(0.05, d[-1], 100)
    a, b = (curves["best of n"][name] for name in ("alpha", "beta"))
    axes[0].plot(d, gains, "o", color=color, ms=4, label=f"{run.judge.pairs}")
    axes[0].plot(at, at * (a - b * at), color=color, lw=1.2)
    axes[1].plot(np.sqrt(np.maximum(run.curves["sampled_kl"], 0)), run.gains, ".", color=color, ms=3)
    if "policy" not in curves:
        return
    near, _ = until_half_is_lost(run)
    at = np.linspace(near.min(), near.max(), 100)
    a, b = (curves["policy"][name] for name in ("alpha", "beta"))
    axes[1].plot(at, at * (a - b * np.log(at)), color=color, lw=1.2)


def _plain(*many: Axes) -> None:
    for axes in many:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
