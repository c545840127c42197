"""A coefficient of the KL that follows a target."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class AdaptiveKL:
    """β ← β · (1 + n / horizon · clip(KL / target - 1, ±0.2)) after n answers. Ziegler et al. 2019,
    https://arxiv.org/abs/1909.08593, §2.2.

    target: nats per answer. horizon: answers. beta: where it stands; None before the first collection.
    """

    target: float
    horizon: float
    beta: float | None = None

    def follow(self, beta: float, kl: float, answers: int) -> float:
        error = min(0.2, max(-0.2, kl / self.target - 1))
        return beta * (1 + answers / self.horizon * error)
