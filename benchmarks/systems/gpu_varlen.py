"""A forest's attention as two calls of flash attention for rows of any lengths, merged by their log-sum-exp.

The first call is causal, over the whole row of tokens: a prompt with its first branch is one sequence, every other
branch is one of its own. In the second the other branches of a tree, which lie side by side, are the queries of one
sequence, and their prompt holds its keys; nothing is repeated. Each backward is given the merged output and
log-sum-exp, so it yields its own share of the gradient, as prefopt's own merging does on a CPU.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prefopt.scoring.forest import Tree

# Cumulative lengths of the queries and of the keys [sequences + 1] int32, and the longest of each.
Sequences = tuple[Tensor, Tensor, int, int]


@dataclass(frozen=True)
class Seams:
    """How a forest falls apart. others, trunks: tokens of the branches after the first, and of the prompts they see;
    own, seen: the sequences of the two calls."""

    others: Tensor
    trunks: Tensor
    own: Sequences
    seen: Sequences


def seams(trees: Iterable[Tree], device: str) -> Seams:
    own: list[int] = []
    seen: list[tuple[int, int]] = []
    others: list[int] = []
    trunks: list[int] = []
    for tree in trees:
        first, *rest = tree.branches or (0,)
        own += [tree.prompt + first, *rest]
        if rest:
            seen.append((sum(rest), tree.prompt))
            others += range(tree.end - sum(rest), tree.end)
            trunks += range(tree.start, tree.start + tree.prompt)
    queries, keys = zip(*seen, strict=True) if seen else ((), ())

    def tensor(values: list[int], dtype: torch.dtype = torch.long) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=device)

    def ends(lengths: Iterable[int]) -> Tensor:
        return tensor(list(itertools.accumulate(lengths, initial=0)), torch.int32)

    alone = ends(own)
    return Seams(
        tensor(others),
        tensor(trunks),
        (alone, alone, max(own), max(own)),
        (ends(queries), ends(keys), max(queries, default=0), max(keys, default=0)),
    )


class MergedVarlen(torch.autograd.Function):
    """q: [T, heads, D]; k, v: [T, key heads, D]; the output is as q."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, cut: Seams) -> Tensor:
        forward, _ = kernels(q)
        out, lse = forward(q, k, v, cut.own, True, scale)
        if len(cut.others):
            seen, lse_seen = forward(q[cut.others], k[cut.trunks], v[cut.trunks], cut.seen, False, scale)
            own, lse_own = out[cut.others], lse[:, cut.others]
            share = torch.sigmoid(lse_seen - lse_own).t()[..., None].to(own.dtype)
            out.index_copy_(0, cut.others, torch.lerp(own, seen, share))
            lse.index_copy_(1, cut.others, torch.logaddexp(lse_seen, lse_own))
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.scale, ctx.cut = scale, cut
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        cut, (_, backward) = ctx.cut, kernels(q)
        grad = grads[0].contiguous()
        dq, dk, dv = backward(grad, q, k, v, out, lse, cut.own, True, ctx.scale)
        if len(cut.others):
            at, trunk = cut.others, cut.trunks
            parts = (grad[at], q[at], k[trunk], v[trunk], out[at], lse[:, at].contiguous())
            dq_seen, dk_seen, dv_seen = backward(*parts, cut.seen, False, ctx.scale)
            dq.index_add_(0, at, dq_seen)
            dk.index_add_(0, trunk, dk_seen)
            dv.index_add_(0, trunk, dv_seen)
        return dq, dk, dv, None, None


def kernels(q: Tensor) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """(forward, backward) for where q is."""
    return (flash_forward, flash_backward) if q.is_cuda else (plain_forward, plain_backward)


# ---------------------------------------------------------------- flash attention on a GPU


def flash_forward(
    q: Tensor, k: Tensor, v: Tensor, sequences: Sequences, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """The operator under torch.nn.attention.varlen, whose own gradient does not know of the log-sum-exp. Returns the
    output as q and its log-sum-exp [heads, T]."""
    out, lse, *_ = torch.ops.aten._flash_attention_forward(q, k, v, *sequences, 0.0, causal, False, scale=scale)
    if lse.shape != (q.shape[1], q.shape[0]):
        raise RuntimeError(f"log-sum-exps come as {tuple(lse.shape)}, not as (heads, tokens)")
    return out, lse


def flash_backward(
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
    state = torch.zeros(2, dtype=torch.uint64, device=q.device)  # of dropout, of which there is none
    unused = torch.empty(0, device=q.device)
    return torch.ops.aten._flash_attention_backward(
        grad, q, k, v, out, lse, *sequences, 0.0, causal, state, unused, scale=scale
    )


# ---------------------------------------------------------------- the same in matrices, a sequence at a time


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
