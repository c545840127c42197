"""The data module: what trains from where the run stands, and what is held out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import lightning as L

from prefopt.data.examples import Encoded
from prefopt.data.loader import HeldOutLoader, Plan, StepLoader
from prefopt.data.views import View, view


class PreferenceData(L.LightningDataModule):
    """train: the objective's view. val: looked at during training, or empty."""

    def __init__(
        self, train: View, plan: Plan, micro_batch_size: int | None, val: Sequence[Encoded], val_batch: int
    ) -> None:
        super().__init__()
        self.train, self.plan, self.micro_batch_size = train, plan, micro_batch_size
        self.val, self.val_batch = val, val_batch

    def train_dataloader(self) -> StepLoader:
        """Begins at the step the trainer stands at, so that a resumed run sees what it would have seen."""
        where = (self.trainer.global_rank, self.trainer.world_size, self.trainer.global_step)
        return StepLoader(self.train, self.plan, self.micro_batch_size, *where)

    def val_dataloader(self) -> list[HeldOutLoader]:
        if not self.val:
            return []
        trainer = self.trainer
        ranks = (trainer.global_rank, trainer.world_size)
        return held_out_loaders(self.val, self.train.data, self.train.columns, self.val_batch, *ranks)


def held_out_loaders(
    examples: Sequence[Encoded], data: str, columns: Iterable[str], batch_size: int, rank: int = 0, world: int = 1
) -> list[HeldOutLoader]:
    """Every completion once (as pairs, or labels where there are none); then the objective's own view, if another."""
    shown = view("pairs" if examples[0].example.is_pair else "labels", examples, columns)
    own = [] if data == shown.data else [view(data, examples, columns)]
    return [HeldOutLoader(v, batch_size, rank, world) for v in (shown, *own)]
