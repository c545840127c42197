"""Attention inside a forest, for unmodified Hugging Face models: a token sees its prompt, and its own branch so far.

On a CPU a small tree is dense blocks under its mask; a large one is flash attention, a branch at a time, its view of
the prompt and of itself merged by their log-sum-exp. On a GPU the whole forest goes at once: in half precision to flash
attention for rows of any lengths (`varlen`), else to FlexAttention.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PretrainedConfig

from prefopt.scoring import varlen
from prefopt.scoring.forest import Forest, Tree

NAME = "prefopt_forest"
STRIP = 128  # rows of a block of scores: shorter ones leave more of the empty half out, in more and smaller products
DENSE = 640  # a tree of more tokens goes to flash attention: its block would be read and written too often

FLEX_OPTIONS = {"FORCE_USE_FLEX_ATTENTION": True}  # its kernel for few queries does not take every forest

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class Unsupported(Exception):
    """The model asks attention for something that is not done here."""


@contextmanager
def attention_named(config: PretrainedConfig, name: str) -> Iterator[None]:
    """While it lasts the model's layers call the attention function registered under `name`."""
    before = config._attn_implementation_internal
    config._attn_implementation_internal = name
    try:
        yield
    finally:
        config._attn_implementation_internal = before


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    forest: Forest | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """query: [1, heads, T, D]; key, value: [1, key heads, T, D], a divisor of heads. Returns [1, T, heads, D].

    Sliding windows are ignored: the caller sees to it that no row is longer than one.
    """
    del module, attention_mask
    if forest is None:
        raise Unsupported("its layers do not pass on what they are given for attention")
    if dropout or softcap is not None or s_aux is not None or value.shape[-1] != query.shape[-1]:
        raise Unsupported("its attention has dropout, a soft cap, sinks or values of another size")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    kind = query.device.type
    # Autocast casts what it knows, and knows nothing of this; 4-bit layers hand over float32 inside it.
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else value.dtype
    with torch.autocast(kind, enabled=False):
        return _attended(query.to(dtype), key.to(dtype), value.to(dtype), scale, forest), None


AttentionInterface.register(NAME, attend)


def _attended(query: Tensor, key: Tensor, value: Tensor, scale: float, forest: Forest) -> Tensor:
    """As `attend`, all of one type."""
    if varlen.fits(query):
        return varlen.varlen(query, key, value, scale, forest)
    if query.device.type != "cpu":
        return _flex(query, key, value, scale, forest).transpose(1, 2)
    cut = next((tree.start for tree in forest.trees if tree.size > DENSE), len(forest))
    small = tuple(tree for tree in forest.trees if tree.start < cut)
    large = tuple(Tree(t.start - cut, t.prompt, t.branches) for t in forest.trees if t.start >= cut)
    parts = []
    if small:
        masks = _masks(forest, small, query.dtype, query.shape[1] // key.shape[1])
        parts.append(_Dense.apply(query[0, :, :cut], key[0, :, :cut], value[0, :, :cut], scale, small, masks))
    if large:
        # Flash attention has no grouped heads on a CPU.
        groups = query.shape[1] // key.shape[1]
        rest = (t[:, :, cut:] for t in (query, key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)))
        parts.append(_Merged.apply(*rest, scale, large)[0])
    out = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
    return out.transpose(0, 1)[None]


