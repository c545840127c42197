"""What is taken off whatever a judge says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from prefopt.metrics.answers import distinct
from prefopt.rewards.base import Answer, Calibrating, Composed, Judged

# How much of what each penalises there is in an answer. A share of trigrams as in the summary's `repetition`.
MEASURES: dict[str, Callable[[Answer], float]] = {
    "missing_end": lambda answer: float(not answer.ended),
    "length": lambda answer: float(len(answer.ids)),
    "repetition": lambda answer: 1 - distinct([answer.ids.tolist()], 3),
}


class Penalised(Composed):
    """reward - Σ_k price_k · measure_k. parts: the judge's, and what each penalty took off. prices: by name."""

    def __init__(self, judge: Calibrating, prices: dict[str, float]) -> None:
        self.judge, self.prices = judge, prices

    def __call__(self, answers: Sequence[Answer]) -> Judged:
        judged = self.judge(answers)
        taken = {
            name: price * np.array([MEASURES[name](answer) for answer in answers], dtype=np.float64)
            for name, price in self.prices.items()
        }
        return Judged(judged.reward - sum(taken.values()), judged.parts | taken)

    @property
    def members(self) -> list[Calibrating]:
        return [self.judge]

    def state_dict(self) -> dict[str, Any]:
        return self.judge.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.judge.load_state_dict(state)
