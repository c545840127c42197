"""What an annotator is given, and what it gives."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from prefopt.data.examples import Encoded, Text


@dataclass(frozen=True)
class Answer:
    """prompt: as the data holds it. text: without the end-of-turn token. ids: [t] its tokens on the CPU, the
    end-of-turn token included where it was reached. ended: whether it ended by itself. wanted: the best recorded
    completion of the prompt, for rules; None where there is none."""

    prompt: Text
    text: str
    ids: Tensor
    ended: bool
    wanted: str | None

    @classmethod
    def of(cls, prompt: Encoded, ids: Tensor, text: Callable[[list[int]], str], end_ids: Collection[int]) -> Answer:
        """To a prompt of the data. text: ids to the answer they say."""
        wanted = prompt.example.completions[0] if prompt.example.good(0) else None
        ended = bool(len(ids)) and int(ids[-1]) in end_ids
        return cls(prompt.example.prompt, text(ids.tolist()), ids.cpu(), ended, wanted)


@dataclass(frozen=True)
class Judged:
    """reward: [n] float64. parts: [n] each, by name; always the same names in the same order for one annotator."""

    reward: np.ndarray
    parts: dict[str, np.ndarray]


class Annotator(Protocol):
    """state_dict: running statistics, plain numbers and lists only."""

    def __call__(self, answers: Sequence[Answer]) -> Judged: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Calibrating(Annotator, Protocol):
    """`calibrate` is asked once, with the base's answers, before the first answer is judged: unless `calibrated`, as it
    always is where nothing is held against a reference, and after its state was loaded. `to` moves models to a device;
    after `settle` statistics stay as they are."""

    @property
    def calibrated(self) -> bool: ...

    def calibrate(self, answers: Sequence[Answer]) -> None: ...

    def to(self, device: torch.device) -> None: ...

    def settle(self) -> None: ...


class Stateless:
    """What a judge that remembers nothing says of its state."""

    calibrated = True

    def calibrate(self, answers: Sequence[Answer]) -> None:
        pass

    def to(self, device: torch.device) -> None:
        pass

    def settle(self) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class Composed:
    """What asks other annotators, `members`."""

    @property
    def members(self) -> Sequence[Calibrating]:
        raise NotImplementedError

    @property
    def calibrated(self) -> bool:
        return all(annotator.calibrated for annotator in self.members)

    def calibrate(self, answers: Sequence[Answer]) -> None:
        for annotator in self.members:
            annotator.calibrate(answers)

    def to(self, device: torch.device) -> None:
        for annotator in self.members:
            annotator.to(device)

    def settle(self) -> None:
        for annotator in self.members:
            annotator.settle()