class _Dense(torch.autograd.Function):
    """Scores of a tree in strips of rows, each against the columns up to its end; probabilities are kept.

    q: [heads, T, D]; k, v: [key heads, T, D].
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, trees: tuple[Tree, ...], masks: list[Tensor]
    ) -> Tensor:
        out = _rows_like(q)
        strips, kept = list(_strips(trees)), []
        for (rows, seen), mask in zip(strips, masks, strict=True):
            own, block = _grouped(q[:, rows], k), mask.expand(len(k), -1, -1)
            weights = torch.baddbmm(block, own, k[:, seen].transpose(1, 2), alpha=scale).softmax(-1)
            out[:, rows] = torch.bmm(weights, v[:, seen]).view(len(q), -1, v.shape[-1])
            kept.append(weights)
        ctx.save_for_backward(q, k, v, *kept)
        ctx.scale, ctx.strips = scale, strips
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *kept = ctx.saved_tensors
        dq, dk, dv = _rows_like(q), _rows_like(k), _rows_like(v)
        written = len(q[0])  # from here on: the last strip of a tree sees all of it, and comes first
        for (rows, seen), weights in zip(reversed(ctx.strips), reversed(kept), strict=True):
            grad, own = _grouped(grads[0][:, rows], k), _grouped(q[:, rows], k)
            dweights = torch.bmm(grad, v[:, seen].transpose(1, 2))
            dscores = torch._softmax_backward_data(dweights, weights, -1, weights.dtype)
            dq[:, rows] = torch.bmm(dscores, k[:, seen]).view(len(q), -1, q.shape[-1])
            # Into a part of a tensor torch multiplies matrix by matrix; into a new one, all at once.
            for whole, found in (
                (dk, torch.bmm(dscores.transpose(1, 2), own)),
                (dv, torch.bmm(weights.transpose(1, 2), grad)),
            ):
                if seen.start < written:
                    whole[:, seen] = found
                else:
                    whole[:, seen] += found
            written = seen.start
        return dq.mul_(ctx.scale), dk.mul_(ctx.scale), dv, None, None, None


class _Merged(torch.autograd.Function):
    """Flash attention, branch by branch. q, k, v: [1, heads, T, D].

    The prompt and its first branch lie in one causal call. Of every other branch, what it sees of the prompt and what
    it sees of itself are two calls, merged by their log-sum-exp; each backward is given the merged output and
    log-sum-exp, so it yields its own share of the gradient.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, trees: tuple[Tree, ...]) -> Tensor:
        out = _rows_like(q)
        sums = []
        for tree in trees:
            trunk, first, others = _parts(tree)
            out[:, :, first], lse = _flash(q[:, :, first], k[:, :, first], v[:, :, first], 0.0, True, scale=scale)
            sums.append(lse)
            for at in others:
                seen, lse_seen = _flash(q[:, :, at], k[:, :, trunk], v[:, :, trunk], 0.0, False, scale=scale)
                own, lse_own = _flash(q[:, :, at], k[:, :, at], v[:, :, at], 0.0, True, scale=scale)
                share = torch.sigmoid(lse_seen - lse_own)[..., None].to(own.dtype)
                out[:, :, at] = torch.lerp(own, seen, share)
                sums.append(torch.logaddexp(lse_seen, lse_own))
        ctx.save_for_backward(q, k, v, out, *sums)
        ctx.scale, ctx.trees = scale, trees
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, *sums = ctx.saved_tensors
        dq, dk, dv = _rows_like(q), _rows_like(k), _rows_like(v)
        left = iter(sums)

        def parts(rows: slice, seen: slice, lse: Tensor, causal: bool) -> tuple[Tensor, Tensor, Tensor]:
            return _flash_backward(
                *(t[:, :, rows] for t in (grads[0], q)),
                *(t[:, :, seen] for t in (k, v)),
                out[:, :, rows],
                lse,
                0.0,
                causal,
                scale=ctx.scale,
            )

        for tree in ctx.trees:
            trunk, first, others = _parts(tree)
            dq[:, :, first], dk[:, :, first], dv[:, :, first] = parts(first, first, next(left), True)
            for at in others:
                lse = next(left)
                dq_own, dk[:, :, at], dv[:, :, at] = parts(at, at, lse, True)
                dq_seen, dk_seen, dv_seen = parts(at, trunk, lse, False)
                dq[:, :, at] = dq_own + dq_seen
                dk[:, :, trunk] += dk_seen
                dv[:, :, trunk] += dv_seen
        return dq, dk, dv, None, None


