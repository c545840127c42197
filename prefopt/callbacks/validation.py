"""Looks at the held-out rows during training: one line of validation.jsonl each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn

from prefopt.data.examples import Encoded
from prefopt.files import append_lines, keep_lines_until, stepped_lines, write_lines
from prefopt.module import PreferenceModule


class Validation(L.Callback):
    def __init__(self, path: Path, examples: Sequence[Encoded]) -> None:
        self.path, self.examples = path, examples

    def on_train_start(self, trainer: L.Trainer, module: PreferenceModule) -> None:
        """A run that resumes looks again at what came after its checkpoint, and at once where it was killed in the look
        that follows the checkpoint."""
        if trainer.is_global_zero:
            keep_lines_until(self.path, trainer.global_step)
        if trainer.global_step and trainer.strategy.broadcast(_missing(self.path, trainer)):
            trainer.validating = True  # as Lightning does between two steps
            trainer.fit_loop.epoch_loop.val_loop.run()
            trainer.training = True

    def on_validation_end(self, trainer: L.Trainer, module: PreferenceModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        found = module.held_out_measures(self.examples)
        if not trainer.is_global_zero:
            return
        append_lines(self.path, [{"step": trainer.global_step, **found}])
        for logger in trainer.loggers:
            shown = {f"val/{name}": value for name, value in found.items() if value is not None}
            logger.log_metrics(shown, trainer.global_step)


def complete(path: Path, trainer: L.Trainer, found: dict[str, float | None]) -> None:
    """The look at the last step, where it was lost to a kill: the evaluation at the end, `found`, says the same."""
    if _missing(path, trainer):
        write_lines(path, [*stepped_lines(path), {"step": trainer.global_step, **found}])


def _missing(path: Path, trainer: L.Trainer) -> bool:
    """Whether a look at the step that the trainer stands at was due and is not written."""
    due = trainer.global_step * trainer.accumulate_grad_batches % trainer.val_check_batch == 0
    return due and trainer.global_step not in {line["step"] for line in stepped_lines(path)}
