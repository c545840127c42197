"""What is drawn: titles, axes and series, whoever draws them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from prefopt.reports.compare.measures import BY_KEY, Summary, Values, base_value
from prefopt.reports.compare.optimum import Optimum
from prefopt.reports.compare.runs import Columns
from prefopt.reports.compare.settings import Method, Setting
from prefopt.reports.compare.statistics import pareto

# Okabe & Ito's colours, told apart by every eye; without the yellow and the black that a page swallows.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8B6BB1", "#7F7F7F")
GREY = "#888888"
INK = "#000000"  # the page shows it in the colour of its text
LINES = ("line", "dashed", "dotted")
POINTS = 40  # of a curve, of at least four steps each where there are enough

Span = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """style: line, dashed, dotted, points, faint (the rest of a grid), ends (where a line leads), crosses or diamonds.
    texts: of each point."""

    name: str
    x: list[float]
    y: list[float]
    colour: str
    style: str
    texts: list[str] = field(default_factory=list)
    x_error: list[float] | None = None
    y_error: list[float] | None = None
    in_legend: bool = True


@dataclass(frozen=True)
class Figure:
    name: str
    title: str
    x: str
    y: str
    caption: str
    series: list[Series]

    @property
    def frame(self) -> tuple[Span, Span] | None:
        """The spans of x and y that are shown: with the places of the default and best settings and the lines there.
        Neither an interval over two seeds nor a setting that went astray makes the rest small. None: all there is."""
        if not any(s.x_error or s.y_error for s in self.series):
            return None
        near = [s for s in self.series if s.style in ("points", "ends", "diamonds")]
        x = _span([value for s in near for value in s.x])
        inside = [b for s in self.series if s.style in LINES for a, b in zip(s.x, s.y, strict=True) if _within(a, x)]
        return x, _span([value for s in near for value in s.y] + [value for value in inside if value is not None])

    @property
    def outside(self) -> list[str]:
        """The settings that lie beyond the frame."""
        if self.frame is None:
            return []
        x, y = self.frame
        faint = [place for s in self.series if s.style == "faint" for place in zip(s.texts, s.x, s.y, strict=True)]
        return [text for text, a, b in faint if not (_within(a, x) and _within(b, y))]


def _span(values: Sequence[float]) -> Span:
    """With a margin; of one place alone with some room about it."""
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 0.5
    return low - margin, high + margin


def _within(value: float, span: Span) -> bool:
    return span[0] <= value <= span[1]


def figures(methods: Sequence[Method], values: Values, optimum: Optimum | None = None) -> list[Figure]:
    """Those for which the runs hold anything."""
    worth = worth_key(values)
    drawn = [
        _frontier(methods, values, worth, optimum),
        _curve(methods, "loss", "Loss", "loss / its first value", _relative),
        _curve(methods, "accuracy", "Accuracy on training pairs", "accuracy, own reward", lambda values: values),
        _movement(methods, values),
        _scatter("length", "Length and reward", methods, values, ("length", worth), LENGTH),
        _scatter("cost", "Cost", methods, values, ("train_seconds", worth), COST),
    ]
    return [_with_outside(figure) for figure in drawn if figure.series]


def _with_outside(figure: Figure) -> Figure:
    if not figure.outside:
        return figure
    return replace(figure, caption=f"{figure.caption} Beyond the frame: {', '.join(figure.outside)}.")


LENGTH = "Better because longer? One point per setting; large: the default and the best of the grid."
COST = "What the training seconds bought. Compare times of runs on the same machine only."


def worth_key(values: Values) -> str:
    """What settings are held to be good for: the gold reward where it is known, else what a reward model says, else
    accuracy by log-ratio."""
    for key in ("gold_reward", "judged_reward", "win_rate_vs_reference", "accuracy_logratio"):
        if any(of[key] is not None for of in values.values()):
            return key
    return "accuracy"


def _frontier(methods: Sequence[Method], values: Values, worth: str, optimum: Optimum | None) -> Figure:
    caption = "Up and to the left is better. Bars: 95 % over seeds, or of one seed twice the Monte-Carlo error."
    axes = ("kl", worth)
    title = f"{BY_KEY[worth].label.capitalize()} against KL"
    figure = _scatter("frontier", title, methods, values, axes, caption if optimum is None else f"{caption} {KNOWN}")
    if not figure.series:
        return figure
    for colour, method in _coloured(methods):
        figure.series.extend(_front(method.name, method.settings, values, axes, colour))
    figure.series.extend(_front("Pareto front", list(values), values, axes, GREY))
    figure.series.extend(_base(methods, worth, optimum))
    if optimum is not None:
        figure.series.extend(_optimum(optimum, max(of["kl"].mean for of in values.values() if of["kl"])))
    return figure


KNOWN = (
    "π*: no policy has more reward at its KL; dashed where fewer than 100 effective samples tell under some prompt, "
    "dotted the bound by concavity and the largest reward. Best of n of the base's samples stands at the most that its "
    "KL can be."
)


def _front(
    name: str, settings: Sequence[Setting], values: Values, axes: tuple[str, str], colour: str
) -> Iterator[Series]:
    """Through the settings that no other one of these beats. A method's own is not in the legend."""
    found = [s for s in settings if all(values[s][axis] for axis in axes)]
    x, y = _places(found, values, axes)
    front = pareto(x, y)
    if len(found) > 1:
        yield Series(name, [x[i] for i in front], [y[i] for i in front], colour, "dashed", in_legend=colour == GREY)


