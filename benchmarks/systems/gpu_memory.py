"""Peak memory and seconds of a DPO loss from hidden states, forward and backward, by how the head is computed.

`python gpu_memory.py FOLDER REPORT TOKENS…`: head after head, at growing numbers of completion tokens. All heads get
the same states, rows of equal length and a reference of 0 nats, so their losses must be equal. The weight of the head
and its gradient exist before, and are not counted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor, nn

from benchmarks.systems.gpu_common import (
    Settings,
    answer,
    forget_peak,
    hardware,
    held_bytes,
    peak_bytes,
    seconds,
)
from prefopt.errors import first_line
from prefopt.objectives.dpo import dpo_loss
from prefopt.scoring import logprobs
from prefopt.scoring.capacity import at_once

LENGTH = 128  # tokens of a completion
REPEATS = 3
Loss = Callable[[nn.Linear, Tensor, Tensor], Tensor]  # of a head, states [B, T, H] and targets [B, T]
CHUNKS = (25, 27, 29)  # logits that exist at once, powers of two
OPTIONAL = ("Liger, fused linear DPO", "Liger, fused linear cross-entropy")
HEADS = (*(f"prefopt, chunks of 2^{power} logits" for power in CHUNKS), "whole logits", *OPTIONAL)


def loss_of(name: str, settings: Settings) -> Loss:
    """Raises where a head needs a package that is not there."""
    beta = settings.beta
    if name == "whole logits":
        return lambda head, states, targets: _dpo(_whole(head, states, targets), beta)
    if name == OPTIONAL[0]:
        return _liger_dpo(beta)
    if name == OPTIONAL[1]:
        return _liger_cross_entropy()
    logprobs.CHUNK = 2 ** int(name.partition("2^")[2].split()[0]) // at_once(1, torch.device(settings.device))
    return lambda head, states, targets: _dpo(_chunked(head, states, targets), beta)


def _chunked(head: nn.Linear, states: Tensor, targets: Tensor) -> Tensor:
    flat, vocabulary = states.flatten(0, 1), len(head.weight)
    return logprobs.token_quantities(head, flat, targets.flatten(), vocabulary)["logps"].view_as(targets)


def _whole(head: nn.Linear, states: Tensor, targets: Tensor) -> Tensor:
    return head(states).float().log_softmax(-1).gather(2, targets[..., None])[..., 0]


def _dpo(logps: Tensor, beta: float) -> Tensor:
    """logps: [B, T] nats, chosen rows first."""
    chosen, rejected = logps.sum(1).chunk(2)
    return dpo_loss(chosen - rejected, beta).mean()


def _liger_dpo(beta: float) -> Loss:
    from liger_kernel.chunked_loss import LigerFusedLinearDPOLoss

    loss = LigerFusedLinearDPOLoss(beta=beta, use_ref_model=False, compiled=torch.cuda.is_available())
    return lambda head, states, targets: loss(head.weight, states, targets)[0]


def _liger_cross_entropy() -> Loss:
    """Another loss, for its memory only."""
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss = LigerFusedLinearCrossEntropyLoss(reduction="mean")
    return lambda head, states, targets: loss(head.weight, states.flatten(0, 1), targets.flatten())


def measured(settings: Settings, loss: Loss, tokens: int, length: int = LENGTH) -> dict[str, Any]:
    """grown: bytes that the peak exceeds what was held before; None on a CPU. seconds: of forward and backward."""
    torch.manual_seed(settings.seed)
    hidden, vocabulary = settings.sizes["hidden_size"], settings.sizes["vocab_size"]
    place: dict[str, Any] = {"device": settings.device, "dtype": settings.dtype}
    head = nn.Linear(hidden, vocabulary, bias=False, **place)
    head.weight.grad = torch.zeros_like(head.weight)  # a training process has it anyway
    states = torch.randn(tokens // length, length, hidden, requires_grad=True, **place)
    targets = torch.randint(0, vocabulary, states.shape[:2], device=settings.device)
    told: list[float] = []

    def both() -> None:
        states.grad = None
        found = loss(head, states, targets)
        found.backward()
        told.append(float(found.detach()))

    both()
    states.grad = None
    forget_peak(settings.device)
    before = held_bytes(settings.device)
    both()
    peak = peak_bytes(settings.device)
    grown = None if peak is None else peak - before
    return {"grown": grown, "seconds": seconds(both, settings.device, REPEATS), "loss": told[0]}


def main(folder: Path, *tokens: str) -> dict[str, Any]:
    settings = Settings.read(folder)
    found = {name: head(settings, name, tokens) for name in HEADS}
    return {"heads": found, "hardware": hardware(settings.device)}


def head(settings: Settings, name: str, tokens: Sequence[str]) -> dict[str, Any]:
    try:
        return {"cases": cases(settings, loss_of(name, settings), tokens)}
    except Exception as error:
        if name not in OPTIONAL:
            raise
        return {"absent": first_line(error)}


def cases(settings: Settings, loss: Loss, tokens: Sequence[str]) -> dict[str, Any]:
    """By completion tokens, until memory is out."""
    found: dict[str, Any] = {}
    for count in tokens:
        try:
            found[count] = measured(settings, loss, int(count))
        except torch.OutOfMemoryError:
            found[count] = {"failed": "out of memory"}
            break
        if settings.device == "cuda":
            torch.cuda.empty_cache()
    return found


if __name__ == "__main__":
    answer(main)
