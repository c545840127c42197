"""Looks at the held-out rows during training: one line of validation.jsonl each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn

from prefopt.data.examples import Encoded
from prefopt.files import write_lines
from prefopt.module import PreferenceModule


class Validation(L.Callback):
    def __init__(self, path: Path, examples: Sequence[Encoded]) -> None:
        self.path, self.examples = path, examples

    def on_train_start(self, trainer: L.Trainer, module: PreferenceModule) -> None:
        """A run that resumes looks again at what came after its checkpoint."""
        if trainer.is_global_zero and self.path.exists():
            lines = map(json.loads, self.path.read_text("utf-8").splitlines())
            write_lines(self.path, [line for line in lines if line["step"] <= trainer.global_step])

    def on_validation_end(self, trainer: L.Trainer, module: PreferenceModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        found = module.held_out_measures(self.examples)
        if not trainer.is_global_zero:
            return
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"step": trainer.global_step, **found}) + "\n")
        for logger in trainer.loggers:
            shown = {f"val/{name}": value for name, value in found.items() if value is not None}
            logger.log_metrics(shown, trainer.global_step)
