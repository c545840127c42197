"""Shares of the optimum, the span of its curve, and best of n."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest

from prefopt.metrics.optimum import Curve, Pool, best_of_n, mean_curve, prompt_curve, spanning_betas
from tests.metrics.pools import pooled

# ---------------------------------------------------------------- shares


def test_the_share_of_the_optimum_itself_is_one():
    """At the curve's points and, to the error of interpolation, between them."""
    pools = [pooled(seed, (0.5,), [600, 600]) for seed in (8, 9)]
    curve = mean_curve([prompt_curve(pool, spanning_betas(pools)) for pool in pools])
    between = mean_curve([prompt_curve(pool, np.geomspace(3.0, 0.3, 31)) for pool in pools])
    for points, tolerance in ((curve, 1e-12), (between, 1e-3)):
        kept = points.reliable & (points.kl >= 0.1) & (points.kl < curve.kl[curve.reliable][-1])
        shares = [curve.share_of_optimum(*point) for point in zip(points.gain[kept], points.kl[kept], strict=True)]
        assert len(shares) > 10
        assert shares == pytest.approx([1.0] * len(shares), abs=tolerance)


def made(effective_size, betas=(2.0, 1.0, 0.5, 1 / 3)) -> Curve:
    """Rewards 1 2 3 4 at KLs 0.25 1 4 9, which is a gain of 2 √KL, whose slope is 1 / √KL."""
    kl = np.array([0.25, 1.0, 4.0, 9.0])
    kwargs = {name: np.full(4, 0.5) for name in ("reward_stderr", "kl_stderr")}
    gain, stderr = 2 * np.sqrt(kl), np.array([0.1, 0.2, 0.3, 0.4])
    return Curve(
        betas=np.array(betas), reward=gain - 1, kl=kl, gain=gain, gain_stderr=stderr,
        effective_size=np.array(effective_size), reference=-1.0, largest=7.0, **kwargs,
    )  # fmt: skip


def test_shares_by_hand():
    curve = made([400.0, 300.0, 200.0, 100.0])
    assert curve.optimal_gain(2.25) == pytest.approx((3.0, 0.25))  # √: halfway between 1 and 2
    assert curve.optimal_gain(0.16) == pytest.approx((0.8, 0.08))  # before the first point, from the origin
    assert curve.share_of_optimum(1.5, 2.25) == pytest.approx(0.5)
    assert curve.share_of_optimum(-0.3, 2.25) == pytest.approx(-0.1)
    assert curve.share_of_optimum(6.0, 9.0) == pytest.approx(1.0)


@pytest.mark.parametrize("kl", [0.0, 0.0999, 9.01, math.nan])
def test_there_is_no_share_off_the_curve_or_near_the_reference(kl):
    assert made([400.0] * 4).share_of_optimum(1.0, kl) is None
    assert made([400.0] * 4).share_of_optimum(1.0, 0.1) is not None


def test_there_is_no_share_where_the_curve_is_unreliable():
    curve = made([400.0, 300.0, 99.9, 100.0])
    assert curve.reliable.tolist() == [True, True, False, True]
    assert curve.share_of_optimum(1.0, 0.99) is not None
    assert [curve.share_of_optimum(1.0, kl) for kl in (1.01, 4.0, 4.01, 8.9)] == [None] * 4
    assert made([99.0, 300.0, 300.0, 300.0]).share_of_optimum(1.0, 0.2) is None


def test_the_bound_by_hand():
    """Tangents of the reliable points: 2 (kl - .25), 1 + (kl - 1), 3 + (kl - 4) / 2; the largest reward is 7."""
    curve = made([400.0, 300.0, 200.0, 99.0])
    assert curve.bound(np.array([0.25, 1.0, 4.0, 6.0, 20.0])) == pytest.approx([0.0, 1.0, 3.0, 4.0, 7.0])
    assert made([99.0] * 4).bound(np.array([1.0])).tolist() == [7.0]


