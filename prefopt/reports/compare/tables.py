"""results.csv, every number of every setting; optimum.csv, what they are held against; results.md, what the page says
without its figures."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from io import StringIO

from prefopt.errors import plain
from prefopt.reports.compare.measures import MEASURES, Measure
from prefopt.reports.compare.optimum import Optimum
from prefopt.reports.compare.report import Line, Report, cell, columns, slice_columns

ENDS = ("", "_low", "_high")
FIRST = ("method", "setting", "choice", "slice", "seeds")


def results_csv(report: Report) -> str:
    """A line per setting, and per setting and slice. Intervals are empty where there is one seed."""
    out = StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = [f"{m.key}{end}" for m in MEASURES for end in ENDS[: 1 if m.error else 3]]
    writer.writerow([*FIRST, *names])
    for line in (*report.lines, *report.slices):
        setting = line.setting
        writer.writerow([setting.method, setting.label, line.choice, line.part, len(setting.runs), *_numbers(line)])
    return out.getvalue()


def _numbers(line: Line) -> list[str]:
    found = []
    for measure in MEASURES:
        value = line.values.get(measure.key)
        parts = [None, None, None] if value is None else [value.mean, value.low, value.high]
        found += ["" if part is None else f"{part:.8g}" for part in parts[: 1 if measure.error else 3]]
    return found


def optimum_csv(optimum: Optimum) -> str:
    """A line per point of the frontier, by rising KL, and per n of best-of-n, whose KL is at most what stands here."""
    out = StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["beta", "best_of", *POINT, "reliable"])
    curve, best = optimum.curve, optimum.best
    for i, sound in enumerate(curve.reliable):
        point = [getattr(curve, name)[i] for name in POINT]
        writer.writerow([f"{curve.betas[i]:.8g}", "", *(f"{value:.8g}" for value in point), str(bool(sound)).lower()])
    for n, reward, stderr, kl in zip(best.n, best.reward, best.stderr, best.kl, strict=True):
        found = {"kl": kl, "reward": reward, "reward_stderr": stderr, "gain": reward - curve.reference}
        writer.writerow(["", n, *(f"{found[name]:.8g}" if name in found else "" for name in POINT), ""])
    return out.getvalue()


POINT = ("kl", "kl_stderr", "reward", "reward_stderr", "gain", "gain_stderr", "effective_size")


def results_md(report: Report) -> str:
    parts = ["# Comparison", _list(report.notes)]
    if report.left_out:
        parts += ["Left out:", _list(report.left_out)]
    parts += ["## Methods", _table(report.shown, columns(report.shown))]
    if report.differences:
        parts += ["## Differences", _list([d.line for d in report.differences])]
    if report.flags:
        parts += ["## Look at", _list([f"{name}: {sentence}" for name, sentence in report.flags])]
    if report.slices:
        parts += ["## By slice", _table(report.slices, slice_columns(report), part=True)]
    measures = "\n".join(f"- {m.label}: {m.meaning}" for m in columns(report.lines))
    return "\n\n".join([*parts, "## Measures", measures]) + "\n"


def _table(lines: Sequence[Line], measures: Sequence[Measure], part: bool = False) -> str:
    head = [*(["slice"] if part else []), "method", "setting", "choice", "seeds", *(m.label for m in measures)]
    rows = [head, ["---"] * 4 + ["---"] * part + ["---:"] * len(measures)]
    for line in lines:
        values = [f"{mean} ({span})" if span else mean for mean, span in _cells(line, measures)]
        setting = line.setting
        first = [setting.method, setting.label, line.choice, str(len(setting.runs))]
        rows.append([*([line.part] if part else []), *first, *values])
    return "\n".join(f"| {' | '.join(map(_escaped, row))} |" for row in rows)


def _cells(line: Line, measures: Sequence[Measure]) -> list[tuple[str, str]]:
    return [cell(measure, line.values.get(measure.key)) for measure in measures]


def _list(sentences: Sequence[str]) -> str:
    return "\n".join(f"- {_escaped(sentence)}" for sentence in sentences)


def _escaped(text: str) -> str:
    """What a config or a slice is called must not end a cell, begin a tag or steer a terminal that shows the file."""
    return plain(text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " "))
