"""index.html: one file that needs nothing else, with all that runs and models wrote as text."""

from __future__ import annotations

from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from plotly.offline import get_plotlyjs

from prefopt.reports.compare.drawing import plotly_traces
from prefopt.reports.compare.report import Report, cell, columns, slice_columns


def page(report: Report) -> str:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((files(__package__) / "page.html").read_text("utf-8"))
    drawn = [{"name": f.name, "x": f.x, "y": f.y, "frame": f.frame, "traces": plotly_traces(f)} for f in report.figures]
    return template.render(
        report=report,
        drawn=drawn,
        columns=columns(report.lines),
        shown_columns=columns(report.shown),
        slice_columns=slice_columns(report),
        cell=cell,
        plotly=get_plotlyjs(),
    )
