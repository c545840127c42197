"""What every process of benchmarks/gpu.py shares, prefopt's and the peer's alike: shapes, models, clocks, reports.

Imports nothing of prefopt, because the peer's environment has none.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

# "1b" has the sizes of Llama 3.2 1B. All tie the head to the embedding.
SHAPES: dict[str, dict[str, int]] = {
    "1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128_256,
    },
    "miniature": {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 384,
    },
}
ENDS = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
MODES = ("full", "lora")

Ids = list[int]
Pair = tuple[Ids, Ids, Ids]  # of prompt, chosen and rejected
Step = list[Pair]


@dataclass(frozen=True)
class Settings:
    """What is the same for all systems of a run. passes: over a process's steps that are counted, after one that warms
    up, so that every shape has been met. rank: of LoRA."""

    shape: str
    device: str
    seed: int
    passes: int
    rank: int = 16
    lr: float = 1e-5
    beta: float = 0.1

    @property
    def sizes(self) -> dict[str, Any]:
        return SHAPES[self.shape]

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and activations: bfloat16, but float32 where a CPU only goes through the motions."""
        return torch.bfloat16 if self.device == "cuda" else torch.float32

    def write(self, folder: Path) -> None:
        (folder / "settings.json").write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, folder: Path) -> Settings:
        return cls(**json.loads((folder / "settings.json").read_text()))


def write_steps(folder: Path, name: str, steps: list[Step]) -> None:
    _steps_file(folder, name).write_text(json.dumps(steps))


def read_steps(folder: Path, name: str) -> list[Step]:
    return json.loads(_steps_file(folder, name).read_text())


def _steps_file(folder: Path, name: str) -> Path:
    return folder / f"steps-{name.replace(':', '-')}.json"


def causal(settings: Settings, attention: str = "sdpa") -> Any:
    """The shape with random weights that are a function of the seed, in training mode."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    options: dict[str, Any] = {**settings.sizes, **ENDS, "tie_word_embeddings": True, "max_position_embeddings": 8192}
    config = LlamaConfig(**options)
    torch.manual_seed(settings.seed)
    with torch.device(settings.device):
        model = AutoModelForCausalLM.from_config(config, dtype=settings.dtype, attn_implementation=attention)
    return model.train()


def lora(settings: Settings) -> Any:
    """The same adapter for everybody: on all linear layers but the head, without dropout."""
    from peft import LoraConfig

    rank = settings.rank
    return LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear")


def low_precision_adapter(model: Any, settings: Settings) -> None:
    """PEFT keeps an adapter in float32 on a bfloat16 base, and its products with it; in the base's precision they are
    faster, for every system."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(settings.dtype)


# ---------------------------------------------------------------- clocks and memory


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def now(device: str) -> float:
    """Seconds, once all that was asked of the device is done."""
    synchronize(device)
    return time.perf_counter()


def seconds(call: Callable[[], Any], device: str, repeats: int) -> float:
    """Median of `repeats` calls after one that warms up: by CUDA's events on a GPU, by the clock elsewhere."""
    call()
    if device != "cuda":
        return statistics.median(_clocked(call) for _ in range(repeats))
    marks = [tuple(torch.cuda.Event(enable_timing=True) for _ in range(2)) for _ in range(repeats)]
    for begin, end in marks:
        begin.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(begin.elapsed_time(end) for begin, end in marks) / 1e3


def _clocked(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def forget_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()


def peak_bytes(device: str) -> int | None:
    """The most that tensors have taken since `forget_peak`; None on a CPU."""
    return torch.cuda.max_memory_allocated() if device == "cuda" else None


def held_bytes(device: str) -> int:
    return torch.cuda.memory_allocated() if device == "cuda" else 0


def hardware(device: str) -> str:
    if device != "cuda":
        return "cpu: a miniature, whose times mean nothing"
    about = torch.cuda.get_device_properties(0)
    return f"{about.name}, {about.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"


def answer(main: Callable[..., dict[str, Any]]) -> None:
    """What a process does with its command line, FOLDER REPORT [ARGUMENT…]."""
    folder, report, *arguments = sys.argv[1:]
    found = main(Path(folder), *arguments)
    Path(report).write_text(json.dumps(found))
