"""Who degrades how when labels are wrong: DPO, cDPO, robust DPO and IPO in worlds of other annotators, each world made
twice: other demonstrations, base, prompts, pairs and labels.

The worlds differ in their labels, so no report can hold a run of one against a run of another; what is drawn is each
method's own fall."""

from __future__ import annotations

import csv
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.common import HERE, Made, keep_environment, keep_runs, summaries, sweep

NAME = "label_noise"
ASKED = ("experiment=frontier", "sweep=label_noise", "data.world.pairs=8000", "evaluation.samples_per_prompt=16")
WORLDS = "data.seed=0,1"
MEASURES = {"gold_gain": "gold reward gained over the base", "accuracy_true": "accuracy on the true order"}

Numbers = dict[str, float]
Table = dict[tuple[str, float], list[Numbers]]  # by method and agreement: the runs, one a world


def main() -> None:
    runs = sweep(NAME, *ASKED, WORLDS)
    write(tabulated(summaries(runs)), HERE / NAME)
    keep_runs(NAME, runs)
    keep_environment(runs, NAME)


def tabulated(made: Iterable[Made]) -> Table:
    """Ends the program where a cell holds two runs in one world: one of them is of an earlier, other question."""
    table: Table = defaultdict(list)
    seen: set[tuple[str, float, int]] = set()
    for _, config, summary in made:
        data = config["data"]
        cell = (method(config), float(data["world"]["agreement"]), data["seed"])
        if cell in seen:
            sys.exit(f"sweeps/{NAME} holds two settings of {cell[0]} at {cell[1]}: move it away and ask again")
        seen.add(cell)
        measured = {key: float(summary["world"][key]) for key in MEASURES}
        table[cell[:2]].append({**measured, "kl": float(summary["samples"]["kl"])})
    return table


def method(config: dict[str, Any]) -> str:
    loss = config["loss"]
    if not loss.get("label_smoothing"):
        return str(loss["_target_"].rpartition(".")[2])
    return "robust DPO" if loss["robust"] else "cDPO"


def write(table: Table, folder: Path) -> None:
    """results.csv and noise.png."""
    with (folder / "results.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        keys = (*MEASURES, "kl")
        writer.writerow(["method", "agreement", "worlds", *keys, *(f"{key}_range" for key in keys)])
        for (name, agreement), runs in sorted(table.items()):
            columns = [[run[key] for run in runs] for key in keys]
            means = [f"{np.mean(values):.4f}" for values in columns]
            ranges = [f"{max(values) - min(values):.4f}" for values in columns]
            writer.writerow([name, agreement, len(runs), *means, *ranges])
    drawn(table).savefig(folder / "noise.png", dpi=130)


def drawn(table: Table) -> Figure:
    """Each measure against the annotators' agreement: the mean, and each world as a dot."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    for axes, (key, label) in zip(figure.subplots(1, 2), MEASURES.items(), strict=True):
        for i, name in enumerate(sorted({name for name, _ in table})):
            points = sorted((x, [run[key] for run in runs]) for (n, x), runs in table.items() if n == name)
            axes.plot([x for x, _ in points], [np.mean(y) for _, y in points], color=f"C{i}", lw=1.5, label=name)
            for x, values in points:
                axes.plot([x] * len(values), values, "o", color=f"C{i}", ms=3)
        axes.set(xlabel="how often the annotator agrees with the gold order", ylabel=label)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    return figure


if __name__ == "__main__":
    main()
