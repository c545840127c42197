"""The two records that everything passes, and the glossary of their shapes.

    P  prompts in a batch                     a prompt is held once, each completion points to it
    N  completions (rows)                     pairs: rows 0 … N/2-1 chosen, row N/2+i the rejected one of pair i
                                              labels: the labelled half, then their mismatched rows
                                              rankings, rollouts: the rows of one prompt stand together
    T  the longest completion's tokens        the end-of-turn token included

A column is a named tensor with one entry per row [N], per pair or labelled row [N/2], or per completion token [N, T].
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

Columns = dict[str, Tensor]
HALVED = ("pairs", "labels")  # kinds of data whose rows come as two halves


@dataclass(frozen=True)
class Batch:
    """Completions under prompts, without padding; how they reach the model is decided in `scoring/`.

    `counts` are the totals of the whole optimiser step (all micro-batches, all ranks) by unit, see `units`.
    `siblings` are the other micro-batches of the step; only the first one carries them (for step statistics).
    """

    data: str  # demonstrations | pairs | labels | rollouts; rankings | steps, which nothing makes yet
    prompt_ids: Tensor  # [sum of prompt lengths]
    prompt_lengths: Tensor  # [P]
    completion_ids: Tensor  # [sum of completion lengths]
    completion_lengths: Tensor  # [N]
    group: Tensor  # [N] the prompt's number
    columns: Columns = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)
    siblings: tuple[Batch, ...] = ()

    @classmethod
    def of(
        cls, data: str, prompts: list[Tensor], completions: list[Tensor], group: list[int], **columns: Tensor
    ) -> Batch:
        """From one tensor of ids per prompt and per completion."""
        return cls(
            data=data,
            prompt_ids=torch.cat(prompts),
            prompt_lengths=torch.tensor([len(prompt) for prompt in prompts]),
            completion_ids=torch.cat(completions),
            completion_lengths=torch.tensor([len(completion) for completion in completions]),
            group=torch.tensor(group),
            columns=columns,
        )

    def __len__(self) -> int:
        return len(self.completion_lengths)

    @property
    def tokens(self) -> int:
        """Tokens of the batch; each prompt counts once."""
        return len(self.prompt_ids) + len(self.completion_ids)

    @property
    def prompt_tokens(self) -> Tensor:
        """[N] the prompt tokens a likelihood can be asked of: all but the first, which nothing precedes."""
        return self.prompt_lengths[self.group] - 1

    def prompts(self) -> list[Tensor]:
        return list(self.prompt_ids.split(self.prompt_lengths.tolist()))

    def completions(self) -> list[Tensor]:
        return list(self.completion_ids.split(self.completion_lengths.tolist()))

    def units(self) -> dict[str, float]:
        """What this batch alone contributes to the counts of its step."""
        columns = {**self.columns, "prompt_tokens": self.prompt_tokens}
        return {name: float(total) for name, total in units(self.data, self.completion_lengths, columns).items()}

    def to(self, device: torch.device | str, **options: Any) -> Batch:
        """Moves every tensor. Lightning calls this; it cannot walk a frozen dataclass itself."""
        moved: dict[str, Any] = {
            name: value.to(device, **options) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        columns = {name: column.to(device, **options) for name, column in self.columns.items()}
        return replace(self, **moved, columns=columns, siblings=tuple(b.to(device, **options) for b in self.siblings))


@dataclass(frozen=True)
class Scores:
    """What the models say about a batch: completions only, in nats, float32 at least. None: nobody asked."""

    logps: Tensor | None = None  # [N, T] log π(y_t | x, y_<t); whatever stands off the mask is never read
    mask: Tensor | None = None  # [N, T] True on completion tokens, the end-of-turn token included
    ref_logps: Tensor | None = None  # [N, T] the same under the reference
    values: Tensor | None = None  # [N, T] one scalar per token (critic, process rewards)
    rewards: Tensor | None = None  # [N] one scalar per completion (reward head)
    columns: Columns = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("logps", "ref_logps", "values", "rewards"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, at_least_float32(value))
        columns = {name: at_least_float32(column) for name, column in self.columns.items()}
        object.__setattr__(self, "columns", columns)
        if self.mask is not None:
            object.__setattr__(self, "mask", self.mask.bool())
            for name in ("logps", "ref_logps", "values"):
                _same_shape(name, getattr(self, name), self.mask)

    def __len__(self) -> int:
        for value in (self.mask, self.rewards):
            if value is not None:
                return len(value)
        raise ValueError("Scores need a mask [N, T] or rewards [N] to have a length")

    @property
    def lengths(self) -> Tensor:
        """[N] completion tokens; zeros where only rewards were given."""
        if self.mask is None:
            return torch.zeros(len(self), dtype=torch.long, device=_given("rewards", self.rewards).device)
        return self.mask.sum(1)

    @property
    def logp(self) -> Tensor:
        """[N] nats: Σ_t log π(y_t | x, y_<t)."""
        return self.total(_given("logps", self.logps))

    @property
    def mean_logp(self) -> Tensor:
        """[N] nats per token."""
        return self.logp / self.lengths.clamp(min=1)

    @property
    def logratio(self) -> Tensor:
        """[N] nats: Σ_t log π(y_t | ·) - log π_ref(y_t | ·)."""
        return self.total(_given("logps", self.logps) - _given("ref_logps", self.ref_logps))

    @property
    def mean_logratio(self) -> Tensor:
        """[N] nats per token."""
        return self.logratio / self.lengths.clamp(min=1)

    @property
    def weight(self) -> Tensor:
        """[N] the weight of each row, 1 unless a column says otherwise."""
        return row_weight(len(self), self.columns, self.lengths.device)

    def total(self, per_token: Tensor) -> Tensor:
        """[N] the sum of a per-token quantity [N, T] over the mask."""
        return per_token.where(_given("mask", self.mask), 0).sum(1)

    def halves(self) -> tuple[Scores, Scores]:
        """(chosen, rejected) of pairs, (labelled, mismatched) of labels. An [N/2] column is handed to both."""
        n = len(self)
        if n % 2:
            raise ValueError(f"{n} rows have no halves: pairs and labels hold N/2 rows, then their N/2 partners")
        return self.rows(slice(0, n // 2)), self.rows(slice(n // 2, n))

    def zeroed(self) -> Scores:
        """0 off the mask, columns too: a `where` after exp or square would send NaN back from what stands there."""
        mask = self.mask
        if mask is None:
            return self
        parts, columns = (
            {n: v.masked_fill(~mask, 0) for n, v in named.items() if isinstance(v, Tensor) and v.shape == mask.shape}
            for named in (vars(self), self.columns)
        )
        return replace(self, **parts, columns={**self.columns, **columns})

    def detach(self) -> Scores:
        parts = {name: value.detach() for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **parts, columns={name: column.detach() for name, column in self.columns.items()})

    def to(self, device: torch.device | str) -> Scores:
        parts = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **parts, columns={name: column.to(device) for name, column in self.columns.items()})

    def rows(self, rows: slice | Tensor) -> Scores:
        """Some of the rows. A column of pairs is handed on whole."""
        n = len(self)
        parts = {name: value[rows] for name, value in vars(self).items() if isinstance(value, Tensor)}
        columns = {name: column[rows] if len(column) == n else column for name, column in self.columns.items()}
        return replace(self, **parts, columns=columns)


def demonstrated(data: str, n: int, columns: Columns) -> Tensor:
    """[N] True on the rows worth imitating: all demonstrations, the chosen half, the desirable labelled rows."""
    if data == "demonstrations":
        return torch.ones(n, dtype=torch.bool)
    if data not in HALVED:
        raise ValueError(f"{data} hold no demonstrations; demonstrations, pairs and labels do")
    first = torch.arange(n) < n // 2
    if data == "labels":
        first = first & _per_row("desirable", columns["desirable"], n).bool().cpu()
    return first


def units(data: str, lengths: Tensor, columns: Columns) -> dict[str, Tensor]:
    """How many of each unit a batch holds, as float64 scalars: what a `Term` may be divided by.

    rows (pairs where there are pairs, labelled rows where there are labels), tokens of the rows a loss may touch, the
    same two for the demonstrated rows. All are weighted by the `weight` column: a mean divides by the sum of the
    weights, and a row of weight 0 is not there. Besides, the plain sum of every column with one entry per row or pair.
    """
    n = len(lengths)
    lengths = lengths.double()
    weight = row_weight(n, columns, lengths.device).double()
    # A mismatched row only serves the step's statistics; the rejected row is the same example as its chosen one.
    counted = weight.clone()
    if data in HALVED:
        counted[n // 2 :] = 0
    touched = weight if data == "pairs" else counted
    found = {name: column.detach().double().sum() for name, column in columns.items() if column.dim() == 1}
    found |= {"rows": counted.sum(), "pairs": counted.sum(), "tokens": (touched * lengths).sum()}
    if data in ("demonstrations", *HALVED):
        shown = weight * demonstrated(data, n, columns).to(lengths.device)
        found |= {"demonstrations": shown.sum(), "demonstrated_tokens": (shown * lengths).sum()}
        if "prompt_tokens" in columns:
            prompts = _per_row("prompt_tokens", columns["prompt_tokens"], n).double()
            found["demonstrated_text"] = (shown * (lengths + prompts)).sum()
    return found


def row_weight(n: int, columns: Columns, device: torch.device) -> Tensor:
    """[N] the `weight` column, an [N/2] one handed to both halves; ones without it."""
    if "weight" not in columns:
        return torch.ones(n, device=device)
    return _per_row("weight", columns["weight"], n)


def _per_row(name: str, column: Tensor, n: int) -> Tensor:
    if len(column) == n:
        return column
    if 2 * len(column) == n:
        return torch.cat((column, column))
    raise ValueError(f"column {name!r} has {len(column)} entries; {n} rows take {n} or {n // 2}")


def _given(name: str, value: Tensor | None) -> Tensor:
    if value is None:
        raise ValueError(f"Scores.{name} is None: nobody asked for it, or the objective's `needs` does not declare it")
    return value


def at_least_float32(value: Tensor) -> Tensor:
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


def _same_shape(name: str, value: Tensor | None, mask: Tensor) -> None:
    if value is not None and value.shape != mask.shape:
        raise ValueError(f"Scores.{name} has shape {tuple(value.shape)}, its mask {tuple(mask.shape)}")
