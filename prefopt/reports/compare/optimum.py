"""What the known optimum says of the runs: their shares of it, and whether anything lies where nothing can."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from prefopt.metrics.optimum import (
    LEAST_KL,
    RELIABLE_SIZE,
    BestOf,
    Curve,
    Pool,
    best_of_n,
    mean_curve,
    prompt_curve,
    reference_mass,
    spanning_betas,
)
from prefopt.reports.compare.runs import Run

SIZES = (2, 4, 8, 16, 32, 64)  # of best-of-n
SURELY = 3.0  # standard errors: of a hundred settings at the optimum not one in seven reports lies above it by more


@dataclass(frozen=True, eq=False)
class Optimum:
    """Over all prompts. mass: of the base over the mixture, with its error: see `reference_mass`. samples: under each
    of the prompts. policies: the names of the trained ones among those that were sampled."""

    curve: Curve
    best: BestOf
    mass: tuple[float, float]
    samples: int
    prompts: int
    policies: tuple[str, ...]

    @classmethod
    def of(cls, pools: Sequence[Pool], largest: Sequence[float], policies: Sequence[str]) -> Optimum:
        """pools, largest: of every prompt. ValueError where the samples show no KL, as all have the same reward."""
        betas = spanning_betas(pools)
        curve = mean_curve([prompt_curve(pool, betas, most) for pool, most in zip(pools, largest, strict=True)])
        drawn = int(pools[0].counts[pools[0].reference])
        best = best_of_n(pools, [n for n in SIZES if n < drawn])
        return cls(curve, best, reference_mass(pools), len(pools[0].rewards), len(pools), tuple(policies))

    @cached_property
    def base_stderr(self) -> float:
        """Of the base's mean reward, which the frontier's is where it begins."""
        return float(self.curve.reward_stderr[0])

    @property
    def reliable_to(self) -> float:
        """The KL up to which every point has its effective samples, in nats."""
        thin = np.flatnonzero(~self.curve.reliable)
        return float(np.insert(self.curve.kl, 0, 0.0)[thin[0]] if len(thin) else self.curve.kl[-1])

    def reward(self, kl: np.ndarray) -> np.ndarray:
        """[M] KLs to the optimum's mean reward, interpolated as `Curve.optimal_gain` is."""
        gain = np.interp(np.sqrt(kl), np.sqrt([0.0, *self.curve.kl]), [0.0, *self.curve.gain])
        return self.curve.reference + gain

    def share(self, run: Run) -> tuple[float, float | None] | None:
        """Of the run's gain, with its standard error; None where its KL is not known, too small or out of reach.

        share = g / G(k) of the gain g, at the KL k, where G' is β. The errors of g, k and G are taken as independent;
        within a prompt the answers that are further away are the better ones, which makes the true error smaller.
        """
        gold, kl = (run.measured("samples", name) for name in ("gold_reward", "kl"))
        found = None if gold is None or kl is None else self.curve.optimal_gain(kl)
        if gold is None or kl is None or found is None:
            return None
        most, stderr = found
        share = (gold - self.curve.reference) / most
        errors = [run.measured("samples", name) for name in ("gold_reward_stderr", "kl_stderr")]
        if None in errors:
            return share, None
        parts = (errors[0], self.base_stderr, share * self._slope(kl) * errors[1], share * stderr)
        return share, math.hypot(*parts) / most

    def ceiling(self, kl: float) -> float:
        """The gold reward that no policy exceeds at this KL, whatever the KL is."""
        return float(self.curve.bound(np.array([max(kl, 0.0)]))[0])

    def above(self, gold: float, gold_stderr: float, kl: float, kl_stderr: float) -> tuple[float, float]:
        """By how much a gold reward lies above the ceiling at its KL (below: negative), and the standard error."""
        stderr = float(np.interp(kl, self.curve.kl, self.curve.gain_stderr))
        return gold - self.ceiling(kl), math.hypot(gold_stderr, self.base_stderr, self._slope(kl) * kl_stderr, stderr)

    def _slope(self, kl: float) -> float:
        """β: what a nat more is worth; it is nothing where the samples end, for then the largest reward is reached."""
        return float(np.interp(kl, self.curve.kl, self.curve.betas))

    def words(self) -> Iterator[str]:
        """What the column and the line of the figure are."""
        of = f"the base and of {', '.join(self.policies)}" if self.policies else "the base"
        yield (
            "Share of optimum: a setting's gain in gold reward over the base, as a share of the most that any policy "
            f"gains at the same KL, by π* ∝ π_base·exp(r/β) on {self.samples} samples of {of} under each of "
            f"{self.prompts} prompts; none under {LEAST_KL:g} nats, nor where fewer than {RELIABLE_SIZE} effective "
            f"samples tell, which is beyond {self.reliable_to:.2f} nats (--optimum {4 * self.samples} reaches further)."
        )

    def doubts(self) -> Iterator[str]:
        """Where the pooled log-probs are not those of the sampling, no number of the optimum holds."""
        mass, stderr = self.mass
        if abs(mass - 1) > max(SURELY * stderr, 1e-3):
            yield (
                f"its samples do not have the log-probs that they were drawn with: the base's probability over the "
                f"mixture's is {mass:.3f} ± {stderr:.3f} on average and must be 1; believe no share"
            )
