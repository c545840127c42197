"""What a batch shows about its rows, by kind of data and never by method."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from prefopt.records import Scores

Entries = dict[str, tuple[Tensor | float, Tensor | float]]  # (sum, count) by name


def describe(data: str, scores: Scores, reward: Tensor) -> Entries:
    """Weighted (sum, count) of what training curves show. reward: [N] the objective's own."""
    if data == "pairs":
        return _pairs(scores, reward)
    if data == "labels":
        return _labels(scores, reward)
    return {"reward": _mean(reward, scores.weight), **_levels("", scores)}


def weighted_means(values: Mapping[str, Tensor], scores: Scores) -> Entries:
    """Weighted (sum, count) of per-row [N] or per-pair [N/2] values, so that a row of weight 0 is not there."""
    return {name: _mean(value, scores.weight[: len(value)]) for name, value in values.items()}


def wins(difference: Tensor) -> Tensor:
    """1 where the difference is positive, one half at a tie. Keeps the shape."""
    return (difference > 0).double() + 0.5 * (difference == 0).double()


def won(difference: np.ndarray) -> np.ndarray:
    """The same of an array."""
    return (difference > 0) + 0.5 * (difference == 0)


def _pairs(scores: Scores, reward: Tensor) -> Entries:
    chosen, rejected = scores.halves()
    first, second = reward.chunk(2)
    weight = chosen.weight
    return {
        "accuracy": _mean(wins(first - second), weight),
        "margin": _mean(first - second, weight),
        "chosen_reward": _mean(first, weight),
        "rejected_reward": _mean(second, weight),
        **_levels("chosen_", chosen),
        **_levels("rejected_", rejected),
    }


def _labels(scores: Scores, reward: Tensor) -> Entries:
    labelled, _ = scores.halves()
    desirable = labelled.columns["desirable"].bool()
    own = reward.chunk(2)[0]
    return {
        "desirable_reward": _mean(own, labelled.weight * desirable),
        "undesirable_reward": _mean(own, labelled.weight * ~desirable),
        **_levels("", labelled),
    }


def _levels(prefix: str, scores: Scores) -> Entries:
    """Log-probs, how far they moved from the reference, and lengths."""
    found: Entries = {f"{prefix}length": _mean(scores.lengths, scores.weight)}
    if scores.logps is not None:
        found[f"{prefix}logp"] = _mean(scores.logp, scores.weight)
    if scores.ref_logps is not None:
        found[f"{prefix}logp_delta"] = _mean(scores.logratio, scores.weight)
    return found


def _mean(values: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    values, weight = values.detach().double(), weight.double()
    return (values * weight).sum(), weight.sum()
