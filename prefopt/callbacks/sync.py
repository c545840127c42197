"""TR-DPO: a reference that follows the policy, https://arxiv.org/abs/2404.09656."""

from __future__ import annotations

from typing import Any

import lightning as L
from torch import Tensor

from prefopt.callbacks.steps import between_steps
from prefopt.models.reference import Snapshot


class SyncReference(L.Callback):
    """Moves the reference to the policy every `every` optimiser steps, `mix` of the way.

    Where it stands is part of the checkpoint, so this callback comes before the one that saves.
    """

    def __init__(self, reference: Snapshot, every: int, mix: float) -> None:
        self.reference, self.every, self.mix = reference, every, mix

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if between_steps(trainer, batch_idx) and trainer.global_step % self.every == 0:
            self.reference.sync(self.mix)

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.reference.weights)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, weight in self.reference.weights.items():
            weight.copy_(state[name])
