"""Runs held against a known optimum by hand: shares, what is impossible, what is drawn and written."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest

from prefopt.metrics.optimum import BestOf, Curve, Pool
from prefopt.reports.compare.drawing import plotly_traces, save_png
from prefopt.reports.compare.measures import run_values
from prefopt.reports.compare.optimum import Optimum
from prefopt.reports.compare.page import page
from prefopt.reports.compare.report import Report, build
from prefopt.reports.compare.runs import Run, read_runs
from prefopt.reports.compare.tables import optimum_csv, results_csv, results_md
from tests.reports.fake import DEFAULTS, write_run

KL = np.array([0.25, 1.0, 4.0, 9.0])


def made(effective_size: tuple[float, ...] = (400.0, 300.0, 200.0, 100.0), mass: float = 1.0) -> Optimum:
    """Rewards 0 1 3 5, which is 2 √KL - 1; so the slope is 1 / √KL."""
    curve = Curve(
        betas=1 / np.sqrt(KL),
        reward=2 * np.sqrt(KL) - 1,
        reward_stderr=np.array([0.03, 0.3, 0.3, 0.3]),
        kl=KL,
        kl_stderr=np.full(4, 0.3),
        gain=2 * np.sqrt(KL),
        gain_stderr=np.array([0.1, 0.2, 0.4, 0.5]),
        effective_size=np.array(effective_size),
        reference=-1.0,
        largest=7.0,
    )
    n = np.array([2, 4])
    best = BestOf(n, np.array([-0.2, 0.3]), np.array([0.01, 0.02]), np.log(n) - (n - 1) / n)
    return Optimum(curve, best, (mass, 0.01), 600, 32, ("near", "far"))


def run_at(folder: Path, kl: float, gold: float, error: float | None = 0.04, **more) -> Run:
    samples = {"kl": kl, "kl_stderr": 0.12, "gold_reward": gold, "gold_reward_stderr": error, "length": 10.0}
    write_run(folder, summary={"samples": {**samples, "distinct_2": 0.5, "repetition": 0.0}}, **more)
    return read_runs([folder]).runs[0]


def report_of(folder: Path, optimum: Optimum | None) -> Report:
    return build(read_runs([folder]), DEFAULTS, optimum)


# ---------------------------------------------------------------- shares


def test_a_share_and_its_error_by_hand(tmp_path: Path):
    """At 2.25 nats the optimum gains 3 ± 0.3, halfway between 2 and 4 in √KL; β there, between 1 and 1/2 in KL, is
    1 - 1.25/3/2. The run gains 0.5 + 1."""
    beta = 1 - 1.25 / 6
    found = made().share(run_at(tmp_path / "run", 2.25, 0.5))
    assert found is not None
    assert found[0] == pytest.approx(0.5)
    assert found[1] == pytest.approx(math.hypot(0.04, 0.03, 0.5 * beta * 0.12, 0.5 * 0.3) / 3)


@pytest.mark.parametrize(
    ("kl", "sizes"), [(0.09, (400, 300, 200, 100)), (9.1, (400, 300, 200, 100)), (2.0, (400, 300, 99, 50))]
)
def test_there_is_no_share_near_the_base_nor_out_of_reach(tmp_path: Path, kl: float, sizes: tuple[float, ...]):
    run = run_at(tmp_path / "run", kl, 0.5)
    assert made(sizes).share(run) is None
    values = run_values(run, made(sizes))
    assert (values["share_of_optimum"], values["share_stderr"]) == (None, None)


def test_a_share_without_error_and_no_optimum(tmp_path: Path):
    run = run_at(tmp_path / "run", 1.0, 0.0, error=None)
    assert made().share(run) == (pytest.approx(0.5), None)
    assert run_values(run)["share_of_optimum"] is None


def test_shares_over_seeds(tmp_path: Path):
    """Gains 0.5 and 1 of 2: the mean of the shares 0.25 and 0.5; its interval is Student's with one degree."""
    for seed, gold in enumerate((-0.5, 0.0)):
        run_at(tmp_path / str(seed), 1.0, gold, seed=seed)
    (line,) = report_of(tmp_path, made()).lines
    share = line.values["share_of_optimum"]
    assert share.mean == pytest.approx(0.375)
    assert share.high - share.mean == pytest.approx(12.706 * 0.125, rel=1e-3)


# ---------------------------------------------------------------- what is impossible


def test_more_than_the_optimum_is_said(tmp_path: Path):
    """At 2.25 nats the tangent at 4 is the lowest: 3 - 1.75/2 = 2.125. The error is 0.303: 0.04, 0.03, β · 0.12 = 0.095
    and, between 0.2 and 0.4 in KL, 0.2833; three of them are 0.909."""
    error = math.hypot(0.04, 0.03, (1 - 1.25 / 6) * 0.12, 0.2 + 0.2 * 1.25 / 3)
    run_at(tmp_path / "below", 2.25, 2.125 + 3 * error - 0.01, loss="ipo")
    within = report_of(tmp_path, made())
    assert within.flags == []
    assert "No setting is above the optimum by more than 3 standard errors." in within.notes
    run_at(tmp_path / "above", 2.25, 2.125 + 3 * error + 0.01)
    found = report_of(tmp_path, made())
    expected = "above the optimum: gold reward 3.044 at 2.250 nats, where no policy has more than 2.125 (error 0.303)"
    ((name, said),) = found.flags
    assert name == "dpo (beta=0.1)"
    assert said.startswith(expected)
    assert not any("No setting is above" in note for note in found.notes)


