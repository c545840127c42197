"""The reference says what it has to say once, before training; from then on it is read from disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import lightning as L

from prefopt.data.loader import ByLength
from prefopt.models.reference import FrozenCopy, Reference


@dataclass(frozen=True)
class Wanted:
    """Rows that will be held against a reference. trains: they are training's, whose time the pass is part of."""

    reference: Reference
    rows: Sequence[ByLength]
    trains: bool


class RememberReference(L.Callback):
    """Fills the stores of the references. A second model is loaded only while something is missing."""

    def __init__(self, wanted: Sequence[Wanted], counted: Callable[[], AbstractContextManager[None]]) -> None:
        """counted: a context whose time counts as training."""
        self.wanted, self.counted = wanted, counted

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        for wanted in self.wanted:
            reference, store = wanted.reference, wanted.reference.store
            if store is None:
                continue
            total = sum(len(rows) for rows in wanted.rows)
            batches = (batch for rows in wanted.rows for batch in rows)
            clock = self.counted() if wanted.trains else nullcontext()
            with clock, trainer.precision_plugin.forward_context():
                store.fill(batches, total, partial(reference.policy, module.device))
            if isinstance(reference, FrozenCopy):
                reference.release()
