"""A loss or a gradient that is no finite number: found before a weight moves, and the rows that it came from kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.optim import Optimizer

from prefopt.callbacks.steps import Steps, overflows
from prefopt.files import append_lines, keep_lines_until, stepped_lines, write_lines
from prefopt.module import PreferenceModule
from prefopt.objectives.base import total
from prefopt.progress import say
from prefopt.ranks import of_all_ranks
from prefopt.records import HALVED, Batch, Scores
from prefopt.scrub import scrubbed

PATIENCE = 10  # steps in a row that are left out; one more, and the run learns nothing
Entry = dict[str, Any]


class NonFinite(FloatingPointError):
    """file: where the rows of the step are written down."""

    def __init__(self, said: str, file: Path) -> None:
        super().__init__(said)
        self.file = file


class Finite(L.Callback):
    """Looks at the loss and the gradient's norm of every optimiser step, when all micro-batches and ranks have added to
    them: once a step, and every rank sees the same. A broken step stops the run, or is left out whole: its rows share
    the counts and the statistics that each of them is divided by, and no gradient can be taken apart again into rows.

    What overflows under 16-mixed is the scaler's to skip. How many steps were left out is part of the checkpoint.
    """

    def __init__(
        self, path: Path, clock: Steps, skips: bool, text: Callable[[list[int]], str], line: Callable[[int], str]
    ) -> None:
        """path: of the rows. clock: comes before this callback and knows the gradient's norm. text: ids to what they
        say. line: a row's "file:line", or ""."""
        self.path, self.clock, self.skips, self.text, self.line = path, clock, skips, text, line
        self.skipped = self.in_a_row = 0

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """A run that resumes writes again what came after its checkpoint."""
        if trainer.is_global_zero:
            keep_lines_until(self.path, trainer.global_step)

    def on_before_optimizer_step(self, trainer: L.Trainer, module: PreferenceModule, optimizer: Optimizer) -> None:
        own = torch.stack([loss for _, _, loss in module.step_seen]).sum().double()
        found = torch.stack((own, self.clock.grad_norm.double() / trainer.world_size))
        loss, norm = trainer.strategy.reduce(found, reduce_op="sum").tolist()
        broken = not math.isfinite(loss) or not (math.isfinite(norm) or overflows(trainer))
        if broken:
            self._broken(trainer, module, loss, norm)
            for group in optimizer.param_groups:  # without gradients there is no decay and no momentum either
                for parameter in group["params"]:
                    parameter.grad = None
        self.skipped, self.in_a_row = self.skipped + broken, self.in_a_row + 1 if broken else 0
        if self.skips:
            self.clock.told["skipped"] = float(broken)

    def _broken(self, trainer: L.Trainer, module: PreferenceModule, loss: float, norm: float) -> None:
        """Write the rows down; NonFinite, on every rank, unless the step is to be left out."""
        step = trainer.global_step + 1
        own = [entry for seen in module.step_seen for entry in self._entries(module, *seen)]
        of_all = [entry for part in of_all_ranks(own, trainer.world_size) for entry in part]
        every, worst = _unique(of_all), max(severity for severity, _ in of_all)
        rows = _unique(entry for entry in of_all if entry[0] == worst)
        sick = _unique(entry for entry in of_all if entry[0] > 0)
        about = {"step_loss": _number(loss), "grad_norm": _number(norm)}
        lines = [{"step": step, **row, **about} for row in rows]
        goes_on = self.skips and self.in_a_row < PATIENCE
        if trainer.is_global_zero:
            self._write(lines, goes_on)
        first = rows[0]["source"] or f"row {rows[0]['row']}"
        by = f"{len(rows)} of {len(every)} rows" if len(rows) < len(every) else "every row"
        said = f"step {step}: the loss is {loss:g}, the gradient's norm {norm:g}, by {by}, first {first}"
        if not goes_on:
            few = 0 < 2 * len(sick) <= len(every)  # a run that has diverged finds most rows so
            raise NonFinite(said if few else f"{said}; is optimizer.lr too high?", self.path)
        if self.skipped & (self.skipped + 1) == 0:  # the first, the second, the fourth …: a log is for reading
            say(f"warning: {said}: skipped, {self.skipped + 1} so far, see {self.path}")

    def _write(self, lines: list[Entry], goes_on: bool) -> None:
        """Those of many skipped steps one below the other, those that end a run whole or not at all."""
        if not goes_on:
            write_lines(self.path, [*stepped_lines(self.path), *lines])
            return
        append_lines(self.path, lines)

    @torch.no_grad()
    def _entries(
        self, module: PreferenceModule, batch: Batch, scores: Scores, loss: Tensor
    ) -> Iterable[tuple[int, Entry]]:
        """The examples of a micro-batch, or of rollouts its prompts, and how broken each is: 2 where a model's numbers
        are, 1 where only what the objective makes of them is, 0 where neither can be seen to be."""
        reward = module.objective.reward(scores)
        numbers = [reward, *(scores.total(v) for v in (scores.logps, scores.ref_logps, scores.values) if v is not None)]
        sound = torch.stack([part.double() for part in numbers]).isfinite().all(0)
        completions = batch.completions()
        for number, prompt in enumerate(batch.prompts()):
            rows = (batch.group == number).nonzero()[:, 0]
            share, learns = _share(module, batch, _part(batch, scores, rows))
            row = int(batch.columns["row"][rows[0]])
            entry = {
                "row": row,
                "source": scrubbed(self.line(row)) or None,
                "prompt": self.text(prompt.tolist()),
                "completions": [self.text(completions[i].tolist()) for i in rows.tolist()],
                "logp": None if scores.logps is None else [_number(x) for x in scores.logp[rows].tolist()],
                "reward": [_number(x) for x in reward[rows].tolist()],
                "loss": _number(share),
            }
            broken = 1 if not (math.isfinite(share) and learns) else 0
            yield (broken if sound[rows].all() else 2), entry

    def state_dict(self) -> dict[str, int]:
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]


def _part(batch: Batch, scores: Scores, rows: Tensor) -> Scores:
    """The scores of one prompt's rows; of a column of pairs its own entries."""
    part, half = scores.rows(rows), len(scores) // 2
    if batch.data not in HALVED:
        return part
    own = {name: column[rows[rows < half]] for name, column in scores.columns.items() if len(column) == half}
    return replace(part, columns={**part.columns, **own})


def _share(module: PreferenceModule, batch: Batch, part: Scores) -> tuple[float, bool]:
    """What some rows add to the loss of the step, and whether what they send back to the models is finite."""
    named = {name: getattr(part, name) for name in ("logps", "values", "rewards")}
    leaves = {name: value.clone().requires_grad_() for name, value in named.items() if value is not None}
    with torch.enable_grad():
        loss = total(module.objective.all_terms(replace(part, **leaves), module.statistics), batch.counts)
        sent = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return float(loss), all(bool(gradient.isfinite().all()) for gradient in sent if gradient is not None)


def _unique(entries: Iterable[tuple[int, Entry]]) -> list[Entry]:
    """By row, each once: a rank that has run out of rows repeats one, later and with the weight 0."""
    found: dict[int, Entry] = {}
    for _, entry in entries:
        found.setdefault(entry["row"], entry)
    return [found[row] for row in sorted(found)]


def _number(value: float) -> float | str:
    """JSON has no nan: what is no finite number becomes its name."""
    return value if math.isfinite(value) else str(value)
