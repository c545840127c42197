"""Figures drawn twice: as what the page's script takes, and as PNG files."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from prefopt.errors import plain
from prefopt.files import replacing
from prefopt.reports.compare.figures import Figure, Series

MARKERS = {"points": ("circle", 11, "o"), "faint": ("circle-open", 7, "o"), "ends": ("circle", 8, "o")}
MARKERS |= {"crosses": ("x", 8, "x"), "diamonds": ("diamond-open", 8, "D")}
DASHES = {"line": ("solid", "-"), "dashed": ("dash", "--"), "dotted": ("dot", ":")}


def plotly_traces(figure: Figure) -> list[dict[str, Any]]:
    """The script takes tags in names and texts for markup, so both are escaped."""
    return [_trace(series) for series in figure.series]


def _trace(series: Series) -> dict[str, Any]:
    name = escape(series.name)
    trace = {"name": name, "legendgroup": name, "showlegend": series.in_legend, "x": series.x, "y": series.y}
    for axis, error in (("error_x", series.x_error), ("error_y", series.y_error)):
        if error and any(error):
            trace[axis] = {"type": "data", "array": error, "thickness": 1.2, "width": 3}
    if series.style in MARKERS:
        symbol, size, _ = MARKERS[series.style]
        marker = {"color": series.colour, "symbol": symbol, "size": size}
        texts = [escape(text) for text in series.texts]
        return {**trace, "mode": "markers", "marker": marker, "text": texts, "hovertemplate": HOVER}
    return {**trace, "mode": "lines", "line": {"color": series.colour, "dash": DASHES[series.style][0], "width": 2}}


HOVER = "%{text}<br>%{x:.4g}, %{y:.4g}<extra></extra>"


def save_png(figure: Figure, path: Path) -> None:
    """By matplotlib: the page's library would start a browser for it."""
    from matplotlib.figure import Figure as Canvas  # without pyplot there is no window system and no global state

    canvas = Canvas(figsize=(7, 4.5), dpi=130)
    axes = canvas.subplots(gridspec_kw={"left": 0.12, "right": 0.72, "top": 0.92, "bottom": 0.12})  # a legend beside it
    for series in figure.series:
        _draw(axes, series)
    axes.set(title=_plain(figure.title), xlabel=_plain(figure.x), ylabel=_plain(figure.y))
    if figure.frame is not None:
        axes.set(xlim=figure.frame[0], ylim=figure.frame[1])
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    with replacing(path) as temporary:
        canvas.savefig(temporary, format="png")


def _draw(axes: Any, series: Series) -> None:
    label = _plain(series.name) if series.in_legend else None
    y = [float("nan") if value is None else value for value in series.y]
    if series.style not in MARKERS:
        axes.plot(series.x, y, DASHES[series.style][1], color=series.colour, lw=1.5, label=label)
        return
    _, size, marker = MARKERS[series.style]
    hollow = {"mfc": "none", "alpha": 0.7} if series.style in ("faint", "diamonds") else {}
    look = {"color": series.colour, "marker": marker, "ms": size * 0.6, "ls": "", "label": label, **hollow}
    axes.errorbar(series.x, y, xerr=series.x_error, yerr=series.y_error, elinewidth=0.9, capsize=2, **look)


def _plain(text: str) -> str:
    """A dollar would begin a formula, and a control code that no font has is printed in a warning."""
    return plain(text).replace("$", r"\$")
