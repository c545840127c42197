"""Several reward models, so that what only one of them likes is not what is learnt.

Coste et al. 2023, https://arxiv.org/abs/2310.02743, §3: the mean, the worst case, and the mean less the members'
spread, which they take for a variance and we for a standard deviation: it has the reward's unit, and so k has none.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from prefopt.rewards.base import Answer, Judged, Stateless
from prefopt.rewards.model import Model, filled


def combined(members: np.ndarray, how: str, k: float) -> np.ndarray:
    """[n] of the members' rewards [m, n]: their mean, the worst, or lower: the mean - k · the standard deviation."""
    if how == "worst":
        return members.min(0)
    mean = members.mean(0)
    return mean - k * members.std(0) if how == "lower" else mean


class Ensemble(Stateless):
    """parts: each member's reward in their order, `disagreement` (their standard deviation, over members), and
    `unread`, 1 where one of them cannot read an answer."""

    def __init__(self, members: Sequence[Model], how: str, k: float) -> None:
        self.members, self.how, self.k = members, how, k

    def to(self, device: torch.device) -> None:
        for member in self.members:
            member.to(device)

    def __call__(self, answers: Sequence[Answer]) -> Judged:
        said = np.stack([member.rewards(answers) for member in self.members])  # [m, n]
        rewards = np.stack([filled(one) for one in said])
        parts = {f"member_{i}": one for i, one in enumerate(rewards)}
        parts |= {"disagreement": rewards.std(0), "unread": (~np.isfinite(said)).any(0).astype(np.float64)}
        return Judged(combined(rewards, self.how, self.k), parts)
