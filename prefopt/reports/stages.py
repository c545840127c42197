"""What a person reads when a pipeline has ended: its stages side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from prefopt.errors import plain

COLUMNS = (
    ("test accuracy", ("test", "accuracy")),
    ("answers", ("samples", "length")),
    ("gold before", ("samples_reference", "gold_reward")),
    ("gold", ("samples", "gold_reward")),
    ("KL", ("samples", "kl")),
)


def print_stages(folder: Path, stages: list[tuple[str, str, dict[str, Any]]]) -> None:
    """stages: the folder's name, how it stands, and its summary, {} of one that is no run. KL and gold before are of
    what the stage starts from."""
    known = [(title, where) for title, where in COLUMNS if any(_found(s, where) is not None for _, _, s in stages)]
    table = Table(title="pipeline", title_justify="left")
    for title in ("stage", "status", *(title for title, _ in known)):
        table.add_column(title, justify="left" if title in ("stage", "status") else "right")
    for name, status, summary in stages:
        values = (_found(summary, where) for _, where in known)
        table.add_row(Text(name), Text(plain(status)), *("" if value is None else f"{value:.3f}" for value in values))
    console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)
    console.print(table)
    console.print(f"pipeline    {plain(str(folder))}   (pipeline.json, a run folder for every stage)")


def _found(summary: dict[str, Any], where: tuple[str, str]) -> float | None:
    section, name = where
    return (summary.get(section) or {}).get(name)
