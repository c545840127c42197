"""How much goes through a device at once."""

from __future__ import annotations

import torch

GPU = 4  # times what a CPU takes: fewer and larger launches, and there is memory for it


def at_once(amount: int, device: torch.device) -> int:
    """Of tokens or logits, where `amount` is a CPU's."""
    return amount if device.type == "cpu" else GPU * amount
