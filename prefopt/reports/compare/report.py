"""A comparison, complete: what the tables, the figures and the page say, computed once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefopt.reports.compare.differences import ALPHA, Difference, differences, win_rates
from prefopt.reports.compare.figures import Figure, figures
from prefopt.reports.compare.health import flags, impossible
from prefopt.reports.compare.measures import (
    IN_SLICES,
    MEASURES,
    Measure,
    Summary,
    Values,
    all_values,
    row_values,
    slices,
    summarised,
)
from prefopt.reports.compare.optimum import SURELY, Optimum
from prefopt.reports.compare.runs import Found, Run
from prefopt.reports.compare.samples import SideBySide, side_by_side
from prefopt.reports.compare.settings import NAMES, Method, Setting, group
from prefopt.reports.compare.statistics import DRAWS, Estimate


@dataclass(frozen=True, eq=False)
class Line:
    """A setting in a table. part: a slice, or empty for all rows."""

    setting: Setting
    choice: str
    values: Summary
    part: str = ""


@dataclass(frozen=True, eq=False)
class Report:
    methods: list[Method]
    lines: list[Line]
    slices: list[Line]
    differences: list[Difference]
    wins: list[list[float | None]]
    flags: list[tuple[str, str]]
    notes: list[str]
    left_out: list[str]
    figures: list[Figure]
    samples: SideBySide
    optimum: Optimum | None = None

    @property
    def shown(self) -> list[Line]:
        """Default and best of every method."""
        return [line for line in self.lines if line.choice]


def build(
    found: Found, defaults: Mapping[str, dict[str, Any]], optimum: Optimum | None = None, why_none: str = ""
) -> Report:
    """Of runs that `check_comparable` lets stand in one table. defaults: see `settings.loss_defaults`. why_none: a
    sentence, where an optimum is missed."""
    methods = group(found.runs, defaults)
    compared, values = differences(methods), all_values(methods, optimum)
    lines = [Line(s, m.choice(s), values[s]) for m in methods for s in m.settings]
    return Report(
        methods=methods,
        lines=lines,
        slices=list(_slices(methods, found.runs)),
        differences=compared,
        wins=win_rates(methods),
        flags=flags(methods, values, optimum),
        notes=[
            *_notes(found.runs, methods, compared),
            *_on_optimum(optimum, values),
            *filter(None, [found.judge, why_none]),
        ],
        left_out=found.left_out,
        figures=figures(methods, values, optimum),
        samples=side_by_side(methods),
        optimum=optimum,
    )


def _slices(methods: Sequence[Method], runs: Sequence[Run]) -> Iterator[Line]:
    for part in slices(runs):
        for method in methods:
            for setting in method.shown:
                values = summarised([row_values(run, part) for run in setting.runs])
                yield Line(setting, method.choice(setting), values, part)


def columns(lines: Sequence[Line], among: Sequence[str] | None = None) -> list[Measure]:
    """The measures that any line has."""
    wanted = [m for m in MEASURES if among is None or m.key in among]
    return [m for m in wanted if any(line.values.get(m.key) is not None for line in lines)]


def slice_columns(report: Report) -> list[Measure]:
    return columns(report.slices, IN_SLICES)


def cell(measure: Measure, value: Estimate | None) -> tuple[str, str]:
    """Mean and interval as they are printed everywhere."""
    if value is None:
        return "–", ""
    mean = format(value.mean, measure.form)
    return mean, "" if value.low is None else f"{value.low:{measure.form}} to {value.high:{measure.form}}"


# ---------------------------------------------------------------- what a reader must know


def _notes(runs: Sequence[Run], methods: Sequence[Method], compared: Sequence[Difference]) -> Iterator[str]:
    summary, total = runs[0].summary, sum(len(method.settings) for method in methods)
    stands_on = f"the same data ({_short(summary, 'data_hash')}), base ({_short(summary, 'base_hash')}) and order"
    counted = f"{len(runs)} runs of {len(methods)} methods in {total} settings"
    yield f"{counted}, all on {stands_on}, {summary.get('steps')} steps each."
    yield "A setting is a config without its seed. Means are over seeds, intervals 95 % by Student's t."
    yield from _on_choice(methods)
    yield from _on_seeds(methods)
    yield from _on_rows(runs, methods)
    if compared:
        yield (
            f"Differences: standard errors by a bootstrap of {DRAWS:,} draws of held-out prompts (of rows, where runs "
            "do not name their prompts) and seeds, paired by both, read by Student's t; p-values corrected by Holm for "
            f"{len(compared)} comparisons and shown under {ALPHA:g}."
        )


def _on_choice(methods: Sequence[Method]) -> Iterator[str]:
    missing = [method.name for method in methods if method.default is None]
    if missing:
        yield f"No run of the default setting: {', '.join(missing)}."
    if all(len(method.settings) == 1 for method in methods):
        return
    for measure in dict.fromkeys(method.chosen_by for method in methods):
        names = ", ".join(method.name for method in methods if method.chosen_by == measure)
        shown = "rows are of test, answers to prompts of val and test"
        yield f"Best of its grid: the highest mean {NAMES[measure]} on val ({names}); {shown}."
    trials = {method.name: len(method.settings) for method in methods}
    if len(set(trials.values())) > 1:
        counted = ", ".join(f"{name} {n}" for name, n in trials.items())
        yield f"Unequal trials ({counted} settings): the best of more settings is favoured by chance."
    elif len(methods) > 1:
        yield f"Equal trials: {next(iter(trials.values()))} per method."


def _on_seeds(methods: Sequence[Method]) -> Iterator[str]:
    counts = {len(setting.runs) for method in methods for setting in method.settings}
    if counts == {1}:
        yield "One seed per setting: no interval over seeds; differences count rows only, and another seed may differ."
    elif len(counts) > 1:
        yield f"Unequal numbers of seeds per setting: {min(counts)} to {max(counts)}."


def _on_rows(runs: Sequence[Run], methods: Sequence[Method]) -> Iterator[str]:
    chosen = any(len(method.settings) > 1 for method in methods)
    if runs[0].rows_file == "val.jsonl":
        favour = ", where the best settings were chosen: that favours the larger grid" if chosen else ""
        yield f"AUC, ECE, Brier, slices and differences are of val.jsonl (not every run has test.jsonl){favour}."
    else:
        yield "AUC, ECE, Brier, slices and differences are of test.jsonl, every row with the same weight."
    if any(run.summary.get("reward_is_log_odds") is None for run in runs):
        yield "Calibration: not every run says whether its reward is a log-odds; else ECE and Brier mean little."


def _on_optimum(optimum: Optimum | None, values: Values) -> Iterator[str]:
    if optimum is None:
        return
    yield from optimum.words()
    if not impossible(values, optimum):
        yield f"No setting is above the optimum by more than {SURELY:g} standard errors."


def _short(summary: dict[str, Any], name: str) -> str:
    return str(summary.get(name))[:12]