def test_the_largest_reward_bounds_what_no_sample_reaches():
    """At 100 nats the tangents allow 5 + 91/3, and the largest reward is 7. Left of the base nothing is gained."""
    assert made().ceiling(100.0) == 7.0
    assert made().ceiling(-0.01) == made().ceiling(0.0) == -0.5  # the first point's tangent, 0 - 2 / 4
    assert made().above(7.5, 0.0, 100.0, 0.0)[0] == 0.5


def test_samples_without_their_log_probs_are_said(tmp_path: Path):
    run_at(tmp_path / "run", 1.0, 0.0)
    assert report_of(tmp_path, made(mass=1.02)).flags == []
    ((name, said),) = report_of(tmp_path, made(mass=1.04)).flags
    assert name == "optimum"
    assert "1.040 ± 0.010 on average and must be 1; believe no share" in said


# ---------------------------------------------------------------- from samples


def test_an_optimum_of_pools():
    """Two prompts, of which one's samples are worth one more: means over both."""
    rng = np.random.default_rng(0)
    rewards, logps, source = rng.normal(size=200), np.full((2, 200), -3.0), np.repeat([0, 1], [140, 60])
    pools = [Pool(rewards, logps, source), Pool(rewards + 1, logps, source)]
    found = Optimum.of(pools, [5.0, 7.0], ["one"])
    assert (found.samples, found.prompts, found.policies, found.mass[0]) == (200, 2, ("one",), pytest.approx(1.0))
    assert found.curve.largest == 6.0
    assert found.curve.reference == pytest.approx(rewards.mean() + 0.5)
    assert found.best.n.tolist() == [2, 4, 8, 16, 32, 64]
    few = Optimum.of([Pool(rewards[:20], logps[:, :20], source[:20])], [5.0], [])
    assert few.best.n.tolist() == [2, 4, 8, 16]
    with pytest.raises(ValueError, match="none of"):
        Optimum.of([Pool(np.zeros(20), logps[:, :20], source[:20])], [5.0], [])


# ---------------------------------------------------------------- what is drawn and written


def test_what_the_figure_shows(tmp_path: Path):
    """Solid to the last point with enough samples, dashed to the last one, dotted the bound, all in place."""
    run_at(tmp_path / "dpo", 12.0, 1.0)
    run_at(tmp_path / "more", 0.5, 0.1, beta=0.5)
    run_at(tmp_path / "ipo", 3.0, 0.5, loss="ipo")
    figure = report_of(tmp_path, made((400, 300, 99, 50))).figures[0]
    drawn = {series.name: series for series in figure.series if series.style in ("line", "dashed", "dotted")}
    spans = {name: (series.x[0], series.x[-1]) for name, series in drawn.items()}
    assert spans["π* (optimum)"] == pytest.approx((0.0, 1.0))
    assert spans["π*, few samples"] == pytest.approx((1.0, 9.0))
    assert spans["bound"] == pytest.approx((1.0, 12.6))
    assert drawn["best of n"].x == pytest.approx(made().best.kl, abs=1e-4)
    for name in ("π* (optimum)", "π*, few samples"):
        x, y = np.array(drawn[name].x), drawn[name].y
        assert y == pytest.approx(2 * np.sqrt(x) - 1, abs=1e-3)
    assert drawn["bound"].y[-1] == 7.0
    assert [series.x for series in figure.series if series.name == "base"] == [[0.0]]
    assert [series.y for series in figure.series if series.name == "base"] == [[-1.0]]
    fronts = [series for series in figure.series if series.style == "dashed" and "π" not in series.name]
    assert [(f.name, f.x) for f in fronts] == [("dpo", [0.5, 12.0]), ("Pareto front", [0.5, 3.0, 12.0])]
    assert "π*: no policy has more reward at its KL" in figure.caption
    assert len(plotly_traces(figure)) == len(figure.series)
    save_png(figure, tmp_path / "frontier.png")
    all_solid = report_of(tmp_path / "ipo", made()).figures[0]
    assert [s.x[-1] for s in all_solid.series if "π" in s.name] == [pytest.approx(3.15)]


def test_what_is_written(tmp_path: Path):
    run_at(tmp_path / "run", 2.25, 0.5)
    report = report_of(tmp_path, made((400, 300, 200, 99)))
    row = next(csv.DictReader(StringIO(results_csv(report))))
    assert float(row["share_of_optimum"]) == pytest.approx(0.5)
    assert float(row["share_stderr"]) == pytest.approx(0.0550, abs=1e-4)
    lines = list(csv.DictReader(StringIO(optimum_csv(report.optimum))))
    assert [line["reliable"] for line in lines] == ["true", "true", "true", "false", "", ""]
    assert [float(line["kl"]) for line in lines[:4]] == KL.tolist()
    assert [line["best_of"] for line in lines[4:]] == ["2", "4"]
    assert float(lines[4]["gain"]) == pytest.approx(0.8)
    for text in (page(report), results_md(report)):
        assert "share of optimum" in text
        assert "as a share of the most that any policy gains at the same KL" in text
        assert "which is beyond 4.00 nats" in text


def test_runs_without_an_optimum_say_nothing_of_it(tmp_path: Path):
    run_at(tmp_path / "run", 2.25, 0.5)
    report = report_of(tmp_path, None)
    assert "optimum" not in results_md(report)
    assert "π*" not in json.dumps(plotly_traces(report.figures[0]), ensure_ascii=False)
    missed = build(read_runs([tmp_path]), DEFAULTS, None, "No optimum: why.")
    assert missed.notes[-1] == "No optimum: why."
    assert replace(missed, notes=report.notes).notes == report.notes
