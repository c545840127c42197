"""What flash attention's kernels compute, in matrices, a sequence at a time: for machines that have no such kernels."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import torch
from torch import Tensor

from prefopt.scoring.varlen import Sequences


def plain_forward(
    q: Tensor, k: Tensor, v: Tensor, sequences: Sequences, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    out, lse = torch.empty_like(q), q.new_empty(q.shape[1], q.shape[0])
    for rows, seen in _spans(sequences):
        scores = _scores(q[rows], k[seen], causal, scale)
        lse[:, rows] = scores.logsumexp(-1)
        out[rows] = (scores.softmax(-1) @ _heads_first(v[seen], q)).transpose(0, 1)
    return out, lse


def plain_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    sequences: Sequences,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for rows, seen in _spans(sequences):
        weights = torch.exp(_scores(q[rows], k[seen], causal, scale) - lse[:, rows, None])
        above, own = grad[rows].transpose(0, 1), (grad[rows] * out[rows]).sum(-1).t()[..., None]
        by_scores = weights * (above @ _heads_first(v[seen], q).transpose(1, 2) - own) * scale
        dq[rows] = (by_scores @ _heads_first(k[seen], q)).transpose(0, 1)
        dk[seen] = _grouped_sum(by_scores.transpose(1, 2) @ q[rows].transpose(0, 1), k)
        dv[seen] = _grouped_sum(weights.transpose(1, 2) @ above, v)
    return dq, dk, dv


def _spans(sequences: Sequences) -> Iterable[tuple[slice, slice]]:
    ends = zip(*(itertools.pairwise(cumulative.tolist()) for cumulative in sequences[:2]), strict=True)
    return [(slice(*queries), slice(*keys)) for queries, keys in ends]


def _scores(q: Tensor, k: Tensor, causal: bool, scale: float) -> Tensor:
    """[heads, queries, keys]"""
    scores = q.transpose(0, 1) @ _heads_first(k, q).transpose(1, 2) * scale
    later = torch.ones(scores.shape[1:], dtype=torch.bool, device=q.device).triu(1)
    return scores.masked_fill(later, float("-inf")) if causal else scores


def _heads_first(t: Tensor, q: Tensor) -> Tensor:
    """[n, key heads, D] to [heads, n, D]."""
    return t.transpose(0, 1).repeat_interleave(q.shape[1] // t.shape[1], 0)


def _grouped_sum(grad: Tensor, like: Tensor) -> Tensor:
    """[heads, n, D] to [n, key heads, D]: the heads of a key head add up."""
    return grad.unflatten(0, (like.shape[1], -1)).sum(1).transpose(0, 1)
