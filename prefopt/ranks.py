"""What the processes of a run tell one another beside tensors."""

from __future__ import annotations

from typing import Any, TypeVar

import torch

Told = TypeVar("Told")


def of_all_ranks(own: Told, world: int) -> list[Told]:
    """What each rank holds, in their order; every rank must ask. It travels as a pickle, among processes that one
    command has started."""
    if world == 1:
        return [own]
    found: list[Any] = [None] * world
    torch.distributed.all_gather_object(found, own)
    return found
