"""Run folders in, a report out: index.html, results.csv, results.md and figures/*.png."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefopt.errors import OK
from prefopt.files import replacing
from prefopt.reports.compare.drawing import save_png
from prefopt.reports.compare.page import page
from prefopt.reports.compare.report import build
from prefopt.reports.compare.runs import read_runs
from prefopt.reports.compare.tables import results_csv, results_md


def compare(folders: Sequence[Path], out: Path, defaults: Mapping[str, dict[str, Any]]) -> int:
    """Returns the exit code. RequestError where runs are missing, broken or may not stand in one table."""
    report = build(read_runs(folders), defaults)
    for figure in report.figures:
        save_png(figure, out / "figures" / f"{figure.name}.png")
    for name, content in (
        ("results.csv", results_csv(report)),
        ("results.md", results_md(report)),
        ("index.html", page(report)),
    ):
        with replacing(out / name) as temporary:
            temporary.write_text(content, "utf-8")
    for sentence in report.left_out:
        print(f"left out    {sentence}")
    for difference in report.differences:
        if difference.shown:
            print(f"difference  {difference.line}")
    print(f"compared    {sum(len(line.setting.runs) for line in report.lines)} runs")
    print(f"report      {out / 'index.html'}   (results.csv, results.md, figures/)")
    return OK
