"""Who degrades how when labels are wrong: DPO, cDPO, robust DPO and IPO in worlds of other annotators.

The worlds differ in their labels, so no report can hold one run against another of another world; what is drawn is each
method's own fall."""

import csv
from collections import defaultdict
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.common import HERE, keep_environment, summaries, sweep

NAME = "label_noise"
MEASURES = {"gold_gain": "gold reward gained over the base", "accuracy_true": "accuracy on the true order"}


def method(config: dict[str, Any]) -> str:
    loss = config["loss"]
    kind = loss["_target_"].rpartition(".")[2]
    if not loss.get("label_smoothing"):
        return str(kind)
    return "robust DPO" if loss["robust"] else "cDPO"


def numbers(summary: dict[str, Any]) -> dict[str, float]:
    return {**{key: summary["world"][key] for key in MEASURES}, "kl": summary["samples"]["kl"]}


def draw(table: dict[tuple[str, float], list[dict[str, float]]]) -> Figure:
    """Each measure against the annotators' agreement: the mean over seeds, and each seed as a dot."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    for axes, (key, label) in zip(figure.subplots(1, 2), MEASURES.items(), strict=True):
        for i, name in enumerate(sorted({name for name, _ in table})):
            points = sorted(
                (agreement, [run[key] for run in table[name, agreement]]) for n, agreement in table if n == name
            )
            axes.plot([x for x, _ in points], [np.mean(y) for _, y in points], color=f"C{i}", lw=1.5, label=name)
            for x, values in points:
                axes.plot([x] * len(values), values, "o", color=f"C{i}", ms=3)
        axes.set(xlabel="how often the annotator agrees with the gold order", ylabel=label)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    return figure


runs = sweep(NAME, "experiment=demo", "sweep=label_noise", "seed=0,1")
table: dict[tuple[str, float], list[dict[str, float]]] = defaultdict(list)
for config, summary in summaries(runs):
    table[method(config), float(config["data"]["world"]["agreement"])].append(numbers(summary))
with (HERE / NAME / "results.csv").open("w", encoding="utf-8", newline="") as stream:
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["method", "agreement", "seeds", *MEASURES, "kl"])
    for (name, agreement), found in sorted(table.items()):
        means = [f"{np.mean([run[key] for run in found]):.4f}" for key in (*MEASURES, "kl")]
        writer.writerow([name, agreement, len(found), *means])
draw(table).savefig(HERE / NAME / "noise.png", dpi=130)
keep_environment(runs, NAME)
