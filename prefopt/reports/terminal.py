"""What a person reads when a run has ended: base against after, where things are, what to run next."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from prefopt.errors import plain

ROWS = (
    ("accuracy, own reward", "accuracy", "share"),
    ("accuracy, log-ratio", "accuracy_logratio", "share"),
    ("accuracy, log-prob", "accuracy_logp", "share"),
    ("chosen log-prob moved by", "chosen_logp_delta", "nats"),
    ("rejected log-prob moved by", "rejected_logp_delta", "nats"),
)
SAMPLED = (
    ("gold reward", "gold_reward", ""),
    ("reward, optimised", "annotation", ""),
    ("wins against the base", "win_rate_vs_reference", "share"),
    ("KL to the base", "kl", "nats"),
    ("answer length", "length", "tokens"),
    ("repetition", "repetition", "share"),
)


def print_summary(path: Path, summary: dict[str, Any]) -> None:
    console, place = _console(), plain(str(path))
    title = f"{summary['loss']}, {summary['steps']} steps, held-out test rows"
    _print_measures(console, title, ("base", "after"), summary)
    rate = f"{summary['pairs_per_second']:.1f} examples/s" if summary["pairs_per_second"] else ""
    console.print(f"trained {summary['examples']} examples in {summary['train_seconds']:.1f} s ({rate})")
    if summary["rollouts"]:
        _print_rollouts(console, summary)
    for alarm in summary["health"] or []:
        console.print(f"{alarm['action']}      step {alarm['step']}: {alarm['sentence']}")
    written = ["summary.json", "metrics.csv", "val.jsonl", *(["samples.jsonl"] if summary["samples"] else [])]
    console.print(f"run folder  {place}   ({', '.join(written)}, tensorboard/)")
    console.print(f"model       {place}/model   (from_pretrained)")
    console.print(f"next        tensorboard --logdir {place}   ·   python -m prefopt.train loss=… with the same data")


def print_evaluation(path: Path, summary: dict[str, Any]) -> None:
    console = _console()
    _print_measures(console, f"{summary['model']}, {summary['rows']} rows", ("reference", "model"), summary)
    if summary["slices"]:
        _print_slices(console, summary["slices"])
    for name, scores in (summary["sections"] or {}).items():
        label = next(label for label, key, _ in ROWS if key == name)
        console.print(f"RewardBench, {label}: " + ", ".join(f"{part} {score:.3f}" for part, score in scores.items()))
    written = ["summary.json", "test.jsonl", *(["samples.jsonl"] if summary["samples"] else [])]
    console.print(f"evaluation  {plain(str(path))}   ({', '.join(written)})")


def _console() -> Console:
    """What is printed is text as it stands: a folder may be called `a[/b]` or `:x:`."""
    return Console(highlight=False, soft_wrap=True, markup=False, emoji=False)


def _print_measures(console: Console, title: str, names: tuple[str, str], summary: dict[str, Any]) -> None:
    """Rows and answers of whom it is held against, and its own."""
    table = Table(title=plain(title), title_justify="left")
    for column in ("", *names, ""):
        table.add_column(column, justify="left" if not column else "right")
    for label, key, unit in ROWS:
        _row(table, label, (summary["test_reference"] or {}).get(key), summary["test"][key], unit)
    before, after = summary["samples_reference"] or {}, summary["samples"] or {}
    for label, key, unit in SAMPLED:
        _row(table, label, before.get(key), after.get(key), unit)
    console.print(table)
    if summary["world"]:
        _print_world(console, summary)


def _print_rollouts(console: Console, summary: dict[str, Any]) -> None:
    found, sampling = summary["rollouts"], summary["sampling_seconds"]
    share = sampling / ((sampling + summary["train_seconds"]) or math.inf)
    watched = f", {found['watched']:.3f} by the judge that watches" if "watched" in found else ""
    console.print(
        f"sampled {found['answers']} answers, {share:.0%} of the time; the last are worth"
        f" {found['annotation']:.3f}{watched}"
    )


def _print_slices(console: Console, slices: dict[str, dict[str, Any]]) -> None:
    known = [(label, key) for label, key, _ in ROWS if any(found[key] is not None for found in slices.values())]
    table = Table(title="by slice", title_justify="left")
    for column in ("slice", "rows", *(label for label, _ in known)):
        table.add_column(column, justify="left" if column == "slice" else "right")
    for name, found in slices.items():
        values = ("" if found[key] is None else f"{found[key]:.3f}" for _, key in known)
        table.add_row(Text(plain(name)), str(found["rows"]), *values)
    console.print(table)


def _print_world(console: Console, summary: dict[str, Any]) -> None:
    world = summary["world"]
    console.print(
        f"accuracy {summary['test']['accuracy']:.3f} on {world['pairs']} noisy pairs is"
        f" {world['accuracy_of_ceiling']:.3f} of the ceiling {world['ceiling']:.3f} that their label noise allows;"
        f" {world['accuracy_true']:.3f} on the true order"
    )
    if world.get("gold_gain") is not None:
        console.print("; ".join(_gained(world)))


def _gained(world: dict[str, Any]) -> Iterator[str]:
    """Of one prompt there is no interval, of less than four answers no best of four."""
    low, best = world["gold_gain_low"], world["best_of_4_gain"]
    interval = "" if low is None else f" (95 % interval {low:.3f} to {world['gold_gain_high']:.3f})"
    yield f"gold reward gained {world['gold_gain']:.3f}{interval}"
    if best is not None:
        yield f"best of 4 of the base gains {best:.3f}, half of that is {best / 2:.3f}"


def _row(table: Table, label: str, before: float | None, after: float | None, unit: str) -> None:
    if after is not None:
        table.add_row(label, "" if before is None else f"{before:.3f}", f"{after:.3f}", unit)
