"""Which rows train when: one pass over all optimiser steps of a run, a function of seed and epoch alone.

A method that can show fewer rows (SFT of labels shows the desirable ones) has an order of those.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import lightning as L
import numpy as np
import torch

from prefopt.data.views import View
from prefopt.records import Batch


@dataclass(frozen=True)
class Plan:
    """The order of a run: epochs of `rows` examples in batches of `batch_size`, the last of an epoch maybe smaller."""

    rows: int
    batch_size: int
    steps: int
    seed: int

    @classmethod
    def of(cls, rows: int, batch_size: int, max_steps: int | None, max_epochs: float, seed: int) -> Plan:
        """max_epochs: of data, counted where max_steps is not given."""
        steps = max_steps or math.ceil(max_epochs * -(-rows // batch_size))
        return cls(rows, batch_size, steps, seed)

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.rows // self.batch_size)

    def step(self, number: int) -> list[int]:
        """The rows of optimiser step `number`, over all ranks."""
        epoch, index = divmod(number, self.steps_per_epoch)
        return self._order(epoch)[index * self.batch_size : (index + 1) * self.batch_size]

    def rows_seen(self) -> list[int]:
        """The rows of the whole run, each once."""
        if self.examples(self.steps) >= self.rows:
            return list(range(self.rows))
        return sorted({row for number in range(self.steps) for row in self.step(number)})

    def examples(self, steps: int) -> int:
        """Examples seen in the first `steps` steps."""
        epochs, rest = divmod(steps, self.steps_per_epoch)
        return epochs * self.rows + min(rest * self.batch_size, self.rows)

    def epochs(self, steps: int) -> float:
        """Passes over the rows in the first `steps` steps."""
        return self.examples(steps) / self.rows

    def order_hash(self, steps: int, ids: Sequence[int] | None = None) -> str:
        """sha256 of the row numbers of the first `steps` steps. ids: [rows], what the data calls each, if not by its
        number."""
        found, known = hashlib.sha256(), range(self.rows) if ids is None else ids
        for number in range(steps):
            found.update((",".join(str(known[row]) for row in self.step(number)) + ";").encode())
        return found.hexdigest()

    def _order(self, epoch: int) -> list[int]:
        return _order(self.rows, self.seed * 1_000_003 + epoch)


@dataclass(frozen=True, eq=False)
class TokenPlan(Plan):
    """The same order, cut where a step would hold more than `batch_tokens` tokens, or `batch_size` rows; a row that is
    longer stands alone. lengths: [rows] tokens of each row, a prompt counted once."""

    lengths: Sequence[int]
    batch_tokens: int
    _starts: list[int] = field(default_factory=lambda: [0])  # of each step known so far, in rows of the whole run

    @classmethod
    def by_tokens(
        cls,
        lengths: Sequence[int],
        batch_tokens: int,
        batch_size: int,
        max_steps: int | None,
        max_epochs: float,
        seed: int,
    ) -> TokenPlan:
        plan = cls(len(lengths), batch_size, max_steps or 0, seed, lengths, batch_tokens)
        if max_steps is not None:
            return plan
        wanted, steps = max_epochs * plan.rows, 0
        while plan.examples(steps) < wanted:
            steps += 1
        return replace(plan, steps=steps)

    def step(self, number: int) -> list[int]:
        start, end = self._start(number), self._start(number + 1)
        epoch, first = divmod(start, self.rows)
        return self._order(epoch)[first : first + end - start]

    def examples(self, steps: int) -> int:
        return self._start(steps)

    def _start(self, number: int) -> int:
        while len(self._starts) <= number:
            epoch, first = divmod(self._starts[-1], self.rows)
            order, held, taken = self._order(epoch), 0, 0
            for row in order[first : first + self.batch_size]:
                held += self.lengths[row]
                if taken and held > self.batch_tokens:
                    break
                taken += 1
            self._starts.append(self._starts[-1] + taken)
        return self._starts[number]


@functools.lru_cache(maxsize=4)
def _order(rows: int, seed: int) -> list[int]:
    return torch.randperm(rows, generator=torch.Generator().manual_seed(seed)).tolist()


def share(batch_size: int, world: int) -> int:
    """The most rows of a step that a rank has."""
    return -(-batch_size // world)


def micro_batches(batch_size: int, micro_batch_size: int | None, world: int) -> int:
    """Micro-batches of a step on one rank; None: its share is one."""
    return -(-batch_size // ((micro_batch_size or share(batch_size, world)) * world))


class Shown(Protocol):
    """Rows that can be shown as one kind of data, see `views.View`."""

    def batch(self, rows: Sequence[int], filler: bool = False) -> Batch: ...


class Source:
    """Who speaks in training: what every optimiser step learns from.

    plan: how many steps there are, and of how many examples. measures: what it has to tell of itself at every step,
    always the same names. sampling_seconds: that this rank has sampled so far; None where nothing is. judge: what
    answers (prefopt.rewards.Answer) are worth, [n], by the reward that is optimised; None where nobody judges.
    """

    plan: Plan
    measures: Mapping[str, float] = {}
    sampling_seconds: float | None = None
    judge: Callable[[Sequence[Any]], np.ndarray | None] | None = None

    def attach(self, trainer: L.Trainer) -> None:
        """Called before the first step, with whom it speaks for."""

    def step(self, number: int) -> tuple[Shown, list[int]]:
        """What step `number` shows, and which of its rows, over all ranks. Steps are asked for in their order."""
        raise NotImplementedError

    def order_hash(self, steps: int) -> str:
        """sha256 of the rows of the data in the first `steps` steps."""
        return self.plan.order_hash(steps)

    def made(self) -> dict[str, float]:
        """What was made for training, and what the last of it showed."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs besides the plan."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Recorded(Source):
    """The completions of the data, by the order of the run."""

    def __init__(self, view: View, plan: Plan) -> None:
        self.view, self.plan = view, plan

    def step(self, number: int) -> tuple[View, list[int]]:
        return self.view, self.plan.step(number)

    def order_hash(self, steps: int) -> str:
        """By the numbers that the data gives its rows, of which a view may show some only."""
        return self.plan.order_hash(steps, self.view.rows)