def _parts(tree: Tree) -> tuple[slice, slice, list[slice]]:
    """(prompt, prompt with its first branch, the other branches)."""
    first, *others = tree.branches or (0,)
    end = tree.start + tree.prompt + first
    found = []
    for length in others:
        found.append(slice(end, end + length))
        end += length
    return slice(tree.start, tree.start + tree.prompt), slice(tree.start, tree.start + tree.prompt + first), found


def _strips(trees: tuple[Tree, ...]) -> Iterator[tuple[slice, slice]]:
    """(rows, columns that any of them may see): half of a tree's square lies above its diagonal and is never made."""
    for tree in trees:
        for start in range(tree.start, tree.end, STRIP):
            end = min(start + STRIP, tree.end)
            yield slice(start, end), slice(tree.start, end)


def _grouped(q: Tensor, k: Tensor) -> Tensor:
    """[heads, n, D] to [key heads, heads / key heads · n, D]: the query heads of a key head, one after the other."""
    return q.reshape(len(k), -1, q.shape[-1])


def _rows_like(t: Tensor) -> Tensor:
    """Empty, of the same shape, the heads of a token side by side in memory: what the next layer reads."""
    return torch.empty_like(t.transpose(-3, -2), memory_format=torch.contiguous_format).transpose(-3, -2)


def _masks(forest: Forest, trees: tuple[Tree, ...], dtype: torch.dtype, groups: int) -> list[Tensor]:
    """Of every strip, as often below itself as there are query heads to a key head. All layers of a forward read those
    that the first one made; they go when the forest goes."""
    key, found = forest.__dict__.get("_masks", (None, []))
    if key != (dtype, groups):
        found = []
        for tree in trees:
            whole = tree_mask(tree.prompt, tree.branches, dtype)
            alone = Tree(0, tree.prompt, tree.branches)
            found += [whole[rows, seen].repeat(groups, 1) for rows, seen in _strips((alone,))]
        object.__setattr__(forest, "_masks", ((dtype, groups), found))
    return found


def tree_mask(prompt: int, branches: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """[n, n]: 0 where a token may look, -inf where not."""
    size = prompt + sum(branches)
    may = torch.ones(size, size, dtype=torch.bool).tril()
    start = prompt
    for length in branches:
        end = start + length
        may[end:, start:end] = False
        start = end
    return torch.zeros(size, size, dtype=dtype).masked_fill(~may, float("-inf"))


def _flex(query: Tensor, key: Tensor, value: Tensor, scale: float, forest: Forest) -> Tensor:
    mask = block_mask(forest, query.device)
    call = _compiled_flex() if query.device.type == "cuda" else _flex_attention()
    grouped = query.shape[1] != key.shape[1]
    return call(query, key, value, block_mask=mask, scale=scale, enable_gqa=grouped, kernel_options=FLEX_OPTIONS)


def block_mask(forest: Forest, device: torch.device) -> Any:
    """FlexAttention's form of the forest's mask; all layers of a forward read the one that the first one made."""
    found = forest.__dict__.get("_block_mask")
    if found is None:
        from torch.nn.attention.flex_attention import create_block_mask

        sizes = [(t, b) for t, tree in enumerate(forest.trees) for b in (tree.prompt, *tree.branches)]
        numbers = torch.tensor([(t, i) for i, (t, _) in enumerate(sizes)], device=device)
        lengths = torch.tensor([size for _, size in sizes], device=device)
        tree, branch = numbers.repeat_interleave(lengths, 0).unbind(1)
        trunks = {t: i for i, (t, _) in reversed(list(enumerate(sizes)))}
        trunk = torch.tensor([trunks[t] for t in range(len(forest.trees))], device=device)[tree]

        def may(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return (i >= j) & ((branch[i] == branch[j]) | (trunk[i] == branch[j]))

        found = create_block_mask(may, None, None, len(forest), len(forest), device=device)
        object.__setattr__(forest, "_block_mask", found)
    return found


@functools.cache
def _flex_attention() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention


@functools.cache
def _compiled_flex() -> Any:
    return torch.compile(_flex_attention(), dynamic=True)
