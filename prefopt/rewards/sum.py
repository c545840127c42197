"""A weighted sum of annotators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from prefopt.rewards.base import Answer, Calibrating, Composed, Judged


class Sum(Composed):
    """Σ_k weight_k · reward_k. parts: each reward before weighting by its name, and its own parts as name/part."""

    def __init__(self, parts: dict[str, tuple[float, Calibrating]]) -> None:
        self.parts = parts

    def __call__(self, answers: Sequence[Answer]) -> Judged:
        total, found = np.zeros(len(answers)), {}
        for name, (weight, annotator) in self.parts.items():
            judged = annotator(answers)
            total += weight * judged.reward
            found[name] = judged.reward
            found |= {f"{name}/{part}": values for part, values in judged.parts.items()}
        return Judged(total, found)

    @property
    def members(self) -> list[Calibrating]:
        return [annotator for _, annotator in self.parts.values()]

    def state_dict(self) -> dict[str, Any]:
        states = {name: annotator.state_dict() for name, (_, annotator) in self.parts.items()}
        return {name: state for name, state in states.items() if state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, entry in state.items():
            self.parts[name][1].load_state_dict(entry)
