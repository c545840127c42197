"""One row per optimiser step: metrics.csv, TensorBoard, and the seconds that count as training."""

from __future__ import annotations

import csv
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn

from prefopt.data.loader import Source
from prefopt.files import replacing
from prefopt.models.sharding import whole_tensor
from prefopt.module import PreferenceModule
from prefopt.records import Batch
from prefopt.run import peak_memory_bytes
from prefopt.scoring import tokens_read


def between_steps(trainer: L.Trainer, batch_idx: int) -> bool:
    """Whether the micro-batch was the last of its optimiser step."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0


def scaler_of(trainer: L.Trainer) -> torch.amp.GradScaler | None:
    """What scales the loss under 16-mixed: it skips a step whose gradients overflow, and then scales less."""
    return getattr(trainer.precision_plugin, "scaler", None)


def overflows(trainer: L.Trainer) -> bool:
    """Whether gradients that are no numbers may be the scaler's doing: at a scale below 1 they are not."""
    scaler = scaler_of(trainer)
    return scaler is not None and scaler.get_scale() >= 1


def rows_until(table: str, step: int) -> str:
    """The header of a metrics.csv and its rows up to a step, without lines that a kill or a full disk has cut."""
    header, *rows = table.splitlines(keepends=True) or [""]
    if not (header.startswith("step,") and header.endswith("\n")):
        return ""
    whole = [row for row in rows if row.endswith("\n") and row.count(",") == header.count(",")]
    numbered = ((row, row.partition(",")[0]) for row in whole)
    return header + "".join(row for row, number in numbered if number.isdecimal() and int(number) <= step)


class Steps(L.Callback):
    """Collects what the micro-batches of a step say and writes it when the optimiser has moved.

    seconds: training time so far, the reference's pass included, without start-up, validation, sampling and saving; it
    survives a resume.
    """

    def __init__(self, path: Path, source: Source) -> None:
        self.path, self.source, self.plan = path, source, source.plan
        self.seconds = 0.0
        self.tokens = 0
        self.peak_memory: int | None = None
        self._step_tokens = 0
        self._read = self._padded = 0
        self.grad_norm = torch.zeros(())  # on the device that trains
        self.told: dict[str, float] = {}  # what other callbacks say of a step, always the same names
        self._rate = 0.0
        self._mark = self._sampled = 0.0
        self._file: Any = None
        self._writer: csv.DictWriter[str] | None = None

    # ------------------------------------------------------------ the clock

    @contextmanager
    def paused(self) -> Iterator[None]:
        self._tick()
        try:
            yield
        finally:
            self._mark = time.perf_counter()

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Training time before the first step: the reference's pass over the rows."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - began

    def _tick(self) -> None:
        """What has passed since the last time, but for what answers in training took to sample."""
        now, sampled = time.perf_counter(), self.source.sampling_seconds or 0.0
        self.seconds += now - self._mark - (sampled - self._sampled)
        self._mark, self._sampled = now, sampled

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            self._keep_until(trainer.global_step)
        self._mark, self._sampled = time.perf_counter(), self.source.sampling_seconds or 0.0
        self._last = self.seconds

    def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._tick()

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._mark = time.perf_counter()

    # ------------------------------------------------------------ the row

    def on_train_batch_start(self, trainer: L.Trainer, module: PreferenceModule, batch: Batch, batch_idx: int) -> None:
        self._step_tokens += batch.tokens if batch.columns["weight"].any() else 0
        with trainer.precision_plugin.forward_context():  # as the step itself will ask
            read, padded = tokens_read(module.policy, batch)
        self._read, self._padded = self._read + read, self._padded + padded

    def on_before_optimizer_step(
        self, trainer: L.Trainer, module: PreferenceModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Before clipping, for which it is. `Finite` reads the number next."""
        norms = [p.grad.norm() for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self.grad_norm = whole_tensor(torch.stack(norms).norm()) if norms else torch.zeros((), device=module.device)
        module.grad_norm = self.grad_norm
        self._rate = optimizer.param_groups[0]["lr"]

    def on_train_batch_end(
        self, trainer: L.Trainer, module: PreferenceModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if not between_steps(trainer, batch_idx):
            return
        own = torch.tensor([self._step_tokens, self._read, self._padded], dtype=torch.long, device=module.device)
        step_tokens, read, padded = trainer.strategy.reduce(own, reduce_op="sum").tolist()
        self._step_tokens = self._read = self._padded = 0
        self.tokens += step_tokens
        seen = module.step_sums.compute()
        module.step_sums.reset()
        self._tick()
        passed, self._last = self.seconds - self._last, self.seconds
        if not trainer.is_global_zero:
            return
        step = trainer.global_step
        row = {
            "step": step,
            "epoch": self.plan.epochs(step),
            "loss": sum(value for name, value in seen.items() if name.startswith("loss_")),
            **seen,
            **{name: float(value) for name, value in module.statistics.items()},
            **self.source.measures,
            "learning_rate": self._rate,
            "grad_norm": float(self.grad_norm),
            **self.told,
            "examples": self.plan.examples(step),
            "tokens": self.tokens,
            "packing": read / padded,
            "seconds": self.seconds,
            "pairs_per_second": (self.plan.examples(step) - self.plan.examples(step - 1)) / max(passed, 1e-9),
            "tokens_per_second": step_tokens / max(passed, 1e-9),
        }
        self._write(row)
        for logger in trainer.loggers:
            logger.log_metrics({f"train/{name}": value for name, value in row.items() if name != "step"}, step)

    def _write(self, row: dict[str, float]) -> None:
        if self._writer is None:
            new = not self.path.exists() or not self.path.stat().st_size
            self._file = self.path.open("a", newline="", encoding="utf-8")
            self._writer = csv.DictWriter(self._file, list(row))
            if new:
                self._writer.writeheader()
        self._writer.writerow(row)
        self._file.flush()

    def _keep_until(self, step: int) -> None:
        """A run that resumes at `step` writes the later rows again."""
        if not self.path.exists():
            return
        with self.path.open(newline="", encoding="utf-8", errors="replace") as stream:
            kept = rows_until(stream.read(), step)
        with replacing(self.path) as temporary:
            temporary.write_text(kept, "utf-8", newline="")

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Evaluation loads more than training needs; the method's own memory is what it took up to here."""
        self.peak_memory = self._peak()

    def _peak(self) -> int:
        """Of all attempts."""
        return max(self.peak_memory or 0, peak_memory_bytes())

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        with suppress(OSError):  # a full disk, which is what ended the run
            self._close()

    def teardown(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        self._close()

    def _close(self) -> None:
        if self._file is not None:
            file, self._file, self._writer = self._file, None, None
            file.close()

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "tokens": self.tokens, "peak_memory": self._peak()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seconds, self.tokens, self.peak_memory = state["seconds"], state["tokens"], state.get("peak_memory")
