"""What can go wrong while a policy learns from its own answers, told from what its collections show.

A guard reads smoothed measures, [collections] each, and says in words what is wrong now, or nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

Smoothed = Mapping[str, np.ndarray]
Guard = Callable[[Smoothed, float], str | None]


@dataclass(frozen=True)
class Alarm:
    """A guard that was crossed, at the collection of an optimiser step. action: warn, stop or rollback. back_to: the
    step whose weights a rollback ends with; None where there are none to go back to."""

    guard: str
    step: int
    action: str
    sentence: str
    back_to: int | None = None


def smoothed(history: Sequence[Mapping[str, float]], window: int) -> dict[str, np.ndarray]:
    """Of every measure the median of the last `window` collections, at every collection that has so many behind it: a
    policy that stumbles for fewer than half of them, and gets up again, is not wrong."""
    shown = {name: np.array([row[name] for row in history]) for name in history[0]}
    return {name: np.median(sliding_window_view(values, window), axis=1) for name, values in shown.items()}


def kl(seen: Smoothed, at: float) -> str | None:
    """The KL to the reference, nats per answer, is over `at`."""
    now = seen["sampled_kl"][-1]
    if now <= at:
        return None
    return f"the policy is {now:.1f} nats an answer from its reference: what is rewarded there, nobody has checked"


def kl_for_nothing(seen: Smoothed, at: float) -> str | None:
    """The KL is over `at` nats above the lowest at which the reward was as high before."""
    reward, distance = _said(seen), seen["sampled_kl"]
    before = np.flatnonzero(reward[:-1] >= reward[-1])
    if not len(before) or distance[-1] - distance[before].min() <= at:
        return None
    rise = f"from {distance[before].min():.1f} to {distance[-1]:.1f} nats an answer"
    return f"the KL rose {rise}, and the reward is no higher than it was then"


def entropy(seen: Smoothed, at: float) -> str | None:
    """Entropy, nats per token, is under `at`."""
    now = seen["entropy"][-1]
    if now >= at:
        return None
    return f"the entropy is {now:.3f} nats a token: the policy hardly tries anything else any more"


def length(seen: Smoothed, at: float) -> str | None:
    """The share of answers that were cut at the longest length is over `at`."""
    now = seen["capped"][-1]
    if now <= at:
        return None
    return f"{now:.0%} of the answers are cut at source.max_new_tokens: they do not end, or need more room"


def variety(seen: Smoothed, at: float) -> str | None:
    """Different answers to a prompt, as a share of its answers, are under `at`."""
    now = seen["distinct"][-1]
    if now >= at:
        return None
    return f"only {now:.0%} of the answers to a prompt differ: there is little left to compare"


def equal_rewards(seen: Smoothed, at: float) -> str | None:
    """The share of prompts whose answers are all worth the same is over `at`."""
    now = seen["equal_groups"][-1]
    if now <= at:
        return None
    return f"under {now:.0%} of the prompts all answers are worth the same, which teaches nothing"


def below_start(seen: Smoothed, at: float) -> str | None:
    """The mean reward has fallen by over `at` spreads of a prompt's rewards under what it was at first."""
    reward, spread = seen["annotation"], seen["annotation_spread"][0]
    if reward[0] - reward[-1] <= at * spread:
        return None
    return f"the reward fell from {reward[0]:.3f} to {reward[-1]:.3f}: training makes worse what it should make better"


def overoptimised(seen: Smoothed, at: float) -> str | None:
    """What watches has lost over the share `at` of its best gain, while what is optimised has not fallen. A loss no
    larger than what it moves from collection to collection anyway is none."""
    if "watched" not in seen or len(seen["watched"]) < 2:
        return None
    watched, reward = seen["watched"], _said(seen)
    peak = int(watched.argmax())
    gain, lost = watched[peak] - watched[0], watched[peak] - watched[-1]
    moves = float(np.abs(np.diff(watched[: peak + 1])).mean()) if peak else 0.0
    if not gain > 0 or lost <= max(at * gain, moves) or reward[-1] < reward[peak]:
        return None
    return (
        f"the judge that only watches fell from {watched[peak]:.3f} to {watched[-1]:.3f}, and the optimised reward "
        f"went from {reward[peak]:.3f} to {reward[-1]:.3f}: its mistakes are being learnt"
    )


def _said(seen: Smoothed) -> np.ndarray:
    """What is optimised, as the judge itself said it: in units of a running spread it may fall while that rises."""
    return seen.get("annotation_raw", seen["annotation"])


GUARDS: dict[str, Guard] = {
    guard.__name__: guard
    for guard in (kl, kl_for_nothing, entropy, length, variety, equal_rewards, below_start, overoptimised)
}
