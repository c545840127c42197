"""The README's table of what the methods reach, from committed results: `python benchmarks/methods.py`.

The results are those of `python -m experiments.beta_by_loss`, which takes an hour; this only writes what they say."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENT = ROOT / "experiments/beta_by_loss"
BEGIN, END = "<!-- benchmarks/methods.py writes this -->", "<!-- until here -->"
COLUMNS = {  # of results.csv, with their heads and forms
    "accuracy_logratio": ("accuracy", ".3f"),
    "gold_reward": ("gold reward", ".2f"),
    "kl": ("KL, nats", ".2f"),
    "share_of_optimum": ("share of optimum", ".0%"),
    "win_rate_vs_reference": ("wins against the base", ".2f"),
    "distinct_2": ("distinct-2", ".3f"),
}


def table() -> str:
    """The best setting of every method's grid, by falling gold reward."""
    with (EXPERIMENT / "results.csv").open(encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if not row["slice"] and is_best(row["choice"])]
    rows.sort(key=lambda row: -float(row["gold_reward"]))
    head = ["method", "setting", *(name for name, _ in COLUMNS.values())]
    lines = [head, ["---", "---", *["---:"] * len(COLUMNS)]]
    lines += [[f"`{row['method']}`", row["setting"] or "–", *(cell(row, key) for key in COLUMNS)] for row in rows]
    made = json.loads((EXPERIMENT / "environment.json").read_text("utf-8"))
    on = f"{made['runs']} runs on {made['machine']['cores']} cores; torch {made['versions']['torch']}"
    below = (
        "Of every method the best setting by accuracy on val, by falling gold reward, whose 95 % interval over "
        f"{rows[0]['seeds']} seeds is beside it; which differences are shown and why a share is missing say "
        f"[the results](experiments/beta_by_loss/results.md). {on}."
    )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{below}"


def is_best(choice: str) -> bool:
    return "best of" in choice or "only setting" in choice


def cell(row: dict[str, str], key: str) -> str:
    form = COLUMNS[key][1]
    if not row[key]:
        return "–"
    low, high = row.get(f"{key}_low"), row.get(f"{key}_high")
    span = f" ({float(low):{form}} to {float(high):{form}})" if key == "gold_reward" and low and high else ""
    return format(float(row[key]), form) + span


def written(readme: str) -> str:
    """The README with the table between its marks."""
    return re.sub(f"{BEGIN}.*?{END}", f"{BEGIN}\n\n{table()}\n\n{END}", readme, flags=re.DOTALL)


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(written(path.read_text("utf-8")), "utf-8")
