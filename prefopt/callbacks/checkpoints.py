"""Checkpoints between optimiser steps, and a stop that loses nothing when the process is asked to end."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
from lightning.pytorch.strategies import DeepSpeedStrategy

from prefopt.callbacks.steps import Steps, between_steps
from prefopt.files import replacing


class Checkpoints(L.Callback):
    """Saves every `every` optimiser steps (None: never in between), at the end, and when SIGINT or SIGTERM came.

    A second signal ends the process at once.
    """

    def __init__(self, path: Path, every: int | None, clock: Steps, on_resume: Callable[[int], None]) -> None:
        self.path, self.every, self.clock, self.on_resume = path, every, clock, on_resume
        self.interrupted = False
        self._handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.global_step:
            self.on_resume(trainer.global_step)
        for number in (signal.SIGINT, signal.SIGTERM):
            self._handlers[number] = signal.signal(number, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.interrupted = True
        self._give_back()

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not between_steps(trainer, batch_idx):
            return
        if trainer.world_size > 1:  # a signal may have reached one rank alone
            self.interrupted = trainer.strategy.reduce_boolean_decision(self.interrupted, all=False)
        due = self.every is not None and trainer.global_step % self.every == 0
        ends = trainer.should_stop or trainer.global_step == trainer.max_steps
        if due or self.interrupted or ends:
            self.save(trainer)
        if self.interrupted:
            trainer.should_stop = True

    def save(self, trainer: L.Trainer) -> None:
        if isinstance(trainer.strategy, DeepSpeedStrategy):  # whose are folders of pickles: its runs begin again
            return
        with self.clock.paused():
            if trainer.is_global_zero:
                self.path.parent.mkdir(exist_ok=True)
            if trainer.world_size > 1:
                trainer.save_checkpoint(self.path)  # collective: every rank takes part, one writes
                return
            with replacing(self.path) as temporary:
                trainer.save_checkpoint(temporary)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._give_back()

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        self._give_back()

    def _give_back(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}
