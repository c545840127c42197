"""Products of few rows, as every decoding step makes, with weights laid out for them.

With few rows a product takes as long as the reading of its weight does, and MKL reads a weight two to three times as
fast when it has laid it out beforehand for that number of rows (`cblas_sgemm_pack`). Laying out takes about as long as
one ordinary product, and a second copy of the weight while it lasts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from prefopt.models.policy import Policy

FEWEST, MOST = 4, 256  # rows: one is as fast without, and so are many
SMALL = 2**17  # weights of a layer: fewer lie in the processor's cache as they are
HERE = hasattr(torch.ops.mkl, "_mkl_linear")
ROOM = 2**28  # weights of a model: the second copy takes 1 GiB at most


@contextmanager
def few_rows(policy: Policy) -> Iterator[None]:
    """While it lasts, on a CPU and in float32, the model's larger linear layers read weights laid out for the rows that
    they are given. The weights themselves stay what and where they are, and must not change meanwhile."""
    chosen = _chosen(policy)
    try:
        for module in chosen:
            module.forward = _LaidOut(module)  # type: ignore[assignment]
        yield
    finally:
        for module in chosen:
            vars(module).pop("forward", None)


def _chosen(policy: Policy) -> list[nn.Linear]:
    # Layers of 4 bits and sharded weights are of other types; what somebody else has put in a forward's place stays.
    linear = [module for module in policy.causal.modules() if type(module) is nn.Linear]
    plain = [module for module in linear if type(module.weight) is nn.Parameter and "forward" not in vars(module)]
    chosen = [module for module in plain if module.weight.numel() >= SMALL]
    found = {(module.weight.device.type, module.weight.dtype) for module in chosen}
    size = sum(module.weight.numel() for module in chosen)
    return chosen if found == {("cpu", torch.float32)} and size <= ROOM and HERE else []


class _LaidOut:
    """A linear layer's forward."""

    def __init__(self, module: nn.Linear) -> None:
        self._weight, self._bias = module.weight, module.bias
        self._rows, self._laid = 0, module.weight

    def __call__(self, states: Tensor) -> Tensor:
        rows = states.numel() // states.shape[-1]
        if not FEWEST <= rows <= MOST or torch.is_autocast_enabled("cpu"):
            return linear(states, self._weight, self._bias)
        if rows != self._rows:
            self._rows, self._laid = rows, torch.ops.mkl._mkl_reorder_linear_weight(self._weight, rows)
        return torch.ops.mkl._mkl_linear(states, self._laid, self._weight, self._bias, rows)
