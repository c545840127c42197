"""The known optimum: the most reward that any policy can have at its distance from the reference.

Where the reward r of a completion is known, the best policy under a prompt x at strength β is

    π*(y|x) = π_ref(y|x) exp(r(x, y) / β) / Z(β),       Z(β) = E_ref[exp(r / β)]

(Rafailov et al. 2023, https://arxiv.org/abs/2305.18290, Eq. 4). No other policy has more reward at the same KL, or less
KL at the same reward. Its two coordinates, in units of the reward and in nats, are

    E_*[r]              KL(π*‖π_ref) = E_*[r] / β - log Z(β)              d E_*[r] / d KL = β

so the frontier is concave, and its slope is β. With one β for all prompts the means over prompts lie on the frontier of
mean reward against mean KL, which is what a method is held against.

**Estimate.** n samples of K policies are pooled, n_k of policy k. The balance heuristic (Veach and Guibas 1995,
"Optimally combining sampling techniques for Monte Carlo rendering") weighs each as a draw from the mixture of all,

    u_i ∝ π_ref(y_i) / Σ_k (n_k / n) π_k(y_i)            p_i ∝ u_i exp(r_i / β)            Σ u_i = Σ p_i = 1

and the weights are self-normalised (Owen, "Monte Carlo theory, methods and examples", ch. 9). As the reference is among
the policies, π_ref over the mixture is at most n / n_ref. As all expectations use the same samples, the estimate is an
optimum itself, that of the weighted samples: its KL is never negative and its curve is concave. Trained policies put
samples where π* has its mass. The effective sample size is 1 / Σ p_i² (Owen, §9.3).

**Errors** are by the delta method: each estimate moves by Σ_i ψ_i, and ψ's variance is taken within each policy's
samples, since the n_k are chosen. With r̂ = Σ p_i r_i and r̄ = Σ u_i r_i,

    reward at β         ψ_i = p_i (r_i - r̂)
    KL at β             ψ_i = p_i (r_i - r̂) / β - p_i + u_i
    gain at its KL      ψ_i = β (p_i - u_i) - u_i (r_i - r̄)       the slope β turns an error along the curve into none

They speak of the given prompts; `mean_curve` of resampled ones gives an interval over prompts.

    betas = spanning_betas(pools)
    curve = mean_curve([prompt_curve(pool, betas, largest) for pool in pools])
    curve.share_of_optimum(gain, kl)

A completion is what the sampler returned, also where it was cut: all policies are sampled with the same limit and at
temperature 1, and the log-probs are of that sampling. `reference_mass` shows whether they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np

RELIABLE_SIZE = 100  # effective samples under a prompt; with fewer a point is drawn dashed and gives no share
LEAST_KL = 0.1  # nats; nearer to the reference a share is a ratio of two noises


@dataclass(frozen=True)
class Pool:
    """Samples of K policies to one prompt, n in all.

    rewards: [n], finite. logps: [K, n] log π_k(y_i|x) in nats, -inf where policy k cannot say y_i. source: [n] the
    policy each sample was drawn from. reference: its number among the K.
    """

    rewards: np.ndarray
    logps: np.ndarray
    source: np.ndarray
    reference: int = 0

    def __post_init__(self) -> None:
        k, n = np.shape(self.logps)
        if np.shape(self.rewards) != (n,) or np.shape(self.source) != (n,) or not np.isfinite(self.rewards).all():
            raise ValueError(f"logps [{k}, {n}] needs {n} finite rewards and {n} sources")
        if self.counts.shape != (k,) or (self.counts == 1).any() or self.counts[self.reference] == 0:
            raise ValueError(
                f"each of the {k} policies must have no samples or at least 2, the reference (number {self.reference}) "
                f"some, got {self.counts.tolist()}"
            )
        own = np.asarray(self.logps)[self.source, np.arange(n)]
        # Rounding of float32 log-softmax leaves a little above 0.
        if not np.isfinite(own).all() or not np.all(np.asarray(self.logps) <= 1e-3):
            raise ValueError("logps must be at most 0, and finite for the policy that a sample is from")

    @cached_property
    def counts(self) -> np.ndarray:
        """[K] n_k, how many samples each policy gave."""
        return np.bincount(self.source, minlength=len(self.logps))

    @cached_property
    def log_ratios(self) -> np.ndarray:
        """[n] log of π_ref over the mixture of the policies that were sampled; their mean ratio is 1 in expectation."""
        logps = np.asarray(self.logps, dtype=float)
        sampled = self.counts > 0
        shares = np.log(self.counts[sampled] / len(self.rewards))
        return logps[self.reference] - np.logaddexp.reduce(logps[sampled] + shares[:, None], axis=0)


@dataclass(frozen=True)
class Curve:
    """The frontier of one prompt, or the mean of several, at B strengths in falling order, so that the KL rises.

    betas: [B]. reward, kl, gain: [B] E_*[r], KL(π*‖π_ref) in nats, and E_*[r] - E_ref[r]. Their errors: of the reward
    and KL at this β, of the gain at this KL. effective_size: [B] samples, the smaller of those of π* and of the
    reference, on which the gain rests as well; of several prompts the least. It cannot tell what no sample has shown.
    reference: E_ref[r]. largest: the largest reward there is, inf where it is not known.
    """

    betas: np.ndarray
    reward: np.ndarray
    reward_stderr: np.ndarray
    kl: np.ndarray
    kl_stderr: np.ndarray
    gain: np.ndarray
    gain_stderr: np.ndarray
    effective_size: np.ndarray
    reference: float
    largest: float

    @property
    def reliable(self) -> np.ndarray:
        """[B] bool; where False the curve is drawn dashed, if at all."""
        return self.effective_size >= RELIABLE_SIZE

    def optimal_gain(self, kl: float) -> tuple[float, float] | None:
        """The optimum's gain at this KL and its standard error; None below LEAST_KL or between unreliable points.

        Interpolated along the square root of the KL, in which the gain starts as a straight line: √(2 KL Var_ref[r]).
        """
        if not kl >= LEAST_KL:  # nan too
            return None
        roots, sound = np.sqrt([0.0, *self.kl]), [self.reliable[0], *self.reliable]
        right = int(np.searchsorted(roots, math.sqrt(kl)))
        if right == len(roots) or not (sound[right - 1] and sound[right]):
            return None
        gain, stderr = (np.interp(math.sqrt(kl), roots, [0.0, *y]) for y in (self.gain, self.gain_stderr))
        return float(gain), float(stderr)

    def share_of_optimum(self, gain: float, kl: float) -> float | None:
        """A policy's gain in reward over the reference, as a share of the optimum's at the policy's own KL."""
        optimum = self.optimal_gain(kl)
        return None if optimum is None else float(gain / optimum[0])

    def bound(self, kl: np.ndarray) -> np.ndarray:
        """[M] KLs to [M] rewards that no policy exceeds: `largest`, and every reliable point's tangent.

        The frontier is concave, so it lies below its tangents also where no sample reaches.
        """
        sound = self.reliable
        tangents = self.reward[sound] + self.betas[sound] * (np.asarray(kl)[:, None] - self.kl[sound])
        return np.minimum(tangents.min(1, initial=math.inf), self.largest)


