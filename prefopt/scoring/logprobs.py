"""Log-probs from hidden states, so that logits exist only for one chunk of tokens at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from prefopt.scoring.capacity import at_once

# Of a CPU; see `capacity`.
CHUNK = 2**25  # logits that exist at once, forward or backward: 128 MiB in float32
KEPT = 2**26  # a whole batch of no more logits keeps them for its backward instead of computing them again
QUANTITIES = ("entropy", "top1")


def token_quantities(
    head: Callable[[Tensor], Tensor],
    hidden: Tensor,
    targets: Tensor,
    vocabulary: int,
    quantities: frozenset[str] = frozenset(),
) -> dict[str, Tensor]:
    """log π(target) of every position, and what else the same logits can tell, each [C] in float32 at least.

    head: [c, H] to logits [c, V]. hidden: [C, H], the states that predict. targets: [C]. vocabulary: V. quantities:
    "entropy" in nats, "top1" (1 where the target is the likeliest token). Beyond KEPT logits chunks are computed again
    in backward: memory grows with CHUNK, not with C · V, for one more head pass.
    """
    unknown = quantities - set(QUANTITIES)
    if unknown:
        raise ValueError(f"needs.tokens asks for {', '.join(sorted(unknown))}; scoring knows {', '.join(QUANTITIES)}")
    names = sorted(quantities)

    def chunk(states: Tensor, wanted: Tensor) -> Tensor:
        with torch.autocast(states.device.type, enabled=False):
            logits = head(states)
        return _told(logits if logits.dtype == torch.float64 else logits.float(), wanted, names)

    again = torch.is_grad_enabled() and len(targets) * vocabulary > at_once(KEPT, hidden.device)
    parts = []
    size = max(1, at_once(CHUNK, hidden.device) // vocabulary)
    for states, wanted in zip(hidden.split(size), targets.split(size), strict=True):
        if again:
            parts.append(checkpoint(chunk, states, wanted, use_reentrant=False))
        else:
            parts.append(chunk(states, wanted))
    return dict(zip(["logps", *names], torch.cat(parts, dim=1), strict=True))


def _told(logits: Tensor, wanted: Tensor, names: list[str]) -> Tensor:
    """[1 + len(names), c]"""
    logps, entropy = _Read.apply(logits, wanted, "entropy" in names)
    others = {"entropy": entropy}
    if "top1" in names:
        others["top1"] = (logits.argmax(-1) == wanted).to(logps.dtype)
    return torch.stack([logps, *(others[name] for name in names)])


class _Read(torch.autograd.Function):
    """Logits [c, V] to (log p(target), entropy), each [c] nats. Backward makes one more tensor of their size, where
    autograd would make four. ∂ log p_t/∂z = 1_t - p; ∂H/∂z = -p (log p + H)."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, with_entropy: bool) -> tuple[Tensor, Tensor]:
        sums = logits.logsumexp(-1)
        logps = logits.gather(1, targets[:, None])[:, 0] - sums
        entropy = torch.zeros_like(sums)
        if with_entropy:
            entropy = sums - (torch.exp(logits - sums[:, None]) * logits).sum(-1)
        ctx.save_for_backward(logits, targets, sums, entropy)
        ctx.with_entropy = with_entropy
        return logps, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        logits, targets, sums, entropy = ctx.saved_tensors
        by_logp, by_entropy = grads
        found = torch.sub(logits, sums[:, None])  # log p
        if ctx.with_entropy:
            factor = -by_logp[:, None] - by_entropy[:, None] * (found + entropy[:, None])
            found.exp_().mul_(factor)
        else:
            found.exp_().mul_(-by_logp[:, None])
        found.scatter_add_(1, targets[:, None], by_logp[:, None])
        return found, None, None
