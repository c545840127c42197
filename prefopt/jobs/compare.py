"""Run folders in, a report out: index.html, results.csv, results.md, figures/*.png, and report.json, which names
them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefopt.errors import OK, plain
from prefopt.files import remove_temporaries, replacing
from prefopt.jobs.optimum import known_optimum
from prefopt.reports.compare.drawing import save_png
from prefopt.reports.compare.folder import earlier_files, tell_files
from prefopt.reports.compare.page import page
from prefopt.reports.compare.report import Report, build
from prefopt.reports.compare.runs import read_runs
from prefopt.reports.compare.same import check_comparable
from prefopt.reports.compare.tables import optimum_csv, results_csv, results_md


def compare(
    folders: Sequence[Path],
    out: Path,
    defaults: Mapping[str, dict[str, Any]],
    samples: int | None,
    cache: Path,
    reward: str | None = None,
) -> int:
    """Returns the exit code. RequestError where runs are missing, broken or may not stand in one table. samples: under
    each prompt, for the optimum where it can be known; None: it is not asked for.
    reward: the name of a model that judges the answers, if any."""
    found = read_runs(folders)
    check_comparable(found.runs)
    if reward is not None:
        from prefopt.jobs.judging import judge_runs  # the heavy libraries, only where they are needed

        runs, told = judge_runs(found.runs, reward)
        found = replace(found, runs=runs, judge=told)
    optimum, why_none = known_optimum(found.runs, samples, cache) if samples else (None, "")
    report = build(found, defaults, optimum, why_none)
    write_report(report, out)
    for sentence in report.left_out:
        print(f"left out    {plain(sentence)}")
    for difference in report.differences:
        if difference.shown:
            print(f"difference  {plain(difference.line)}")
    print(f"compared    {sum(len(line.setting.runs) for line in report.lines)} runs")
    if why_none:
        print(f"note        {plain(why_none)}")
    print(f"report      {out / 'index.html'}   (results.csv, results.md, figures/)")
    return OK


def write_report(report: Report, out: Path) -> None:
    """In the place of an earlier one, of which nothing stays. RequestError where `out` holds anything else."""
    figures = {f"figures/{figure.name}.png": figure for figure in report.figures}
    texts = {"results.csv": results_csv(report), "results.md": results_md(report), "index.html": page(report)}
    if report.optimum is not None:
        texts["optimum.csv"] = optimum_csv(report.optimum)
    files, earlier = {*figures, *texts}, earlier_files(out)
    for folder in (out, out / "figures"):
        remove_temporaries(folder)
    tell_files(out, files | earlier)  # before they are there: what a kill leaves is ours to overwrite, too
    for name, figure in figures.items():
        save_png(figure, out / name)
    for name, content in texts.items():
        with replacing(out / name) as temporary:
            temporary.write_text(content, "utf-8")
    for name in earlier - files:
        (out / name).unlink(missing_ok=True)
    tell_files(out, files)
