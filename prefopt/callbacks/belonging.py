"""Whose a checkpoint is: the weights of another run fit, too, and would go on as this one's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_tb
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.connectors import checkpoint_connector

from prefopt.errors import RequestError, first_line
from prefopt.run import exhausted

# What of a checkpoint must be there: Lightning begins anew with what is missing, without a word.
PARTS = {
    "state_dict": dict,
    "loops": dict,
    "callbacks": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
    "rng": list,
}


class Belonging(L.Callback):
    """Writes into every checkpoint the hash of the request that it answers, and refuses one of another request."""

    def __init__(self, request: str) -> None:
        self.request = request

    def state_dict(self) -> dict[str, Any]:
        return {"request": self.request}

    @contextmanager
    def taken(self, checkpoint: Path | None) -> Iterator[None]:
        """RequestError where training cannot begin with what the checkpoint holds. None: there is none."""
        try:
            if checkpoint is not None:
                self._check(checkpoint)
            yield
        except (RequestError, OSError):
            raise
        except Exception as error:
            if checkpoint is None or not _restoring(error) or exhausted(error):
                raise
            why = f"{type(error).__name__}: {first_line(error)}"
            way_out = "move it away to go on from the checkpoint before it, or where there is none to begin anew"
            raise RequestError(f"{checkpoint} cannot be gone on from: {why}\n{way_out}") from error

    def _check(self, checkpoint: Path) -> None:
        held = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
        for name, kind in PARTS.items():
            if not isinstance(held, dict) or not isinstance(held.get(name), kind) or not held[name]:
                raise ValueError(f"it holds no {name}")
        if (held["callbacks"].get(self.state_key) or {}).get("request") != self.request:
            raise ValueError("it is another run's")


def _restoring(error: BaseException) -> bool:
    """Whether it was raised while a checkpoint was looked at or restored: Lightning does much else before training."""
    frames = [frame for frame, _ in walk_tb(error.__traceback__)]
    return any(
        frame.f_code is Belonging._check.__code__ or frame.f_globals.get("__name__") == checkpoint_connector.__name__
        for frame in frames
    )
