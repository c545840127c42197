"""Rewards in units of their own spread: less a mean, over a standard deviation.

running: of all that was judged so far, the answers at hand included. reference: of given answers, once, as Ziegler et
al. 2019 (https://arxiv.org/abs/1909.08593, §2.2) normalise a reward model to mean 0 and variance 1 on the base's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from prefopt.rewards.base import Answer, Calibrating, Composed, Judged

ALIKE = 1e-9  # a spread of less than this share of the mean is rounding, not news


class Moments:
    """The mean and the sum of squared deviations (M2) of numbers that come a few at a time.

    Chan, Golub and LeVeque 1979: n = n_a + n_b, δ = mean_b - mean_a, mean = mean_a + δ n_b / n and
    M2 = M2_a + M2_b + δ² n_a n_b / n.
    """

    def __init__(self) -> None:
        self.count, self.mean, self.m2 = 0, 0.0, 0.0

    def add(self, values: np.ndarray) -> None:
        if not len(values):
            return
        count, apart = self.count + len(values), float(values.mean()) - self.mean
        self.m2 += float(((values - values.mean()) ** 2).sum()) + apart**2 * self.count * len(values) / count
        self.mean += apart * len(values) / count
        self.count = count

    def standardised(self, values: np.ndarray) -> np.ndarray:
        """Less the mean and over the standard deviation (of the population); less the mean alone where all were
        alike, so over a running mean 0."""
        std = math.sqrt(self.m2 / self.count) if self.count else 0.0
        return (values - self.mean) / (std if std > ALIKE * abs(self.mean) else 1.0)


class Scaled(Composed):
    """A judge's reward in units of its spread. parts: the judge's, and `raw`, what it said itself. running: whether the
    spread is that of all judged so far; else it is that of what `calibrate` was given."""

    def __init__(self, judge: Calibrating, running: bool) -> None:
        self.judge, self.running, self.moments, self.settled = judge, running, Moments(), False

    def __call__(self, answers: Sequence[Answer]) -> Judged:
        if not self.calibrated:
            raise RuntimeError("a reward held against a reference is calibrated before it judges")
        judged = self.judge(answers)
        if self.running and not self.settled:
            self.moments.add(judged.reward)
        return Judged(self.moments.standardised(judged.reward), judged.parts | {"raw": judged.reward})

    @property
    def members(self) -> list[Calibrating]:
        return [self.judge]

    def settle(self) -> None:
        super().settle()
        self.settled = True

    @property
    def calibrated(self) -> bool:
        return super().calibrated and (self.running or self.moments.count > 0)

    def calibrate(self, answers: Sequence[Answer]) -> None:
        super().calibrate(answers)
        if not self.running:
            self.moments = Moments()
            self.moments.add(self.judge(answers).reward)

    def state_dict(self) -> dict[str, Any]:
        own = self.moments
        return {"count": own.count, "mean": own.mean, "m2": own.m2, "judge": self.judge.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        own = self.moments
        own.count, own.mean, own.m2 = int(state["count"]), float(state["mean"]), float(state["m2"])
        self.judge.load_state_dict(state["judge"])
