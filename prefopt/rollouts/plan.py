"""Which prompts are answered when, and in which order their answers train."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from prefopt.data.loader import Plan


@dataclass(frozen=True)
class RolloutPlan(Plan):
    """rows: prompts of the data. A collection answers `prompts` of them, and `passes` passes train on the answers
    before the next one, each in steps of `batch_size` prompts, the last of a pass maybe smaller.

    Collections are slices of the same order that recorded rows have, which begins anew where it ends.
    """

    prompts: int
    passes: int

    @classmethod
    def of_rollouts(
        cls, rows: int, batch_size: int, max_steps: int | None, max_epochs: float, seed: int, prompts: int, passes: int
    ) -> RolloutPlan:
        """max_epochs: of prompts that are answered, counted where max_steps is not given."""
        per_collection = passes * -(-prompts // batch_size)
        steps = max_steps or math.ceil(max_epochs * rows / prompts) * per_collection
        return cls(rows, batch_size, steps, seed, prompts, passes)

    @property
    def steps_per_pass(self) -> int:
        return -(-self.prompts // self.batch_size)

    def where(self, number: int) -> tuple[int, list[int]]:
        """Of optimiser step `number` the collection, and which of its prompts train, by their places in it. The first
        pass takes them as they stand, later ones in orders of their own."""
        collection, rest = divmod(number, self.passes * self.steps_per_pass)
        turn, index = divmod(rest, self.steps_per_pass)
        order = list(range(self.prompts))
        if turn:
            draw = torch.Generator().manual_seed(((self.seed * 1_000_003 + collection) * 1_000_003 + turn) % 2**64)
            order = torch.randperm(self.prompts, generator=draw).tolist()
        return collection, order[index * self.batch_size : (index + 1) * self.batch_size]

    def answered(self, collection: int) -> list[int]:
        """The rows whose prompts a collection answers."""
        found: list[int] = []
        start = collection * self.prompts
        while len(found) < self.prompts:
            epoch, first = divmod(start + len(found), self.rows)
            found += self._order(epoch)[first : first + self.prompts - len(found)]
        return found

    def step(self, number: int) -> list[int]:
        collection, places = self.where(number)
        rows = self.answered(collection)
        return [rows[place] for place in places]

    def first_pass(self, collection: int) -> list[list[int]]:
        """The places of every step of a collection's first pass."""
        first = collection * self.passes * self.steps_per_pass
        return [self.where(first + index)[1] for index in range(self.steps_per_pass)]

    def examples(self, steps: int) -> int:
        """Prompts whose answers trained, each pass counted."""
        passes, rest = divmod(steps, self.steps_per_pass)
        return passes * self.prompts + min(rest * self.batch_size, self.prompts)

    def epochs(self, steps: int) -> float:
        """How often each prompt was answered."""
        return self.examples(steps) / (self.rows * self.passes)
