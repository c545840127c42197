"""trainer.precision=auto: which matrix products are fast on this machine, and still right."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import torch

from prefopt.errors import RequestError
from prefopt.progress import say
from prefopt.settings import TrainerSettings

SIZE = 1024
ROUNDS = 5
# Relative, in the Frobenius norm. A mode that calls itself float32 must be that; bfloat16 keeps 8 bits.
BOUNDS = {"32": 1e-5, "bf16-mixed": 1e-2}
GAIN = 1.15  # a mode other than the default must be so many times faster


@dataclass(frozen=True)
class Mode:
    """precision: Lightning's name. matmul: of torch.set_float32_matmul_precision. seconds: of one product of SIZE;
    error: of its result."""

    precision: str
    matmul: str
    seconds: float = 0.0
    error: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.precision}, {self.matmul}"


PLAIN = Mode("32", "highest")
MODES = (PLAIN, Mode("32", "medium"), Mode("bf16-mixed", "highest"))


def settle(trainer: TrainerSettings, before: str | None) -> str:
    """Put a mode in place of `auto`, and say which and why. before: what the run began with, if it resumes. Returns
    what summary.json says of it."""
    if trainer.precision != "auto":
        return str(trainer.precision)
    if before is not None:
        chosen = next((mode for mode in MODES if mode.name == before), None)
        if chosen is None:
            known = "; ".join(mode.name for mode in MODES)
            raise RequestError(f"summary.json: precision must be what auto has chosen, {known}; got {before!r:.80}")
        say(f"trainer.precision=auto: {chosen.name}, as the run began")
    else:
        chosen = _chosen(trainer)
    trainer.precision = chosen.precision
    torch.set_float32_matmul_precision(chosen.matmul)
    return chosen.name


def device_type(trainer: TrainerSettings) -> str:
    """Where a run will train: cuda or cpu."""
    return device_for("cpu" if trainer.accelerator == "cpu" else "auto")


def device_for(asked: str) -> str:
    """cuda or cpu, of a command's `device`: auto takes a GPU where there is one."""
    there = torch.cuda.is_available()
    if asked == "cuda" and not there:
        raise RequestError("device=cuda: no GPU is seen here; take device=cpu")
    return "cuda" if asked != "cpu" and there else "cpu"


def local_device(trainer: TrainerSettings) -> str:
    """Where this process of it will: cpu, or a GPU of its own."""
    if device_type(trainer) == "cpu":
        return "cpu"
    return f"cuda:{os.environ.get('LOCAL_RANK') or os.environ.get('SLURM_LOCALID') or 0}"


def _chosen(trainer: TrainerSettings) -> Mode:
    found = measured(torch.device(device_type(trainer)))
    chosen = best(found)
    told = "; ".join(f"{m.name}: {found[0].seconds / m.seconds:.2f}× as fast, error {m.error:.0e}" for m in found[1:])
    say(f"trainer.precision=auto: {chosen.name} (against 32, highest, {told})")
    return chosen


def best(found: list[Mode]) -> Mode:
    """found: the default first. The fastest of those that are right, the default unless that is worth it."""
    plain, *others = found
    right = [mode for mode in others if mode.error <= BOUNDS[mode.precision] and mode.seconds * GAIN <= plain.seconds]
    return min(right, key=lambda mode: mode.seconds, default=plain)


def measured(device: torch.device) -> list[Mode]:
    """Every mode on the same product, in turn, the least of its times."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64).to(device) for _ in range(2))
    truth = left @ right
    operands = {mode: (left.to(_dtype(mode)), right.to(_dtype(mode))) for mode in MODES}
    seconds, errors = dict.fromkeys(MODES, float("inf")), dict.fromkeys(MODES, float("inf"))
    before = torch.get_float32_matmul_precision()
    try:
        for _ in range(ROUNDS):
            for mode, (a, b) in operands.items():
                torch.set_float32_matmul_precision(mode.matmul)
                began = time.perf_counter()
                product = a @ b
                if device.type == "cuda":
                    torch.cuda.synchronize()
                seconds[mode] = min(seconds[mode], time.perf_counter() - began)
                errors[mode] = float((product.double() - truth).norm() / truth.norm())
    finally:
        torch.set_float32_matmul_precision(before)
    return [Mode(mode.precision, mode.matmul, seconds[mode], errors[mode]) for mode in MODES]


def _dtype(mode: Mode) -> torch.dtype:
    return torch.bfloat16 if mode.precision == "bf16-mixed" else torch.float32
