"""Answers, settings with conf/'s defaults, judges that say what they were told, and functions for rules."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from prefopt.config import config_dir
from prefopt.data.examples import Text
from prefopt.jobs.annotator import build_annotator
from prefopt.rewards import Answer, Calibrating, Judged
from prefopt.rewards.base import Stateless
from prefopt.settings.rewards import RewardSettings

OPTIONS = sorted(file.stem for file in (Path(config_dir()) / "reward").glob("*.yaml"))


def asked(option: str, *overrides: str) -> RewardSettings:
    """Overrides are keys of reward, without it: "k=2"."""
    with initialize_config_dir(config_dir(), version_base="1.3"):
        cfg = compose(f"reward/{option}", [f"reward.{override}" for override in overrides]).reward
    found = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(RewardSettings), cfg))
    assert isinstance(found, RewardSettings)
    return found


def built(option: str, *overrides: str, gold=None, **options) -> Calibrating:
    return build_annotator(asked(option, *overrides), gold, **options)


def answer(
    text: str = "w5", prompt: Text = "w3 w4", ids: Sequence[int] = (5, 2), ended: bool = True, wanted: str | None = None
) -> Answer:
    return Answer(prompt, text, torch.tensor(list(ids), dtype=torch.long), ended, wanted)


def number(prompt: Text, text: str) -> float:
    """A true reward that is the text itself."""
    return float(text)


def numbers(*values: float) -> list[Answer]:
    """Answers that `number` thinks so much of."""
    return [answer(str(value)) for value in values]


class Told(Stateless):
    """Says the same whatever it is asked; nan: it cannot read that."""

    def __init__(self, *rewards: float) -> None:
        self.said = np.array(rewards)

    def rewards(self, answers: Sequence[Answer]) -> np.ndarray:
        return self.said

    def __call__(self, answers: Sequence[Answer]) -> Judged:
        return Judged(self.said, {})


# ---------------------------------------------------------------- what rules may call


def heard(*, prompt: Text, text: str, wanted: str | None) -> float:
    return len(prompt) + 10 * len(text) + 100 * len(wanted or "")


def endless(**_: object) -> float:
    return float("inf")


def silent(**_: object) -> None:
    return None


def word(**_: object) -> str:
    return "1"


def broken(**_: object) -> float:
    return 1 / 0


def leaving(**_: object) -> float:
    sys.exit("no key")


constant = 3
