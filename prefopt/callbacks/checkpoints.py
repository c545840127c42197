"""Checkpoints between optimiser steps, and a stop that loses nothing when the run is asked to end."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.strategies import DeepSpeedStrategy

from prefopt.callbacks.steps import Steps, between_steps
from prefopt.callbacks.stop import Stop


class Checkpoints(L.Callback):
    """Saves every `every` optimiser steps (None: never in between), at the end, and when the run is to stop: because it
    was asked to, or because the next step and its save might not be done by the time limit.

    Under a time limit the first step saves, too, which tells how long that takes.
    """

    def __init__(
        self, path: Path, every: int | None, clock: Steps, on_resume: Callable[[int], None], stop: Stop
    ) -> None:
        self.path, self.every, self.clock, self.on_resume, self.stop = path, every, clock, on_resume, stop
        self.interrupted = False
        self._began = self._longest_step = 0.0  # seconds; a step's include the look at the held-out rows before it
        self._longest_save: float | None = None
        self._trains = False

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.global_step:
            self.on_resume(trainer.global_step)
        self._trains = self.stop.waits = True
        self._began = time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not between_steps(trainer, batch_idx):
            return
        self._longest_step = max(self._longest_step, time.monotonic() - self._began)
        stopping = self.stop.asked or self._late
        if trainer.world_size > 1:  # a signal may have reached one rank alone, and clocks differ
            stopping = trainer.strategy.reduce_boolean_decision(stopping, all=False)
        due = self.every is not None and trainer.global_step % self.every == 0
        first = self.stop.limit is not None and self._longest_save is None
        ends = trainer.should_stop or trainer.global_step == trainer.max_steps
        if due or first or stopping or ends:
            self.save(trainer)
        if stopping:
            self.interrupted = trainer.should_stop = True
            trainer.limit_val_batches = 0  # Lightning would look at the held-out rows once more, out of turn
        self._began = time.monotonic()

    @property
    def _late(self) -> bool:
        return self._longest_step + (self._longest_save or 0.0) > self.stop.left

    def save(self, trainer: L.Trainer) -> None:
        if isinstance(trainer.strategy, DeepSpeedStrategy):  # whose are folders of pickles: its runs begin again
            return
        began = time.monotonic()
        with self.clock.paused():
            trainer.save_checkpoint(self.path)  # collective: every rank takes part, one writes
        self._longest_save = max(self._longest_save or 0.0, time.monotonic() - began)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """A signal that came after the last step's look is answered now."""
        self.stop.waits = False
        if self.stop.asked and self.stop.main_process and not self.interrupted:
            raise KeyboardInterrupt

    def on_fit_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Training does not begin where its last step was saved and the run killed after it."""
        if not self._trains:
            self.on_resume(trainer.global_step)

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        self.stop.waits = False