def spanning_betas(pools: Sequence[Pool], lowest: float = 0.01, highest: float = 12.0, points: int = 48) -> np.ndarray:
    """[points] β in falling, geometric order whose mean KL over the prompts spans lowest to highest, in nats.

    n samples cannot show a KL of more than about log n, where π* is one of them; the span then ends there.
    """
    spread = max(float(np.ptp(pool.rewards)) for pool in pools)
    coldest = 1e-6 * spread
    reach = 0.99 * _mean_kl(pools, coldest) if spread else 0.0
    if not 0 < lowest < reach:
        raise ValueError(f"the samples show KLs of up to {reach:.3g} nats, so none of {lowest:g}")
    first, last = (_beta_at(pools, kl, coldest, spread / math.sqrt(8 * kl)) for kl in (lowest, min(highest, reach)))
    return np.geomspace(first, last, points)


def prompt_curve(pool: Pool, betas: np.ndarray, largest: float = math.inf) -> Curve:
    """The frontier under one prompt. betas: [B] in falling order; largest: the largest reward the prompt allows."""
    betas, rewards = np.asarray(betas, dtype=float), np.asarray(pool.rewards, dtype=float)
    if not (betas > 0).all() or not (np.diff(betas) < 0).all():
        raise ValueError("betas must be positive and fall")
    u, p, kl = _weights(pool, betas)
    reward, reference, column = p @ rewards, u @ rewards, betas[:, None]
    along = p * (rewards - reward[:, None])
    return Curve(
        betas=betas,
        reward=reward,
        reward_stderr=_stderr(along, pool),
        kl=kl,
        kl_stderr=_stderr(along / column - p + u, pool),
        gain=reward - reference,
        gain_stderr=_stderr(column * (p - u) - u * (rewards - reference), pool),
        effective_size=np.minimum(_effective_size(p), _effective_size(u)),
        reference=float(reference),
        largest=largest,
    )


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """The mean over prompts at equal β; samples of different prompts are independent, and the prompts are given."""
    if any(not np.array_equal(curve.betas, curves[0].betas) for curve in curves):
        raise ValueError("curves of different betas have no mean: use the same betas for every prompt")

    def mean(name: str) -> Any:
        column = np.array([getattr(curve, name) for curve in curves])
        if name == "effective_size":
            return column.min(0)
        return _stderr_of_mean(column) if name.endswith("stderr") else column.mean(0)

    return Curve(**{field.name: mean(field.name) for field in fields(Curve)})


