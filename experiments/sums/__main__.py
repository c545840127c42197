"""GRPO with a rule for a judge learns to add: from a base that answers near the sum to one that answers the sum."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from itertools import product
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from experiments.common import HERE, Made, keep_environment, keep_runs, summaries, sweep

NAME = "sums"
DIGITS, OFF = 10, 3  # terms are 0 to 9; the base is off by up to 3
DEMONSTRATIONS, REPEATS, HELD_OUT = 20_000, 45, 12
TINY = ("model.tiny.vocab_size=300", "model.tiny.fit_epochs=8", "model.tiny.fit_steps=300")
BASE = ("loss=sft", "data=jsonl", *TINY, "trainer.max_steps=2", "evaluation.max_new_tokens=3")
LEARN = (
    *("loss=grpo", "reward=rule", "reward.rule=exact", "data=jsonl", "model=hf", "data.prompts=text"),
    *("source.samples=16", "evaluation.max_new_tokens=3", "evaluation.samples_per_prompt=20"),
    *("trainer.max_steps=500", "model.learning_rate=0.001", "seed=0,1,2"),
)


def main() -> None:
    folder = Path("sweeps", NAME)
    files = write_data(folder / "data")
    asked = (f"data.train={files['near']}", f"data.val={files['near_val']}")
    base = sweep(f"{NAME}/base", *BASE, *asked)
    (model,) = base.glob("*/model")
    asked = (f"model.name={model.absolute()}", f"data.train={files['sums']}", f"data.val={files['sums_val']}")
    runs = sweep(f"{NAME}/runs", *LEARN, *asked)
    write(runs, summaries(runs))
    keep_runs(NAME, runs)
    keep_environment(runs, NAME)


def write_data(folder: Path) -> dict[str, Path]:
    """near: what the base is fitted to, sums that are off by -3 to 3, all as often. sums: the right ones. Held out are
    twelve pairs of terms whose other order is in training."""
    draw = np.random.default_rng(0)
    every = list(product(range(DIGITS), repeat=2))
    held: list[tuple[int, int]] = []
    for i in draw.permutation(len(every)):
        a, b = every[i]
        if a != b and (b, a) not in held and len(held) < HELD_OUT:
            held.append((a, b))
    seen = [pair for pair in every if pair not in held]

    def near(count: int) -> Iterable[tuple[int, int, int]]:
        for i in draw.integers(len(seen), size=count):
            a, b = seen[i]
            yield a, b, max(0, a + b + int(draw.integers(-OFF, OFF + 1)))

    rows = {
        "near": near(DEMONSTRATIONS),
        "near_val": near(60),
        "sums": ((a, b, a + b) for a, b in seen * REPEATS),
        "sums_val": ((a, b, a + b) for a, b in held),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, some in rows.items():
        lines = [json.dumps({"prompt": f"{a} + {b} =", "completion": f" {said}"}) + "\n" for a, b, said in some]
        (folder / f"{name}.jsonl").write_text("".join(lines), "utf-8")
    return {name: (folder / f"{name}.jsonl").absolute() for name in rows}


def write(runs: Path, made: Iterable[Made]) -> None:
    """results.csv and sums.png. first, last: the share of right answers in the first collection and in the last ten.
    base_unseen, unseen: of answers to the prompts that were held out."""
    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axes = figure.subplots()
    with (HERE / NAME / "results.csv").open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(["seed", "first", "last", "over_90_at", "base_unseen", "unseen", "seconds"])
        for name, _, summary in made:
            with (runs / name / "metrics.csv").open(newline="", encoding="utf-8") as metrics:
                right = np.array([float(row["annotation"]) for row in csv.DictReader(metrics)])
            smooth = np.convolve(right, np.ones(10) / 10, "valid")
            over = np.flatnonzero(smooth > 0.9)
            unseen = [summary[part]["annotation"] for part in ("samples_reference", "samples")]
            shares = [f"{share:.3f}" for share in (right[0], smooth[-1])]
            passed = round(summary["train_seconds"] + summary["sampling_seconds"])
            at = int(over[0]) + 10 if len(over) else ""
            table.writerow([summary["seed"], *shares, at, *(f"{share:.3f}" for share in unseen), passed])
            axes.plot(np.arange(len(smooth)) + 10, smooth, lw=1.3, label=f"seed {summary['seed']}")
    axes.axhline(0.9, color="black", lw=0.8, ls=":")
    axes.set(xlabel="optimiser step", ylabel="right answers, of the last ten steps", ylim=(0, 1))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(HERE / NAME / "sums.png", dpi=110)


if __name__ == "__main__":
    main()
