"""The statistics of a comparison: pure functions of arrays, each with its definition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats
from scipy.special import expit

LEVEL = 0.95
DRAWS = 10_000
BINS = 10
_AT_ONCE = 4_000_000  # resampled units held in memory


@dataclass(frozen=True)
class Estimate:
    """A mean over n seeds with its interval; None where a single seed cannot tell."""

    mean: float
    low: float | None
    high: float | None
    n: int


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and 95 % interval, Student's t with n - 1 degrees of freedom."""
    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return Estimate(mean, None, None, n)
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1) * stats.sem(values))
    return Estimate(mean, mean - half, mean + half, n)


def area(values: np.ndarray, good: np.ndarray) -> float | None:
    """Area under the ROC curve: how often a good value lies above a bad one, a tie one half. [n], [n] bool."""
    n, m = int(good.sum()), int((~good).sum())
    if not n or not m or not np.isfinite(values).all():
        return None
    return float((stats.rankdata(values)[good].sum() - n * (n + 1) / 2) / (n * m))


def brier(log_odds: np.ndarray) -> float:
    """Mean (1 - p)², p = σ(log-odds) the probability given to what was in fact preferred; 1/4 for a coin."""
    return float(np.mean(expit(-log_odds) ** 2))


def calibration_error(log_odds: np.ndarray) -> float:
    """Expected calibration error: |accuracy - confidence|, averaged over ten bins of confidence in [½, 1] by size.

    log_odds: [n] of the completion that was in fact preferred. Confidence is the larger of p and 1 - p; a tie is
    half right.
    """
    confidence = expit(np.abs(log_odds))
    right = np.heaviside(log_odds, 0.5)
    bins = np.minimum(((confidence - 0.5) * 2 * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bins, right - confidence, minlength=BINS)
    return float(np.abs(gaps).sum() / len(log_odds))


def win_rate_at_equal_length(won: np.ndarray, longer: np.ndarray) -> float:
    """What a logistic regression of winning on tanh(length difference in its standard deviations) predicts at none;
    Dubois et al. 2024, https://arxiv.org/abs/2404.04475, Eq. 1, for one model.

    won: [n] 1, 0, or ½ at a tie. longer: [n] by how much the answer is longer.
    """
    spread = longer.std()
    if not spread:
        return float(won.mean())
    x = np.tanh(longer / spread)
    penalty = 1e-3  # keeps the slope finite where length decides every win

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        odds = weights[0] + weights[1] * x
        error = expit(odds) - won
        slope = np.array([error.mean(), (error * x).mean()]) + penalty * weights
        return float((np.logaddexp(0, odds) - won * odds).mean() + penalty * (weights @ weights) / 2), slope

    return float(expit(optimize.minimize(loss, np.zeros(2), jac=True).x[0]))


def resampled_means(
    sums: np.ndarray, rng: np.random.Generator, draws: int = DRAWS, sizes: np.ndarray | None = None
) -> np.ndarray:
    """[lines, units] to [lines, draws]: each line's mean over units drawn with replacement, the same for all lines.

    sums: over the rows of each unit, of which there are `sizes` [units], one unless given. What they vary by is widened
    by √(n/(n-1)): n units resampled vary by (n-1)/n too little.
    """
    units = sums.shape[1]
    sizes = np.ones(units) if sizes is None else sizes
    found = []
    for first in range(0, draws, max(1, _AT_ONCE // units)):
        n = min(draws - first, max(1, _AT_ONCE // units))
        drawn = rng.integers(units, size=(n, units)) + units * np.arange(n)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=n * units).reshape(n, units).T.astype(float)
        found.append(sums @ counts / (sizes @ counts))
    centre = (sums.sum(1) / sizes.sum())[:, None]
    return centre + np.sqrt(units / max(1, units - 1)) * (np.concatenate(found, axis=1) - centre)


def over_seeds(means: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """[seeds, draws] to [draws]: the mean over seeds that are drawn with replacement as well.

    What the draw of seeds adds is widened by √(S/(S-1)): S values resampled vary by (S-1)/S too little. One seed adds
    nothing, and tells nothing about seeds.
    """
    seeds, draws = means.shape
    centre = means.mean(0)
    if seeds == 1:
        return centre
    drawn = means[rng.integers(seeds, size=(seeds, draws)), np.arange(draws)].mean(0)
    return centre + np.sqrt(seeds / (seeds - 1)) * (drawn - centre)


def judged(mean: float, draws: np.ndarray, by_seed: Sequence[np.ndarray], units: int) -> tuple[float, float, float]:
    """(low, high, p): the 95 % interval of a mean by its bootstrap's standard error, and the two-sided p-value of 0.

    by_seed: the means of independent groups of seeds. A few seeds know their own spread badly, so the error is read by
    Student's t, with the degrees of freedom that Welch and Satterthwaite give a sum of variances: that of each group's
    mean, S - 1, and what is left for the units. p is no less than the signs of so many units can tell, 2 · 2^-units.
    """
    parts = [(float(means.var(ddof=1)) / len(means), len(means) - 1) for means in by_seed if len(means) > 1]
    known = sum(part for part, _ in parts)
    variance = max(float(draws.var()), known)
    uncertain = sum(part**2 / freedom for part, freedom in [*parts, (variance - known, units - 1)] if freedom)
    least = 2.0 ** (1 - units)
    if not uncertain:
        return mean, mean, least if mean else 1.0
    error, freedom = np.sqrt(variance), variance**2 / uncertain
    half = stats.t.ppf((1 + LEVEL) / 2, freedom) * error
    return mean - half, mean + half, max(2 * float(stats.t.sf(abs(mean) / error, freedom)), least)


def holm(p: Sequence[float]) -> list[float]:
    """p-values corrected for how many there are: Holm 1979, step down, so that any false claim has probability 5 %."""
    order = np.argsort(p, kind="stable")
    steps = np.asarray(p, dtype=float)[order] * np.arange(len(p), 0, -1)
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return corrected.tolist()


def pareto(cost: Sequence[float], gain: Sequence[float]) -> list[int]:
    """Which points no other one beats: as cheap and better, or cheaper and as good. By rising cost."""
    best, front = -np.inf, []
    for i in sorted(range(len(cost)), key=lambda i: (cost[i], -gain[i])):
        if gain[i] > best:
            best = gain[i]
            front.append(i)
    return front
