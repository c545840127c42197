"""Gradient checkpointing: of a layer only its input is kept; backward computes the rest again."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from prefopt.errors import RequestError
from prefopt.models.policy import Policy


def recompute_layers(policy: Policy) -> None:
    """From now on, while it trains: every layer is computed a second time in backward, in the surroundings that its
    first time had (`Policy.within`) and with the same random numbers. A critic of its own is another policy."""
    layers = [m for m in policy.causal.base_model.modules() if isinstance(m, GradientCheckpointingLayer)]
    if not layers:
        raise RequestError(
            f"model.gradient_checkpointing: {type(policy.causal).__name__} has no layers that can be computed again; "
            "take false"
        )

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), policy.surroundings()

    # Not activation_checkpointing_enable: it has the embeddings ask for gradients, which only reentrant
    # checkpointing needs, and a frozen base under an adapter would carry them through its first layer.
    for layer in layers:
        layer.gradient_checkpointing = True
        again: Any = partial(checkpoint, use_reentrant=False, context_fn=contexts)
        layer._gradient_checkpointing_func = again
