"""The true reward, where a world knows it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from prefopt.rewards.base import Answer, Judged, Stateless


class Gold(Stateless):
    def __init__(self, gold: Callable[[Any, str], float]) -> None:
        self.gold = gold

    def __call__(self, answers: Sequence[Answer]) -> Judged:
        return Judged(np.array([self.gold(answer.prompt, answer.text) for answer in answers], dtype=np.float64), {})
