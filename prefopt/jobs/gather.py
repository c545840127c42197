"""From a module in shards to a whole one."""

from __future__ import annotations

import torch

from prefopt.config import Request
from prefopt.jobs.assemble import Parts, build_module
from prefopt.models.sharding import whole_tensor
from prefopt.module import PreferenceModule
from prefopt.progress import is_main_process


@torch.no_grad()
def gathered(request: Request, parts: Parts, module: PreferenceModule) -> PreferenceModule:
    """What can be sampled from and saved by one process alone: the module itself unless it is in shards, and then, on
    the main process, another with its weights. All processes take part."""
    if not module.policy.sharded:
        return module
    weights = {name: whole_tensor(p).cpu() for name, p in module.policy.trainable().items()}
    if not is_main_process():
        return module
    found = build_module(request, parts.base, again=True)
    for name, parameter in found.policy.trainable().items():
        parameter.copy_(weights[name])
    return found