def reference_mass(pools: Sequence[Pool]) -> tuple[float, float]:
    """The mean of π_ref over the mixture, and its standard error: 1 if the log-probs are those of the sampling.

    Other policies' samples make it a test: dropout, a temperature, another limit on length or other weights move it.
    """
    ratios = [np.exp(pool.log_ratios) for pool in pools]
    errors = np.array([_stderr(ratio / len(ratio), pool) for ratio, pool in zip(ratios, pools, strict=True)])
    return float(np.mean([ratio.mean() for ratio in ratios])), float(_stderr_of_mean(errors))


# ---------------------------------------------------------------- best of n


@dataclass(frozen=True)
class BestOf:
    """Best of n of the reference's samples. n: [M]. reward, stderr: [M], mean over prompts. kl: [M] nats, at most."""

    n: np.ndarray
    reward: np.ndarray
    stderr: np.ndarray
    kl: np.ndarray


def best_of_n(pools: Sequence[Pool], sizes: Sequence[int] = (1, 2, 4, 8, 16, 32, 64)) -> BestOf:
    """The expected largest reward of n samples of the reference, against the bound on that policy's KL.

        KL(best of n‖π_ref) ≤ log n - (n - 1) / n

    Beirami et al. 2024, https://arxiv.org/abs/2401.01879 which is close where no completion is likely and none tie.
    """
    drawn = [np.sort(np.asarray(pool.rewards, dtype=float)[pool.source == pool.reference]) for pool in pools]
    fewest = min(map(len, drawn))
    if not all(1 <= n < fewest for n in sizes):  # one more than n, for the jackknife
        raise ValueError(f"best of n needs 1 <= n < {fewest}, the reference's samples, got {list(sizes)}")
    n = np.array(sizes)
    reward = [[_largest_weights(len(r), k) @ r for r in drawn] for k in sizes]
    errors = [_stderr_of_mean(np.array([_jackknife(r, k) for r in drawn])) for k in sizes]
    return BestOf(n, np.mean(reward, axis=1), np.array(errors), np.log(n) - (n - 1) / n)


def _largest_weights(total: int, n: int) -> np.ndarray:
    """[total] the chance that a sorted sample is the largest of n without replacement: C(i-1, n-1) / C(total, n).

    With them the mean over all subsets of size n is a sum, and an unbiased estimate of the largest of n new samples.
    """
    i = np.arange(total, 1, -1)
    return np.cumprod([n / total, *(np.maximum(i - n, 0) / (i - 1))])[::-1]


def _jackknife(ordered: np.ndarray, n: int) -> float:
    """The standard error of one prompt's best of n, from leaving out each of its samples."""
    total = len(ordered)
    weights = _largest_weights(total - 1, n)
    below, above = weights * ordered[:-1], weights * ordered[1:]  # those above the one left out move down by one place
    left_out = np.concatenate([[0.0], np.cumsum(below)]) + above.sum() - np.concatenate([[0.0], np.cumsum(above)])
    return math.sqrt((total - 1) * left_out.var())


# ---------------------------------------------------------------- weights


def _weights(pool: Pool, betas: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """u [n], p [B, n] and the KL [B] of the second from the first."""
    log_u = pool.log_ratios - np.logaddexp.reduce(pool.log_ratios)
    # Rewards count from the largest, so that a constant costs the KL no digits; Z is that of r - max r.
    tilt = (np.asarray(pool.rewards, dtype=float) - np.max(pool.rewards)) / betas[:, None]
    log_z = np.logaddexp.reduce(log_u + tilt, axis=1)
    p = np.exp(log_u + tilt - log_z[:, None])
    kl = (p * tilt).sum(1) - log_z
    return np.exp(log_u), p, np.maximum(kl, 0.0)  # rounding may leave -1e-17


def _effective_size(weights: np.ndarray) -> np.ndarray:
    """Kish's, of weights [.., n] that sum to 1."""
    return 1 / np.square(weights).sum(-1)


def _stderr(influence: np.ndarray, pool: Pool) -> np.ndarray:
    """[.., n] to [..]: the deviation of a sum over samples, each policy's being independent draws."""
    strata = [influence[..., pool.source == k] for k in np.flatnonzero(pool.counts)]
    return np.sqrt(sum(own.shape[-1] * own.var(axis=-1, ddof=1) for own in strata))


def _stderr_of_mean(errors: np.ndarray) -> np.ndarray:
    """[P, ..] to [..], of independent estimates."""
    return np.sqrt(np.square(errors).sum(0)) / len(errors)


def _mean_kl(pools: Sequence[Pool], beta: float) -> float:
    return float(np.mean([_weights(pool, np.array([beta]))[2][0] for pool in pools]))


def _beta_at(pools: Sequence[Pool], kl: float, low: float, high: float) -> float:
    """β of a mean KL, by bisection. By Hoeffding's lemma the KL is at most spread² / 8β², which gives the upper end."""
    for _ in range(50):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if _mean_kl(pools, middle) > kl else (low, middle)
    return math.sqrt(low * high)
