"""The data module: what trains from where the run stands, and what is held out."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import lightning as L

from prefopt.data.examples import Encoded
from prefopt.data.loader import HeldOutLoader, Source, StepLoader
from prefopt.data.views import RECORDED, view


class PreferenceData(L.LightningDataModule):
    """source: what trains. val: looked at during training, or empty; as `data` with its columns, see
    `held_out_loaders`."""

    def __init__(
        self,
        source: Source,
        micro_batch_size: int | None,
        val: Sequence[Encoded] = (),
        data: str = "pairs",
        columns: Collection[str] = (),
        val_batch: int = 64,
    ) -> None:
        super().__init__()
        self.source, self.micro_batch_size = source, micro_batch_size
        self.val, self.data, self.columns, self.val_batch = val, data, columns, val_batch

    def train_dataloader(self) -> StepLoader:
        """Begins at the step the trainer stands at, so that a resumed run sees what it would have seen."""
        self.source.attach(self.trainer)
        where = (self.trainer.global_rank, self.trainer.world_size, self.trainer.global_step)
        return StepLoader(self.source, self.micro_batch_size, *where)

    def val_dataloader(self) -> list[HeldOutLoader]:
        if not self.val:
            return []
        ranks = (self.trainer.global_rank, self.trainer.world_size)
        return held_out_loaders(self.val, self.data, self.columns, self.val_batch, *ranks)

    def state_dict(self) -> dict[str, Any]:
        return self.source.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.source.load_state_dict(state)


def held_out_loaders(
    examples: Sequence[Encoded], data: str, columns: Collection[str], batch_size: int, rank: int = 0, world: int = 1
) -> list[HeldOutLoader]:
    """Every completion once (as pairs, or labels where there are none); then the objective's own view, if it has
    another and recorded rows can be shown so."""
    shown = view("pairs" if examples[0].example.is_pair else "labels", examples, columns)
    own = [] if data == shown.data or data not in RECORDED else [view(data, examples, columns)]
    return [HeldOutLoader(v, batch_size, rank, world) for v in (shown, *own)]
