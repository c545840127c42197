"""FSDP2: of each weight, its gradient and its optimiser's state a process keeps a shard; a layer is whole while it is
used. To run a sharded policy is a collective: every process has to run it equally often.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from prefopt.models.policy import Policy


def shard(policy: Policy, mesh: DeviceMesh) -> None:
    """In place: its layers, its scalar heads (float32 in a policy of any type), and together all that is left, which
    stays whole between a forward and its backward, where the output layer is called by itself."""
    for part in (*policy.layers, *policy.heads.values()):
        fully_shard(part, mesh=mesh)
    root = fully_shard(policy, mesh=mesh)
    register_fsdp_forward_method(policy, "hidden_states")
    policy.sharded = True
    one = torch.zeros(1, 1, dtype=torch.long, device=policy.device)
    with policy.evaluating(), torch.no_grad():  # the first forward tells the shards which of them is the outermost
        policy.hidden_states(one, one + 1, one)
    root.reshard()


def whole_tensor(tensor: Tensor) -> Tensor:
    """All of a sharded tensor, on every process at once; any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@contextmanager
def whole(policy: Policy) -> Iterator[None]:
    """While it lasts every process has all of the weights, and may run the policy as often as it likes: for held-out
    rows, of which processes have unequal numbers. Begun by all of them at once."""
    parts = [module for module in policy.modules() if isinstance(module, FSDPModule)]
    before, policy.sharded = policy.sharded, False
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        policy.sharded = before
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(part is not policy, recurse=False)
