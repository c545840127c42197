"""Answers that were sampled together, and what is known of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from prefopt.data.examples import Encoded
from prefopt.records import Batch, Columns, Scores


@dataclass(frozen=True)
class Collection:
    """G answers to each of P prompts, a prompt's own together. Shown like the rows of a view: a row is a prompt.

    answers: P·G of [t] ids, the end-of-turn token included where it was reached. columns: [P·G], or [P·G, T] per token.
    """

    prompts: Sequence[Encoded]
    answers: Sequence[Tensor]
    columns: Columns

    @property
    def per_prompt(self) -> int:
        return len(self.answers) // len(self.prompts)

    def batch(self, rows: Sequence[int], filler: bool = False) -> Batch:
        """The answers to the prompts `rows`. filler: give every answer the weight 0."""
        g = self.per_prompt
        places = [row * g + k for row in rows for k in range(g)]
        answers = [self.answers[place] for place in places]
        longest = max(len(ids) for ids in answers)
        columns = {
            name: column[places] if column.dim() == 1 else column[places, :longest]
            for name, column in self.columns.items()
        }
        columns |= {
            "weight": torch.full((len(places),), float(not filler)),
            "row": torch.tensor([row for row in rows for _ in range(g)]),
            "place": torch.tensor([k for _ in rows for k in range(g)]),
        }
        prompts = [torch.from_numpy(self.prompts[row].prompt) for row in rows]
        groups = [i for i in range(len(rows)) for _ in range(g)]
        return Batch.of("rollouts", prompts, answers, groups, **columns)


@dataclass(frozen=True)
class Found:
    """What is known of some answers before credit is given. answers: by the place of their prompt in the collection, in
    the order in which `judged`, [N] each by name, and `scores` hold them."""

    answers: dict[int, list[Tensor]]
    judged: dict[str, Tensor]
    scores: Scores


def joined(parts: Sequence[Scores]) -> Scores:
    """The rows of all parts one below the other, as wide as the widest; each pack numbered its groups by itself."""
    width = max(part.mask.shape[1] for part in parts)

    def below(columns: Sequence[Tensor | None]) -> Tensor | None:
        given = [column for column in columns if column is not None]
        wide = [pad(column, (0, width - column.shape[1])) if column.dim() == 2 else column for column in given]
        return torch.cat(wide) if wide else None

    names = ("logps", "mask", "ref_logps", "values", "rewards")
    tensors = {name: below([getattr(part, name) for part in parts]) for name in names}
    columns = {name: below([part.columns[name] for part in parts]) for name in parts[0].columns if name != "group"}
    return Scores(**tensors, columns=columns)


def ordered(found: Sequence[Found]) -> Found:
    """What the ranks have found, in the order of the collection, with the group of every row."""
    answers = {place: ids for part in found for place, ids in part.answers.items()}
    at = {place: i for i, place in enumerate(answers)}
    g = len(next(iter(answers.values())))
    rows = torch.tensor([at[place] * g + k for place in sorted(at) for k in range(g)])
    judged = {name: torch.cat([part.judged[name] for part in found])[rows] for name in found[0].judged}
    scores = joined([part.scores for part in found]).rows(rows)
    groups = torch.arange(len(at)).repeat_interleave(g)
    scores = replace(scores, columns={**scores.columns, "group": groups})
    return Found({place: answers[place] for place in sorted(at)}, judged, scores)
