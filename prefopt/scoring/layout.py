"""Rows right-padded, sorted by length, for models that cannot read a forest; and where in a row what is asked lies."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from prefopt.records import Batch
from prefopt.scoring.capacity import at_once

ROOM = 2048  # padded tokens that go through the backbone at once; more only costs memory on a CPU, see `capacity`


@dataclass(frozen=True)
class Layout:
    """Some rows of a batch as prompt + completion, right-padded.

    rows: [R] which rows of the batch. ids, attention_mask, position_ids: [R, L].
    """

    rows: Tensor
    ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor


def layouts(batch: Batch, one: bool = False, bound: int | None = None) -> list[Layout]:
    """Every row once, rows of similar length together. No mask is ever read off a token's id. one: all in one. bound:
    of the model's positions, see `Policy.rope_bound`; no row of more tokens is together with one of fewer."""
    prompts, completions = batch.prompts(), batch.completions()
    groups = batch.group.tolist()
    together = _together(row_lengths(batch).tolist(), _room(batch, one), bound)
    return [_padded([torch.cat((prompts[groups[r]], completions[r])) for r in rows], rows) for rows in together]


def row_lengths(batch: Batch) -> Tensor:
    """[N] tokens of prompt and completion."""
    return batch.prompt_lengths[batch.group] + batch.completion_lengths


def padded_tokens(batch: Batch, one: bool = False, bound: int | None = None) -> int:
    """Tokens of a batch's layouts, padding included."""
    lengths = row_lengths(batch).tolist()
    return sum(len(rows) * lengths[rows[0]] for rows in _together(lengths, _room(batch, one), bound))


def _room(batch: Batch, one: bool) -> int:
    return sys.maxsize if one else at_once(ROOM, batch.group.device)


def _together(lengths: list[int], room: int, bound: int | None) -> list[list[int]]:
    """Which rows share a layout, the longest first."""
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    beyond = sum(length > bound for length in lengths) if bound is not None else 0
    found, start = [], 0
    while start < len(order):
        size = max(1, room // lengths[order[start]])
        end = min(start + size, beyond) if start < beyond else start + size
        found.append(order[start:end])
        start = end
    return found


def _padded(texts: list[Tensor], rows: list[int]) -> Layout:
    ids = pad_sequence(texts, batch_first=True)
    positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    lengths = torch.tensor([len(text) for text in texts], device=ids.device)
    return Layout(torch.tensor(rows, device=ids.device), ids, (positions < lengths[:, None]).long(), positions)


def completion_mask(batch: Batch) -> Tensor:
    """[N, T]"""
    lengths = batch.completion_lengths
    return torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]


def completion_positions(batch: Batch, mask: Tensor) -> tuple[Tensor, Tensor]:
    """(row, column) of the state that predicts each completion token: the one before it. Each [C]."""
    row, token = mask.nonzero(as_tuple=True)
    return row, batch.prompt_lengths[batch.group[row]] - 1 + token


def prompt_positions(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """(row, column, target) of every prompt token that something precedes, once per completion. Each [M]."""
    tokens = batch.prompt_tokens
    mask = torch.arange(int(tokens.max()), device=tokens.device) < tokens[:, None]
    row, column = mask.nonzero(as_tuple=True)
    starts = batch.prompt_lengths.cumsum(0) - batch.prompt_lengths
    return row, column, batch.prompt_ids[starts[batch.group[row]] + column + 1]
