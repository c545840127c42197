"""The README's figure, drawn from committed results: `python benchmarks/figure.py [speed-small]`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

RESULTS = Path(__file__).resolve().parent / "results"
OURS, THEIRS = "#2563eb", "#9ca3af"
STORED = "TRL dpo, compact, precomputed, sorted"
# (method, prefopt's system, the peer's), as benchmarks/speed.py names them.
PAIRS = (
    ("DPO, TRL as shipped", "dpo", "TRL dpo"),
    ("DPO, TRL with compact head", "dpo", "TRL dpo, compact"),
    ("DPO, reference computed\nbefore, TRL sorted, compact", "dpo, reference stored", STORED),
    ("KTO", "kto", "TRL kto"),
    ("reward model", "bradley_terry", "TRL reward"),
    ("SFT", "sft", "TRL sft"),
)


def draw(report: dict[str, Any]) -> Figure:
    """Seconds of a step with the range over the rounds, and peak memory."""
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    seconds, memory = figure.subplots(1, 2, sharey=True)
    took, peak, ratios = report["seconds_per_step"], report["peak_bytes"], report["ratios"]
    measured = [pair for pair in PAIRS if pair[1] in took and pair[2] in took]
    for row, (_, ours, theirs) in enumerate(measured):
        for name, offset, colour in ((ours, -0.19, OURS), (theirs, 0.19, THEIRS)):
            t = took[name]
            reach = [[t["median"] - t["least"]], [t["most"] - t["median"]]]
            seconds.barh(row + offset, t["median"], 0.36, xerr=reach, color=colour, ecolor="#4b5563")
            memory.barh(row + offset, peak[name] / 2**30, 0.36, color=colour)
        ratio = f"{ratios[f'{theirs} / {ours}']['median']:.1f}×"
        seconds.text(took[theirs]["most"], row + 0.19, f"  {ratio}", va="center", color="#111827")
    _label(seconds, "seconds of a step of eight pairs")
    _label(memory, "peak memory, GiB")
    seconds.set_yticks(range(len(measured)), [name for name, _, _ in measured])
    seconds.invert_yaxis()
    seconds.margins(x=0.12)
    trl = f"TRL {report['versions']['trl']}"
    patches = [Patch(color=colour, label=label) for colour, label in ((OURS, "prefopt"), (THEIRS, trl))]
    seconds.legend(handles=patches, loc="lower right", frameon=False)
    return figure


def _label(axes: Axes, text: str) -> None:
    axes.set_xlabel(text)
    axes.spines[["top", "right"]].set_visible(False)


def main(name: str = "speed-small") -> None:
    matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "prefopt", "font.family": "sans-serif"}
    report = json.loads((RESULTS / f"{name}.json").read_text())
    draw(report).savefig(RESULTS / f"{name}.svg", facecolor="white", metadata={"Date": None})


if __name__ == "__main__":
    main(*sys.argv[1:])
