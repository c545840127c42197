"""The known optimum by hand, by enumeration, and by what must not change it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from prefopt.metrics.optimum import Pool, mean_curve, prompt_curve, reference_mass, spanning_betas
from tests.metrics.pools import OUTCOMES, draw, exact, exact_gain, normalised, pooled, trained, world

LOG3 = math.log(3)

# ---------------------------------------------------------------- by hand


def test_two_outcomes_by_hand():
    """A: probability 3/4, reward 0. B: 1/4, 1. Samples A A A B, and exp(1/β) = 3, so Z = 3/4 + 3/4 and π* is even.

    p = 1/6 1/6 1/6 1/2, so 1 / Σp² = 1 / (3/36 + 1/4) = 3. All three ψ are multiples of (-1, -1, -1, 3) / 12, whose sum
    has the variance 4 · (12 / 144) / 3 = 1/9: the multiples are 1, log 3 - 1 and β - 3/4.
    """
    logps = np.log([[3 / 4, 3 / 4, 3 / 4, 1 / 4]])
    curve = prompt_curve(Pool(np.array([0.0, 0.0, 0.0, 1.0]), logps, np.zeros(4, int)), np.array([1 / LOG3]), 1.0)
    assert curve.reward == pytest.approx(1 / 2)
    assert curve.reference == pytest.approx(1 / 4)
    assert curve.gain == pytest.approx(1 / 4)
    assert curve.kl == pytest.approx(math.log(2 / math.sqrt(3)))
    assert curve.effective_size == pytest.approx(3)
    assert curve.reward_stderr == pytest.approx(1 / 3)
    assert curve.kl_stderr == pytest.approx((LOG3 - 1) / 3)
    assert curve.gain_stderr == pytest.approx((1 / LOG3 - 3 / 4) / 3)
    assert curve.largest == 1.0


def test_two_policies_by_hand():
    """The same reference and its mirror, in proportion: A A A B, A B B B. The mixture is even: π_ref / q = 3/2 and 1/2.

    u = 3/16 and 1/16, p = 1/8 each. ψ of the reward is ∓1/16; within the reference's samples it deviates by -1/32 three
    times and 3/32 once, so 4 · 12 / 1024 / 3 = 1/64, and as much within the other's. The same for π_ref / q over 8.
    """
    b = np.array([0, 0, 0, 1, 0, 1, 1, 1])
    logps = np.log(np.where(b, [[1 / 4], [3 / 4]], [[3 / 4], [1 / 4]]))
    pool = Pool(b.astype(float), logps, np.repeat([0, 1], 4))
    curve = prompt_curve(pool, np.array([1 / LOG3]))
    assert curve.reference == pytest.approx(1 / 4)
    assert curve.reward == pytest.approx(1 / 2)
    assert curve.kl == pytest.approx(math.log(2 / math.sqrt(3)))
    assert curve.effective_size == pytest.approx(1 / (4 * (3 / 16) ** 2 + 4 * (1 / 16) ** 2))  # of u; that of p is 8
    assert curve.reward_stderr == pytest.approx(math.sqrt(1 / 32))
    assert reference_mass([pool]) == pytest.approx((1.0, math.sqrt(1 / 32)))
    assert reference_mass([pool] * 4) == pytest.approx((1.0, math.sqrt(1 / 32) / 2))


def test_the_reference_may_be_any_policy_and_unsampled_ones_do_not_matter():
    rng, (log_ref, rewards) = np.random.default_rng(0), world(0)
    policies = [log_ref, trained(log_ref, rewards, 0.5, rng), normalised(rng.normal(size=OUTCOMES))]
    pool = draw(rng, rewards, policies, [300, 200, 0])
    other = Pool(pool.rewards, pool.logps[[2, 1, 0]], 2 - pool.source, reference=2)
    for name in ("reward", "kl", "gain_stderr", "effective_size"):
        found = [getattr(prompt_curve(p, np.array([2.0, 0.7])), name) for p in (pool, other)]
        assert found[0] == pytest.approx(found[1], rel=1e-12), name
    alone = Pool(pool.rewards, pool.logps[:2], pool.source)
    assert prompt_curve(alone, np.array([0.7])).kl == pytest.approx(prompt_curve(pool, np.array([0.7])).kl, rel=1e-12)


# ---------------------------------------------------------------- by enumeration


@pytest.mark.parametrize(
    ("policies_at", "counts", "betas"),
    [((), [20_000], [4.0, 2.0, 1.0, 0.8]), ((0.6, 0.35), [8000, 6000, 6000], [2.0, 1.0, 0.6, 0.4, 0.3])],
)
def test_the_estimate_agrees_with_enumeration(policies_at, counts, betas):
    """To 2 % of the gain in the mean of four prompts, where the effective size is 2,000 or more."""
    seeds = range(4)
    curve = mean_curve([prompt_curve(pooled(seed, policies_at, counts), np.array(betas)) for seed in seeds])
    gain, kl = np.array([[exact_gain(*world(seed), beta) for beta in betas] for seed in seeds]).mean(0).T
    assert (curve.effective_size >= 2000).all(), curve.effective_size
    assert curve.gain == pytest.approx(gain, rel=0.02)
    assert curve.kl == pytest.approx(kl, rel=0.03)
    at_its_kl = [
        curve.share_of_optimum(*point) for point in zip(gain, kl, strict=True) if 0.1 <= point[1] < curve.kl[-1]
    ]
    assert at_its_kl == pytest.approx([1.0] * len(at_its_kl), abs=0.02)
    assert len(at_its_kl) >= 2


@pytest.mark.parametrize(("policies_at", "counts"), [((), [2000]), ((0.6, 0.3), [1000, 600, 400])])
def test_errors_cover_as_often_as_they_say(policies_at, counts):
    """400 draws from one world: 95 % intervals of reward, KL and gain hold the exact values in 92 to 98 % of them.

    The gain's is about its own KL, read from the exact curve.
    """
    rng, (log_ref, rewards) = np.random.default_rng(5), world(5)
    policies = [log_ref, *(trained(log_ref, rewards, beta, rng) for beta in policies_at)]
    betas = np.array([2.0, 1.0])
    truth = np.array([exact(log_ref, rewards, beta) for beta in betas])
    table = np.array([exact_gain(log_ref, rewards, beta) for beta in np.geomspace(20, 0.3, 2000)])
    covered = np.zeros((3, len(betas)))
    for _ in range(400):
        curve = prompt_curve(draw(rng, rewards, policies, counts), betas)
        own = np.interp(curve.kl, table[:, 1], table[:, 0])
        covered[0] += np.abs(curve.reward - truth[:, 0]) < 1.96 * curve.reward_stderr
        covered[1] += np.abs(curve.kl - truth[:, 1]) < 1.96 * curve.kl_stderr
        covered[2] += np.abs(curve.gain - own) < 1.96 * curve.gain_stderr
    assert (covered >= 0.92 * 400).all(), covered / 400
    assert (covered <= 0.98 * 400).all(), covered / 400


def test_samples_near_the_optimum_raise_the_effective_size():
    """At small β: the same number of samples, half of them from policies that have been there."""
    beta = np.array([0.4])
    alone = prompt_curve(pooled(1, (), [4000]), beta)
    helped = prompt_curve(pooled(1, (0.8, 0.4), [2000, 1000, 1000]), beta)
    assert helped.effective_size > 4 * alone.effective_size
    assert helped.kl_stderr < alone.kl_stderr / 2


def test_no_policy_is_above_the_curve_or_its_bound():
    """Exact gains and KLs of other policies, near and far; the bound holds beyond the last reliable point."""
    rng, (log_ref, rewards) = np.random.default_rng(2), world(2)
    pool = draw(rng, rewards, [log_ref], [4000])
    curve = prompt_curve(pool, spanning_betas([pool]), rewards.max())
    reference, shares, beyond = float(np.exp(log_ref) @ rewards), [], 0
    for beta in np.geomspace(3, 0.1, 40):
        policy = trained(log_ref, rewards, beta, rng)
        reward, kl = float(np.exp(policy) @ rewards), float(np.exp(policy) @ (policy - log_ref))
        assert reward < curve.bound(np.array([kl]))[0] + 0.02
        share = curve.share_of_optimum(reward - reference, kl)
        shares += [share] if share is not None else []
        beyond += kl > curve.kl[curve.reliable][-1]
    assert len(shares) > 10
    assert beyond > 10
    assert max(shares) < 1.02
    assert min(shares) > 0.3


def test_wrong_log_probs_move_the_mass_of_the_reference():
    pool = pooled(3, (0.6,), [2000, 2000])
    mass, stderr = reference_mass([pool])
    assert abs(mass - 1) < 3 * stderr
    cooled = Pool(pool.rewards, np.stack([pool.logps[0], pool.logps[1] * 1.2]), pool.source)
    mass, stderr = reference_mass([cooled])
    assert abs(mass - 1) > 5 * stderr


# ---------------------------------------------------------------- invariances and limits


BETAS = np.array([3.0, 1.0, 0.4, 0.1])


def test_a_constant_shifts_rewards_alone_and_a_unit_scales_them():
    """The constant costs the KL no digits: rewards are whole multiples of 2^-20, so adding 2^24 rounds none."""
    drawn = pooled(4, (0.5,), [400, 300])
    pool = Pool(np.round(drawn.rewards * 2**20) / 2**20, drawn.logps, drawn.source)
    curve = prompt_curve(pool, BETAS)
    shifted = prompt_curve(Pool(pool.rewards + 2**24, pool.logps, pool.source), BETAS)
    scaled = prompt_curve(Pool(pool.rewards * 7, pool.logps, pool.source), BETAS * 7)
    assert shifted.reward == pytest.approx(curve.reward + 2**24, rel=1e-12)
    assert shifted.kl == pytest.approx(curve.kl, rel=1e-12)
    assert shifted.kl_stderr == pytest.approx(curve.kl_stderr, rel=1e-6)
    assert scaled.reward == pytest.approx(7 * curve.reward, rel=1e-12)
    assert scaled.gain_stderr == pytest.approx(7 * curve.gain_stderr, rel=1e-9)
    for name in ("kl", "kl_stderr", "effective_size"):
        assert getattr(scaled, name) == pytest.approx(getattr(curve, name), rel=1e-9), name


def test_the_order_of_the_samples_does_not_matter():
    pool = pooled(4, (0.5,), [400, 300])
    order = np.random.default_rng(0).permutation(700)
    other = prompt_curve(Pool(pool.rewards[order], pool.logps[:, order], pool.source[order]), BETAS)
    curve = prompt_curve(pool, BETAS)
    for name in ("reward", "kl", "gain", "reward_stderr", "kl_stderr", "gain_stderr", "effective_size"):
        assert getattr(other, name) == pytest.approx(getattr(curve, name), rel=1e-10), name


def test_limits_of_beta():
    """β → ∞: the reference. β → 0: the best sample, at -log of its probability among the samples."""
    pool = pooled(6, (), [500])
    weak, strong = prompt_curve(pool, np.array([1e7])), prompt_curve(pool, np.array([1e-7]))
    assert weak.kl == pytest.approx(0, abs=1e-12)
    assert weak.reward == pytest.approx(pool.rewards.mean(), abs=1e-6)
    assert weak.effective_size == pytest.approx(500)
    times = (pool.rewards == pool.rewards.max()).sum()
    assert strong.reward == pytest.approx(pool.rewards.max())
    assert strong.kl == pytest.approx(math.log(500 / times))
    assert strong.effective_size == pytest.approx(times)


def test_the_slope_of_the_curve_is_beta():
    curve = prompt_curve(pooled(7, (0.5,), [400, 300]), np.geomspace(1.01, 1.0, 2))
    assert np.diff(curve.reward) / np.diff(curve.kl) == pytest.approx(1.005, rel=1e-4)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rewards": np.zeros(5)}, "needs 4 finite rewards"),
        ({"rewards": np.array([0.0, 1.0, math.nan, 0.0])}, "needs 4 finite rewards"),
        ({"source": np.zeros(3, int)}, "4 sources"),
        ({"source": np.array([0, 0, 0, 2])}, "each of the 2 policies"),
        ({"source": np.array([0, 0, 0, 1])}, r"at least 2.*\[3, 1\]"),
        ({"source": np.ones(4, int)}, r"the reference \(number 0\) some"),
        ({"logps": np.full((2, 4), 2.0)}, "at most 0"),
        ({"logps": np.array([[-math.inf, -1.0, -1.0, -1.0], [-1.0] * 4])}, "finite for the policy"),
        ({"logps": np.array([[-1.0] * 4, [math.nan, -1.0, -1.0, -1.0]])}, "at most 0"),
    ],
)
def test_a_pool_that_cannot_be_is_refused(change, message):
    right = {"rewards": np.zeros(4), "logps": np.full((2, 4), -1.0), "source": np.array([0, 0, 1, 1])}
    Pool(**right)
    with pytest.raises(ValueError, match=message):
        Pool(**right | change)


def test_betas_must_fall():
    for betas in ([1.0, 2.0], [1.0, 1.0], [1.0, 0.0]):
        with pytest.raises(ValueError, match="positive and fall"):
            prompt_curve(Pool(np.zeros(4), np.full((1, 4), -1.0), np.zeros(4, int)), np.array(betas))