def _optimum(optimum: Optimum, furthest: float) -> Iterator[Series]:
    """As far as the settings and best-of-n reach. furthest: the settings' largest KL."""
    best, sound = optimum.best, optimum.reliable_to
    right = max(1.05 * furthest, 1.05 * best.kl[-1])
    parts = [("π* (optimum)", 0.0, min(sound, right), "line", optimum.reward)]
    if sound < right:
        parts.append(("π*, few samples", sound, min(optimum.curve.kl[-1], right), "dashed", optimum.reward))
        parts.append(("bound", sound, right, "dotted", optimum.curve.bound))
    for name, left, end, style, reward in parts:
        x = np.linspace(math.sqrt(left), math.sqrt(end), POINTS) ** 2
        yield Series(name, _rounded(x), _rounded(reward(x)), INK, style)
    texts = [f"best of {n}" for n in best.n]
    yield Series("best of n", _rounded(best.kl), _rounded(best.reward), GREY, "line", in_legend=False)
    yield Series("best of n", _rounded(best.kl), _rounded(best.reward), GREY, "diamonds", texts)


def _base(methods: Sequence[Method], worth: str, optimum: Optimum | None) -> Iterator[Series]:
    """Where every policy started; seeds differ in the answers that were drawn."""
    runs = [run for method in methods for setting in method.settings for run in setting.runs]
    known = [value for run in runs if (value := base_value(run, worth)) is not None]
    known = known if optimum is None else [optimum.curve.reference]
    if known:
        yield Series("base", [0.0], [float(np.mean(known))], GREY, "ends", ["base"])


def _scatter(
    name: str, title: str, methods: Sequence[Method], values: Values, axes: tuple[str, str], caption: str
) -> Figure:
    """A point per setting, those shown in the table large and with their errors."""
    series = []
    for colour, method in _coloured(methods):
        shown = [s for s in method.shown if all(values[s][axis] for axis in axes)]
        others = [s for s in method.settings if s not in method.shown and all(values[s][axis] for axis in axes)]
        if shown:
            x_error, y_error = ([_error(values[s], axis) for s in shown] for axis in axes)
            x, y = _places(shown, values, axes)
            texts = [f"{s.name}, {method.choice(s)}" for s in shown]
            series.append(Series(method.name, x, y, colour, "points", texts, x_error, y_error))
        if others:
            x, y = _places(others, values, axes)
            series.append(Series(method.name, x, y, colour, "faint", [s.name for s in others], in_legend=not shown))
    labels = [f"{BY_KEY[axis].label}{UNITS.get(axis, '')}" for axis in axes]
    return Figure(name, title, labels[0], labels[1], caption, series)


