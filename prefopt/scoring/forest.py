"""A batch as a forest: every prompt once, its completions after it, trees side by side in one row of tokens.

Peers encode a prompt once for each of its completions and pad every row to the longest. Here a completion sees its
prompt and itself, whatever else lies in the row, and its positions go on from the prompt's end, so the states are those
of the row alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from prefopt.records import Batch
from prefopt.scoring.capacity import at_once

ROOM = 4096  # tokens that go through the backbone at once on a CPU; one tree that is longer goes alone
ROUND = 64  # a forest's tokens are a multiple: every new shape of a matrix costs the CPU library a kernel and memory


@dataclass(frozen=True)
class Tree:
    """Tokens start … start + prompt + sum(branches) of the row: a prompt, then its branches one after the other."""

    start: int
    prompt: int
    branches: tuple[int, ...]

    @property
    def size(self) -> int:
        return self.prompt + sum(self.branches)

    @property
    def end(self) -> int:
        return self.start + self.size


@dataclass(frozen=True)
class Forest:
    """ids, positions: [1, T]. trees: without gaps, in the order in which they lie, small ones first. The last one may
    be of filling that nothing reads."""

    ids: Tensor
    positions: Tensor
    trees: tuple[Tree, ...]

    def __len__(self) -> int:
        return self.ids.shape[1]


@dataclass(frozen=True)
class Planted:
    """The forests of a batch, and where its rows lie in their states put end to end.

    prompt_at: [P] the first token of each prompt. completion_at: [N] of each completion.
    """

    forests: list[Forest]
    prompt_at: Tensor
    completion_at: Tensor

    def asked(self, places: list[Tensor]) -> list[Tensor]:
        """For each forest [T] bool: which of its states are among these places."""
        sizes = [len(forest) for forest in self.forests]
        found = torch.zeros(sum(sizes), dtype=torch.bool, device=self.prompt_at.device)
        for at in places:
            found[at] = True
        return list(found.split(sizes))


def plant(batch: Batch, together: bool = False) -> Planted:
    """Trees of similar size together, at most ROOM tokens in a forest unless one tree alone has more. together: all of
    them in one forest."""
    prompts = batch.prompts()
    rows: list[list[int]] = [[] for _ in prompts]
    for row, group in enumerate(batch.group.tolist()):
        rows[group].append(row)
    return _planted(prompts, batch.completions(), rows, together)


def planted_tokens(batch: Batch, together: bool = False) -> int:
    """Tokens of a batch's forests, filling included."""
    sizes = batch.prompt_lengths.index_add(0, batch.group, batch.completion_lengths).tolist()
    room = _room(batch.group.device, together)
    return sum(-(-sum(sizes[g] for g in chosen) // ROUND) * ROUND for chosen in _packed(sizes, room))


def plant_prompts(prompts: list[Tensor]) -> Planted:
    """Prompts that nothing follows yet."""
    return _planted(prompts, [], [[] for _ in prompts])


def _planted(
    prompts: list[Tensor], completions: list[Tensor], rows: list[list[int]], together: bool = False
) -> Planted:
    """rows: which completions follow each prompt."""
    device = prompts[0].device
    sizes = [len(p) + sum(len(completions[r]) for r in of) for p, of in zip(prompts, rows, strict=True)]
    prompt_at, completion_at = [0] * len(prompts), [0] * len(completions)
    forests, offset = [], 0
    for chosen in _packed(sizes, _room(device, together)):
        start, trees, ids, positions = 0, [], [], []
        for g in chosen:
            size, prompt_at[g] = len(prompts[g]), offset + start
            at = prompt_at[g] + size
            ids.append(prompts[g])
            positions.append(torch.arange(size))
            for r in rows[g]:
                completion_at[r] = at
                at += len(completions[r])
                ids.append(completions[r])
                positions.append(torch.arange(size, size + len(completions[r])))
            trees.append(Tree(start, size, tuple(len(completions[r]) for r in rows[g])))
            start += sizes[g]
        filling = -start % ROUND
        if filling:
            trees.append(Tree(start, filling, ()))
            ids.append(prompts[0].new_zeros(filling))
            positions.append(positions[0].new_zeros(filling))  # none that no row has
        row_ids = torch.cat(ids)[None]
        forests.append(Forest(row_ids, torch.cat(positions)[None].to(row_ids.device), tuple(trees)))
        offset += start + filling
    return Planted(forests, torch.tensor(prompt_at, device=device), torch.tensor(completion_at, device=device))


def _room(device: torch.device, together: bool) -> float:
    return math.inf if together else at_once(ROOM, device)


def _packed(sizes: list[int], room: float) -> list[list[int]]:
    """Which trees share a forest: the smallest first, the next ones until the room is full."""
    order = sorted((g for g, size in enumerate(sizes) if size), key=lambda g: sizes[g])
    found: list[list[int]] = []
    used = 0
    for g in order:
        if not found or used + sizes[g] > room:
            found.append([])
            used = 0
        found[-1].append(g)
        used += sizes[g]
    return found
