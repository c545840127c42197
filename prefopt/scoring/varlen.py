"""A forest's attention as two calls of flash attention for rows of any lengths, merged by their log-sum-exp: on a GPU
in half precision, where nothing need be compiled and no mask made.

The first call is causal, over the whole row of tokens: a prompt with its first branch is one sequence, every other
branch is one of its own. In the second the other branches of a tree, which lie side by side, are the queries of one
sequence, and their prompt holds its keys; nothing is repeated. Each backward is given the merged output and
log-sum-exp, so it yields its own share of the gradient, as on a CPU.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prefopt.scoring.forest import Forest, Tree

# Cumulative lengths of the queries and of the keys [sequences + 1] int32, and the longest of each.
Sequences = tuple[Tensor, Tensor, int, int]
LARGEST = 256  # values of a head; more of them the kernels do not take


@dataclass(frozen=True)
class Seams:
    """How a forest falls apart. others, trunks: tokens of the branches after the first, and of the prompts they see;
    own, seen: the sequences of the two calls."""

    others: Tensor
    trunks: Tensor
    own: Sequences
    seen: Sequences


def fits(query: Tensor) -> bool:
    """Whether flash attention takes it: bfloat16 or float16, on a GPU from Ampere on."""
    if not query.is_cuda or query.dtype not in (torch.bfloat16, torch.float16):
        return False
    size = query.shape[-1]
    return size % 8 == 0 and size <= LARGEST and torch.cuda.get_device_capability(query.device) >= (8, 0)


def varlen(query: Tensor, key: Tensor, value: Tensor, scale: float, forest: Forest) -> Tensor:
    """query: [1, heads, T, D]; key, value: [1, key heads, T, D]. Returns [1, T, heads, D]."""
    cut = forest.__dict__.get("_seams")
    if cut is None:
        cut = seams(forest.trees, query.device)
        object.__setattr__(forest, "_seams", cut)  # all layers of a forward read those that the first one made
    return MergedVarlen.apply(*(t.transpose(1, 2)[0] for t in (query, key, value)), scale, cut)[None]


def seams(trees: Iterable[Tree], device: torch.device) -> Seams:
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
        out, lse = flash_forward(q, k, v, cut.own, True, scale)
        if len(cut.others):
            others, trunks = cut.others, cut.trunks
            seen, lse_seen = flash_forward(q[others], k[trunks], v[trunks], cut.seen, False, scale)
            own, lse_own = out[others], lse[:, others]
            share = torch.sigmoid(lse_seen - lse_own).t()[..., None].to(own.dtype)
            out.index_copy_(0, others, torch.lerp(own, seen, share))
            lse.index_copy_(1, others, torch.logaddexp(lse_seen, lse_own))
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.scale, ctx.cut = scale, cut
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        cut, grad = ctx.cut, grads[0].contiguous()
        dq, dk, dv = flash_backward(grad, q, k, v, out, lse, cut.own, True, ctx.scale)
        if len(cut.others):
            at, trunk = cut.others, cut.trunks
            parts = (grad[at], q[at], k[trunk], v[trunk], out[at], lse[:, at].contiguous())
            dq_seen, dk_seen, dv_seen = flash_backward(*parts, cut.seen, False, ctx.scale)
            dq.index_add_(0, at, dq_seen)
            dk.index_add_(0, trunk, dk_seen)
            dv.index_add_(0, trunk, dv_seen)
        return dq, dk, dv, None, None


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