class StepLoader:
    """Micro-batches of one rank, each with the counts of its whole step.

    Every step has the same number of micro-batches on every rank, which is what the Trainer accumulates over; a rank
    that runs out of rows repeats one with weight 0. The length is that of the whole run, also when it starts later.
    micro_batch_size: None for all of a rank's rows at once.
    """

    def __init__(
        self, source: Source, micro_batch_size: int | None, rank: int = 0, world: int = 1, start: int = 0
    ) -> None:
        self.source, self.rank, self.world, self.start = source, rank, world, start
        self.micro_batch_size = micro_batch_size or share(source.plan.batch_size, world)

    @property
    def micro_batches(self) -> int:
        """Per optimiser step and rank."""
        return micro_batches(self.source.plan.batch_size, self.micro_batch_size, self.world)

    def __len__(self) -> int:
        return self.source.plan.steps * self.micro_batches

    def __iter__(self) -> Iterator[Batch]:
        for number in range(self.start, self.source.plan.steps):
            yield from self.step(number)

    def step(self, number: int) -> list[Batch]:
        """This rank's micro-batches of a step; the first one carries the others for the step's statistics."""
        shown, rows = self.source.step(number)
        whole = shown.batch(rows)
        counts = whole.units()
        chunks = chunked(rows, self.rank, self.world, self.micro_batch_size)
        batches = [whole if chunk == rows else shown.batch(chunk) for chunk in chunks]
        batches += [shown.batch(rows[:1], filler=True)] * (self.micro_batches - len(batches))
        batches = [replace(batch, counts=counts) for batch in batches]
        return [replace(batches[0], siblings=tuple(batches[1:])), *batches[1:]]


def chunked(rows: list[int], rank: int, world: int, size: int) -> list[list[int]]:
    """A step's rows as the micro-batches of one rank."""
    mine = rows[rank::world]
    return [mine[i : i + size] for i in range(0, len(mine), size)]


class ByLength:
    """Batches of about `room` tokens, the longest rows first: what costs the least to score once."""

    def __init__(self, view: View, rows: Sequence[int], room: int = 16384) -> None:
        lengths = {row: view.examples[view.rows[row]].length for row in rows}
        self.view, used = view, room
        self.chunks: list[list[int]] = []
        for row in sorted(rows, key=lambda row: -lengths[row]):
            if used + lengths[row] > room:
                self.chunks.append([])
                used = 0
            self.chunks[-1].append(row)
            used += lengths[row]

    def __len__(self) -> int:
        return len(self.chunks)

    def __iter__(self) -> Iterator[Batch]:
        return (self.view.batch(chunk) for chunk in self.chunks)


class HeldOutLoader:
    """Held-out rows in batches by length, the same batches whatever the number of ranks, which take turns at them: so
    every row is scored in the same company, and its numbers have the same bits.

    Every rank has as many, since scoring one may be a meeting of all ranks: one that runs out shows the first batch
    again, with weight 0. Batches carry no counts: a split is no step.
    """

    def __init__(self, view: View, batch_size: int, rank: int = 0, world: int = 1) -> None:
        self.view, self.batch_size = view, batch_size
        lengths = [view.examples[i].length for i in view.rows]
        order = sorted(range(len(view)), key=lambda row: (lengths[row], row))
        batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
        self.own, self._first = batches[rank::world], batches[0]
        self._length = -(-len(batches) // world)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Batch]:
        for rows in self.own:
            yield self.view.batch(rows)
        if len(self.own) < len(self):
            yield self.view.batch(self._first, filler=True)
