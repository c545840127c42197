"""The statistics of a comparison, by numbers worked out beside them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from prefopt.reports.compare.statistics import (
    Estimate,
    area,
    brier,
    calibration_error,
    estimate,
    holm,
    judged,
    over_seeds,
    pareto,
    resampled_means,
    win_rate_at_equal_length,
)


def test_the_interval_of_three_seeds():
    """1, 2, 3: mean 2, sd 1, t(0.975, 2 df) = 4.302653; half-width 4.302653 / √3 = 2.484138."""
    found = estimate([1.0, 2.0, 3.0])
    assert (found.mean, found.n) == (2, 3)
    assert found.low == pytest.approx(2 - 2.484138, abs=1e-6)
    assert found.high == pytest.approx(2 + 2.484138, abs=1e-6)


def test_one_seed_has_no_interval():
    assert estimate([0.5]) == Estimate(0.5, None, None, 1)


def test_the_area_counts_pairs_and_halves_ties():
    """Good 3, 1 against bad 2, 1: 3>2, 3>1, 1<2, 1=1 give (1 + 1 + 0 + ½) / 4."""
    values, good = np.array([3.0, 2.0, 1.0, 1.0]), np.array([True, False, True, False])
    assert area(values, good) == pytest.approx(2.5 / 4)
    assert area(values, np.ones(4, dtype=bool)) is None
    assert area(np.array([1.0, np.nan]), np.array([True, False])) is None


def test_brier_and_calibration_by_hand():
    """log-odds log 3: p = 3/4 for what was preferred; log-odds -log 3: p = 1/4."""
    odds = np.array([math.log(3), math.log(3), -math.log(3)])
    assert brier(odds) == pytest.approx((1 / 16 + 1 / 16 + 9 / 16) / 3)
    # Confidence is 3/4 in all three, right in two: |2/3 - 3/4|.
    assert calibration_error(odds) == pytest.approx(1 / 12)
    assert calibration_error(np.zeros(4)) == 0  # a coin that says it is one
    assert brier(np.zeros(4)) == 0.25
    # Another bin: log 19 is confidence 0.95, wrong. (1/4)·0.95 + (3/4)·(1/12)
    assert calibration_error(np.append(odds, -math.log(19))) == pytest.approx(0.95 / 4 + 1 / 16)


def test_wins_at_equal_length_take_away_what_length_won():
    """Longer by 1 wins three of four, shorter by 1 one of four: at equal length neither is favoured. With one length
    there is nothing to take away, and where length plays no part nearly nothing."""
    won = np.array([1.0, 1, 1, 0, 1, 0, 0, 0])
    longer = np.array([1.0] * 4 + [-1.0] * 4)
    assert win_rate_at_equal_length(won, longer) == pytest.approx(0.5, abs=1e-6)
    assert win_rate_at_equal_length(won[:4], longer[:4]) == 0.75
    assert win_rate_at_equal_length(np.array([1.0, 1, 1, 0] * 2), longer) == pytest.approx(0.75, abs=0.002)
    # All of it by length: mostly longer answers that always win, shorter ones that never do.
    assert win_rate_at_equal_length(np.array([1.0, 1, 1, 0]), np.array([1.0, 1, 1, -1])) < 0.65


def test_holm_by_hand():
    """0.01·3, then 0.03·2, then max(0.06, 0.04·1)."""
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1, 1]
    assert holm([]) == []


def test_resampled_units_vary_as_a_mean_does():
    """The standard deviation of a mean of n values is their sd (over n - 1) / √n; lines see the same draws."""
    values = np.random.default_rng(3).normal(size=400)
    draws = resampled_means(np.stack([values, values + 1]), np.random.default_rng(0))
    assert draws.shape == (2, 10_000)
    assert draws[0].std() == pytest.approx(values.std(ddof=1) / 20, rel=0.03)
    assert draws[0].mean() == pytest.approx(values.mean(), abs=3 * values.std() / 20 / 100)
    np.testing.assert_allclose(draws[1] - draws[0], 1)


def test_rows_of_one_unit_are_drawn_together():
    """Three rows of 1 and one of 0: a mean of 3/4, of the units drawn twice 1 or 0. Two units vary by half too little:
    what lies beside the mean is √2 as far from it."""
    draws = resampled_means(np.array([[3.0, 0.0]]), np.random.default_rng(0), sizes=np.array([3, 1]))
    found, often = np.unique(draws.round(9), return_counts=True)
    assert found == pytest.approx([0.75 - 0.75 * math.sqrt(2), 0.75, 0.75 + 0.25 * math.sqrt(2)])
    assert often / 10_000 == pytest.approx([0.25, 0.5, 0.25], abs=0.02)


def test_resampled_units_do_not_depend_on_memory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("prefopt.reports.compare.statistics._AT_ONCE", 7)
    draws = resampled_means(np.array([[0.0, 1.0, 2.0]]), np.random.default_rng(0), draws=3001)
    assert draws.shape == (1, 3001)
    assert draws.mean() == pytest.approx(1, abs=0.05)


def test_resampled_seeds_vary_as_their_mean_does():
    """Seeds 0, 1, 2: unbiased variance 1, of their mean 1/3; the plain bootstrap would give 2/9."""
    means = np.repeat([[0.0], [1.0], [2.0]], 40_000, axis=1)
    draws = over_seeds(means, np.random.default_rng(0))
    assert draws.var() == pytest.approx(1 / 3, rel=0.03)
    assert draws.mean() == pytest.approx(1, abs=0.01)
    assert (over_seeds(means[:1], np.random.default_rng(0)) == 0).all()


def test_with_seeds_alone_the_verdict_is_that_of_a_t_test():
    """Seeds 0, 1, 2: mean 1, standard error 1 / √3, t(0.975, 2 df) = 4.302653."""
    seeds, error = np.array([0.0, 1.0, 2.0]), math.sqrt(1 / 3)
    low, high, p = judged(1.0, np.array([1 - error, 1 + error]), [seeds], 1000)
    assert (low, high) == pytest.approx((1 - 4.302653 * error, 1 + 4.302653 * error), abs=1e-6)
    assert p == pytest.approx(stats.ttest_1samp(seeds, 0).pvalue)


def test_rows_and_seeds_share_their_degrees_of_freedom():
    """Variances 1/3 (2 df) of seeds and 2/3 (4 df) of five rows: 1 / ((1/3)²/2 + (2/3)²/4) = 6 df."""
    low, high, p = judged(2.0, np.array([1.0, 3.0]), [np.array([0.0, 1.0, 2.0])], 5)
    assert (low, high) == pytest.approx((2 - 2.446912, 2 + 2.446912), abs=1e-6)  # t(0.975, 6 df)
    assert p == pytest.approx(2 * stats.t.sf(2, 6))


def test_one_seed_leaves_the_rows_and_few_rows_tell_little():
    assert judged(2.0, np.array([1.0, 3.0]), [np.array([2.0])], 5)[2] == pytest.approx(2 * stats.t.sf(2, 4))
    assert judged(1.0, np.ones(9), [np.array([1.0])], 3) == (1, 1, 0.25)  # three coins fall alike in 2 of 8 throws
    assert judged(0.0, np.zeros(9), [np.array([0.0])], 3) == (0, 0, 1)


def test_the_front_is_what_nobody_beats():
    cost, gain = [1.0, 2.0, 2.0, 3.0, 0.5], [1.0, 3.0, 2.0, 2.5, 0.2]
    assert pareto(cost, gain) == [4, 0, 1]
