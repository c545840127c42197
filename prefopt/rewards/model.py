"""Reward models: they read text anew, by their own tokenizer and template."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from prefopt.data.examples import Text
from prefopt.data.render import Renderer
from prefopt.errors import RequestError
from prefopt.models.reward import RewardModel
from prefopt.rewards.base import Answer, Judged, Stateless


@dataclass(frozen=True)
class Judge:
    """A reward model and how it reads text: with its own tokenizer and template."""

    model: RewardModel
    renderer: Renderer


def judged(judge: Judge, prompt: Text, texts: Sequence[str], source: str = "") -> list[float]:
    """The reward of every answer to one prompt, as `judged_all` has it. source: where the prompt stands."""
    return judged_all(judge, [prompt] * len(texts), texts, source).tolist()


def judged_all(judge: Judge, prompts: Sequence[Text], texts: Sequence[str], source: str = "") -> np.ndarray:
    """[n] float64, the reward of every answer, rendered anew for the reward model, as if each had ended where it was
    cut. nan where it cannot be read: an answer that writes the marks of a chat template, or is too long for the model.

    Every prompt is rendered once, and answers of one length are scored together. RequestError where a prompt itself
    cannot be read. source: where it stands; by itself unless given.
    """
    rendered: dict[str, Tensor] = {}
    said: dict[int, tuple[Tensor, Tensor]] = {}
    for i, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        key = json.dumps(prompt)
        where = source or f"the prompt {key:.60}"
        if key not in rendered:
            rendered[key] = torch.from_numpy(judge.renderer.prompt(prompt, where))
        if (ids := _readable(judge, prompt, rendered[key], text, where)) is not None:
            said[i] = rendered[key], ids
    order = sorted(said, key=lambda i: -sum(map(len, said[i])))  # the longest first: what does not fit shows at once
    device = judge.model.policy.device
    asked, answers = ([said[i][side].to(device) for i in order] for side in (0, 1))
    found = np.full(len(texts), math.nan)
    found[order] = judge.model(asked, answers).double().cpu().numpy()
    return found


def _readable(judge: Judge, prompt: Text, asked: Tensor, text: str, source: str) -> Tensor | None:
    """[t] the answer's ids with its end; None where they cannot be had, or do not fit behind the prompt's."""
    renderer = judge.renderer
    try:
        ids = torch.from_numpy(renderer.completion(prompt, text, source))
    except RequestError:
        return None
    ids = ids if len(ids) else torch.tensor(renderer.end_ids[:1])  # nothing, and that it is all
    room = getattr(judge.model.policy.config, "max_position_embeddings", None)
    return ids if room is None or len(asked) + len(ids) <= room else None


def filled(rewards: np.ndarray) -> np.ndarray:
    """[n] An answer that cannot be read (nan) is worth the least of those that can, 0 where there are none: to write
    what the judge cannot read must never pay."""
    known = np.isfinite(rewards)
    return np.where(known, rewards, rewards[known].min(initial=math.inf) if known.any() else 0.0)


class Model(Stateless):
    """One reward model. parts: `unread`, 1 where it cannot read an answer."""

    def __init__(self, judge: Judge) -> None:
        self.judge = judge

    def __call__(self, answers: Sequence[Answer]) -> Judged:
        rewards = self.rewards(answers)
        return Judged(filled(rewards), {"unread": (~np.isfinite(rewards)).astype(np.float64)})

    def to(self, device: torch.device) -> None:
        self.judge.model.policy.to(device)

    def rewards(self, answers: Sequence[Answer]) -> np.ndarray:
        """[n], nan where it cannot read an answer."""
        return judged_all(self.judge, [answer.prompt for answer in answers], [answer.text for answer in answers])
