"""Means that do not depend on how updates were spread over ranks: float64 sums and counts by name."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torchmetrics import Metric


class Sums(Metric):
    """`update({name: (sum, count), …})`, then `compute()` gives sum / count by name over all updates and ranks.

    Every update is kept until the end, a line of a few numbers, and the lines are added up exactly: the same updates
    give the same bits, whoever made them. The names are fixed by the first update; a name whose count is 0 is nan.
    """

    full_state_update = False
    lines: list[Tensor]  # of each update [1, names, 2] float64: sum and count

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.add_state("lines", [], dist_reduce_fx="cat")

    def update(self, entries: Mapping[str, tuple[Tensor | float, Tensor | float]]) -> None:
        self.names = self.names or list(entries)
        if list(entries) != self.names:
            raise ValueError(f"expected {self.names}, got {list(entries)}")
        if not entries:  # an objective without terms, as evaluation has for a model of no method
            return
        line = torch.stack([self._scalar(value) for pair in entries.values() for value in pair])
        self.lines.append(line.view(1, -1, 2))

    def _scalar(self, value: Tensor | float) -> Tensor:
        if isinstance(value, Tensor):
            return value.detach().to(self.device, torch.float64)
        return torch.full((), value, dtype=torch.float64, device=self.device)

    def compute(self) -> dict[str, float]:
        if not self.names:
            return {}
        lines = self.lines if isinstance(self.lines, Tensor) else torch.cat(self.lines)
        added = zip(self.names, exact_sums(lines), strict=True)
        return {name: (s / c if c else float("nan")) for name, (s, c) in added}

    def reset(self) -> None:
        super().reset()
        self.names = []

    def set_dtype(self, dst_type: torch.dtype) -> Sums:
        """Sums stay float64 whatever precision the module is cast to."""
        return self


def exact_sums(lines: Tensor) -> list[list[float]]:
    """[lines, names, 2] to [names][2]: over the lines, each sum rounded once, so that their order does not matter."""
    return [[_exact_sum(values) for values in pair] for pair in lines.movedim(0, -1).tolist()]


def _exact_sum(values: list[float]) -> float:
    try:
        return math.fsum(values)
    except (OverflowError, ValueError):  # beyond float64, or infinities of both signs
        return sum(values)