def _places(settings: Sequence[Setting], values: Values, axes: tuple[str, str]) -> tuple[list[float], list[float]]:
    x, y = ([values[setting][axis].mean for setting in settings] for axis in axes)
    return x, y


UNITS = {"kl": ", nats per answer", "length": ", tokens", "train_seconds": " of training"}
ERRORS = {"kl": "kl_stderr", "gold_reward": "gold_reward_stderr", "judged_reward": "judged_reward_stderr"}


def _error(values: Summary, key: str) -> float:
    """Half the interval over seeds; of a single seed twice the error of its own mean, 0 where that is unknown."""
    found, own = values[key], values.get(ERRORS.get(key, ""))
    if found.high is not None:
        return found.high - found.mean
    return 2 * own.mean if own else 0.0


def _curve(methods: Sequence[Method], column: str, title: str, label: str, scale) -> Figure:
    """The shown settings' mean over seeds of a column of metrics.csv."""
    caption = "Default and best settings, the mean over seeds and neighbouring steps. Dashed: the default."
    series = []
    for colour, method in _coloured(methods):
        for setting in method.shown:
            x, y = _mean_curve(setting, column, scale)
            if len(x):
                style = "dashed" if setting is not method.best else "line"
                series.append(Series(setting.name, x, y, colour, style))
    return Figure(f"learning_{column}", title, "step", label, caption, series)


def _relative(values: np.ndarray) -> np.ndarray:
    """Losses of different methods have different units."""
    return values / values[0] if len(values) and values[0] else values


def _movement(methods: Sequence[Method], values: Values) -> Figure:
    """Curves where training logs them, and for every method where it ends on the test rows."""
    caption = (
        "Nats that the mean log-prob of a completion has moved from the base; solid: chosen, dashed: rejected, best "
        "settings. Points: on test rows at the end (circle: chosen, cross: rejected)."
    )
    series: list[Series] = []
    for colour, method in _coloured(methods):
        series += _moved(method.best, colour)
    return Figure("logprobs", "Chosen and rejected log-probs", "step", "moved by, nats", caption, series)


def _moved(setting: Setting, colour: str) -> Iterator[Series]:
    steps = max((run.summary.get("steps") or 0) for run in setting.runs)
    named = False
    for side, line, end in (("chosen", "line", "ends"), ("rejected", "dashed", "crosses")):
        x, y = _mean_curve(setting, f"{side}_logp_delta", lambda values: values)
        last = [run.measured("test", f"{side}_logp_delta") for run in setting.runs]
        if len(x):
            yield Series(setting.name, x, y, colour, line, in_legend=not named)
            named = True
        if None not in last:
            text = [f"{setting.name}, {side}, test rows"]
            yield Series(setting.name, [steps], [float(np.mean(last))], colour, end, text, in_legend=not named)
            named = True


def _mean_curve(setting: Setting, column: str, scale) -> tuple[list[float], list[float]]:
    """Empty where a seed has no such column."""
    curves = [_binned(run.curves, column, scale) for run in setting.runs]
    length = min(len(x) for x, _ in curves)
    if not length:
        return [], []
    return _rounded(curves[0][0][:length]), _rounded(np.mean([y[:length] for _, y in curves], axis=0))


def _binned(curves: Columns, column: str, scale) -> tuple[np.ndarray, np.ndarray]:
    values = scale(curves[column])
    if not len(values) or np.isnan(values).all():
        return np.empty(0), np.empty(0)
    bins = min(POINTS, max(10, len(values) // 4), len(values))
    parts = np.array_split(np.arange(len(values)), bins)
    return np.array([curves["step"][p].mean() for p in parts]), np.array([values[p].mean() for p in parts])


def _rounded(values: np.ndarray) -> list[float]:
    """Five digits are more than a screen shows, and weigh less. None is a gap."""
    return [float(f"{value:.5g}") if np.isfinite(value) else None for value in values]


def _coloured(methods: Sequence[Method]) -> Iterator[tuple[str, Method]]:
    for i, method in enumerate(methods):
        yield COLOURS[i % len(COLOURS)], method