def test_the_mean_over_prompts_by_hand():
    first, second = made([400.0, 300.0, 200.0, 100.0]), made([50.0, 400.0, 400.0, 50.0])
    mean = mean_curve([first, second])
    assert mean.effective_size.tolist() == [50, 300, 200, 50]
    assert mean.kl.tolist() == first.kl.tolist()
    assert mean.gain_stderr == pytest.approx(first.gain_stderr / math.sqrt(2))
    assert (mean.reference, mean.largest) == (-1.0, 7.0)
    with pytest.raises(ValueError, match="different betas"):
        mean_curve([first, made([400.0] * 4, betas=(2.0, 1.0, 0.5, 0.3))])


# ---------------------------------------------------------------- the span of β


def test_betas_span_the_wished_kl():
    pools = [pooled(seed, (0.3,), [500, 500]) for seed in (10, 11)]
    betas = spanning_betas(pools, lowest=0.02, highest=3.0, points=7)
    curve = mean_curve([prompt_curve(pool, betas) for pool in pools])
    assert len(betas) == 7
    assert curve.kl[[0, -1]] == pytest.approx([0.02, 3.0], rel=1e-6)
    assert betas[:-1] / betas[1:] == pytest.approx(betas[0] / betas[1])


def test_betas_end_where_the_samples_do():
    pool = pooled(12, (), [200])
    last = prompt_curve(pool, spanning_betas([pool])).kl[-1]
    times = (pool.rewards == pool.rewards.max()).sum()
    assert last == pytest.approx(0.99 * math.log(200 / times), rel=1e-6)
    with pytest.raises(ValueError, match="up to 0 nats"):
        spanning_betas([Pool(np.ones(5), np.full((1, 5), -1.0), np.zeros(5, int))])
    with pytest.raises(ValueError, match="none of 9"):
        spanning_betas([pool], lowest=9.0)


# ---------------------------------------------------------------- best of n


def subsets(values, n) -> float:
    return float(np.mean([max(subset) for subset in combinations(values, n)]))


def of_reference(values, others=()) -> Pool:
    """A pool whose other policy's samples must not matter."""
    source = np.repeat([0, 1], [len(values), len(others)])
    return Pool(np.array([*values, *others], dtype=float), np.full((2, len(source)), -2.0), source)


VALUES = [0.3, -1.0, 2.0, 0.3, 1.1, -0.4, 5.0]


@pytest.mark.parametrize("n", range(1, 7))
def test_best_of_n_is_the_mean_over_all_subsets(n):
    found = best_of_n([of_reference(VALUES, [9.0, 9.0])], [n])
    assert found.reward == pytest.approx(subsets(VALUES, n))
    assert found.kl == pytest.approx(math.log(n) - (n - 1) / n)
    left_out = [subsets(VALUES[:i] + VALUES[i + 1 :], n) for i in range(7)]
    assert found.stderr == pytest.approx(math.sqrt(6 * np.var(left_out)))


def test_best_of_one_is_the_mean():
    """And its error that of a mean; over two prompts, their mean and half the root of the sum of squares."""
    pools = [of_reference(VALUES), of_reference([1.0, 2.0, 6.0])]
    found = best_of_n(pools, [1])
    errors = [np.std(VALUES, ddof=1) / math.sqrt(7), np.std([1, 2, 6], ddof=1) / math.sqrt(3)]
    assert found.reward == pytest.approx((np.mean(VALUES) + 3) / 2)
    assert found.stderr == pytest.approx(math.hypot(*errors) / 2)
    assert found.kl == 0


def test_best_of_n_touches_the_curve_from_below():
    pool = pooled(13, (0.5,), [20_000, 20_000])
    curve, best = prompt_curve(pool, spanning_betas([pool])), best_of_n([pool], [2, 4, 8, 16])
    shares = [curve.share_of_optimum(*point) for point in zip(best.reward - curve.reference, best.kl, strict=True)]
    assert min(shares) > 0.9
    assert max(shares) < 1.01


def test_best_of_many_needs_more_samples():
    with pytest.raises(ValueError, match="1 <= n < 7"):
        best_of_n([of_reference(VALUES)], [2, 7])
    with pytest.raises(ValueError, match="1 <= n < 7"):
        best_of_n([of_reference(VALUES)], [0])
