"""What a trained policy said about a few held-out rows: an export of it must say the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from prefopt.data.examples import Encoded
from prefopt.models.policy import Policy
from prefopt.records import at_least_float32

FILE = "probe.safetensors"
ROWS, LONGEST = 8, 256  # rows, and tokens of each


@dataclass(frozen=True)
class Probe:
    """texts: R rows of ids. said: by name, whatever the model says of them, in float32 at least:

    logps    [C]     nats, the log-prob of every token given those before it, one row after another
    logits   [R, V]  after each row's last token
    rewards  [R]     of a reward model
    """

    texts: list[Tensor]
    said: dict[str, Tensor]

    def save(self, folder: Path) -> None:
        lengths = torch.tensor([len(text) for text in self.texts])
        said = {name: value.cpu().contiguous() for name, value in self.said.items()}
        save_file({"ids": torch.cat(self.texts).cpu(), "lengths": lengths, **said}, folder / FILE)

    @classmethod
    def load(cls, folder: Path) -> Probe:
        said = load_file(folder / FILE)
        lengths = said.pop("lengths").tolist()
        return cls(list(said.pop("ids").split(lengths)), said)

    @property
    def scale(self) -> float:
        """The largest number said: what rounding errors are relative to."""
        return max(float(value.abs().max()) for value in self.said.values())


def probe_rows(examples: Sequence[Encoded]) -> list[Tensor]:
    """The prompt and best answer of a few rows, evenly spread, cut to `LONGEST` tokens."""
    count = min(ROWS, len(examples))
    rows = [examples[i * len(examples) // count] for i in range(count)]
    return [torch.cat([torch.from_numpy(row.prompt), torch.from_numpy(row.completions[0])])[:LONGEST] for row in rows]


@torch.no_grad()
def record(policy: Policy, texts: list[Tensor]) -> Probe:
    """What a policy says by the functions it trained with; 4-bit weights are multiplied in float32."""
    with policy.evaluating(), _exactly(policy):
        rows = [_said(policy, text.to(policy.device)) for text in texts]
    return Probe(texts, _stacked(rows))


@torch.no_grad()
def replay(model: Any, probe: Probe) -> Probe:
    """What a model of transformers or PEFT says of the probe's texts through its own forward."""
    rows = []
    for text in probe.texts:
        logits = model(input_ids=text[None], attention_mask=torch.ones_like(text)[None]).logits[0]
        rows.append(_of_logits(logits, text) if logits.dim() == 2 else {"rewards": at_least_float32(logits)})
    return Probe(probe.texts, _stacked(rows))


def difference(one: Probe, other: Probe) -> float:
    """The largest difference between what both say; nan where either says nan."""
    shared = one.said.keys() & other.said.keys()
    if not shared:
        raise ValueError(f"one says {', '.join(one.said)}, the other {', '.join(other.said)}")
    return float(torch.stack([(one.said[name] - other.said[name]).abs().max().double() for name in shared]).max())


@contextmanager
def _exactly(policy: Policy) -> Iterator[None]:
    """bitsandbytes rounds what goes into a 4-bit layer to its compute_dtype, bfloat16 by default."""
    layers: list[Any] = [m for m in policy.modules() if isinstance(getattr(m, "compute_dtype", None), torch.dtype)]
    before = [layer.compute_dtype for layer in layers]
    try:
        for layer in layers:
            layer.compute_dtype = torch.float32
        yield
    finally:
        for layer, dtype in zip(layers, before, strict=True):
            layer.compute_dtype = dtype


def _said(policy: Policy, text: Tensor) -> dict[str, Tensor]:
    positions = torch.arange(len(text), device=text.device)[None]
    hidden = policy.hidden_states(text[None], torch.ones_like(text)[None], positions)[0]
    said = _of_logits(policy.lm_head(hidden), text) if policy.speaks else {}
    if "scalar" in policy.heads:
        said["rewards"] = at_least_float32(policy.scalar("scalar", hidden[-1:]))
    return said


def _of_logits(logits: Tensor, text: Tensor) -> dict[str, Tensor]:
    """logits: [L, V]"""
    logits = at_least_float32(logits)
    logps = logits[:-1].log_softmax(-1).gather(1, text[1:, None])[:, 0]
    return {"logps": logps, "logits": logits[-1]}


def _stacked(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    join = {"logps": torch.cat, "logits": torch.stack, "rewards": torch.cat}
    return {name: join[name]([row[name] for row in rows]) for name in rows[0]}
