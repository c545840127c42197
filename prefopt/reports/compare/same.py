"""Runs that stand in one table stand on the same things; the first that differs is named."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from prefopt.errors import RequestError
from prefopt.reports.compare.runs import Columns, Run
from prefopt.run import comparable_settings

HASHES = ("data_hash", "base_hash", "tokens_hash")
QUOTE = '"'


def check_comparable(runs: Sequence[Run]) -> None:
    """RequestError with the first key that differs, both values and both runs."""
    _check(runs, [_stands_on(run) for run in runs])
    for seed in dict.fromkeys(run.seed for run in runs):  # the seed moves the order, nothing else does
        some = [run for run in runs if run.seed == seed]
        _check(some, [{"row_order_hash": run.summary.get("row_order_hash")} for run in some])
    judged = [run for run in runs if run.rows is not None]
    _check(judged, [{f"the rows of {run.rows_file}": _rows(run.rows)} for run in judged])
    sampled = [run for run in runs if run.samples]
    _check(sampled, [{"the prompts of samples.jsonl": _prompts(run)} for run in sampled])


def _stands_on(run: Run) -> dict[str, Any]:
    """What `comparable_hash` covers, by name, and last that hash itself."""
    order, shown = comparable_settings(run.config)
    return {
        **{name: run.summary.get(name) for name in HASHES},
        **{f"data.{name}": value for name, value in order.items()},
        **{f"evaluation.{name}": value for name, value in shown.items()},
        "steps": run.summary.get("steps"),
        "comparable_hash": run.summary.get("comparable_hash"),
    }


def _check(runs: Sequence[Run], found: Sequence[dict[str, Any]]) -> None:
    for key in dict.fromkeys(name for values in found for name in values):
        values = [json.dumps(entry.get(key)) for entry in found]
        usual = Counter(values).most_common(1)[0][0]
        odd = next((i for i, value in enumerate(values) if value != usual), None)
        if odd is not None:
            other = runs[values.index(usual)].path
            raise RequestError(
                f"{key} is {_short(values[odd])} in {runs[odd].path} and {_short(usual)} in {other}\n"
                "runs in one table must agree in it; leave out one of the two"
            )


def _rows(rows: Columns) -> str:
    """Of the held-out completions, and which of them were judged good."""
    columns = (rows[name].tolist() for name in ("row", "chosen", "slice"))
    return _digest(sorted(map(str, zip(*columns, strict=True))))


def _prompts(run: Run) -> str:
    return _digest([row.get("prompt") for row in run.samples])


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _short(value: str) -> str:
    """Hashes by their beginning."""
    return value if len(value) <= 40 else f"{value.strip(QUOTE)[:12]}…"
