"""What `model` may be asked: the base, its adapter, its bits, and whom it is held against."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from prefopt.settings.checks import DTYPES, one_of, require, require_seed

ALL_LINEAR = "all-linear"
REFERENCES = ("auto", "adapter_off", "copy", "start", "model", "none")


@dataclass(kw_only=True)
class AdapterSettings:
    rank: int
    alpha: int
    dropout: float
    targets: Any  # "all-linear", or module names
    dora: bool
    rslora: bool
    bias: str
    modules_to_save: list[str] | None
    layers: list[int] | None
    start: str | None

    def __post_init__(self) -> None:
        key = "model.adapter"
        require(self.rank >= 1, f"{key}.rank", "at least 1", self.rank)
        require(self.alpha >= 1, f"{key}.alpha", "at least 1", self.alpha)
        require(0 <= self.dropout < 1, f"{key}.dropout", "in [0, 1)", self.dropout)
        one_of(self.bias, f"{key}.bias", ("none", "lora_only", "all"))
        self.targets = [self.targets] if isinstance(self.targets, str) and self.targets != ALL_LINEAR else self.targets
        named = isinstance(self.targets, list) and bool(self.targets) and all(isinstance(t, str) for t in self.targets)
        known = f"{ALL_LINEAR}, or a list of module names"
        require(named or self.targets == ALL_LINEAR, f"{key}.targets", known, self.targets)
        layers = self.layers
        some = layers is None or (bool(layers) and min(layers) >= 0)
        require(some, f"{key}.layers", "a list of layer numbers from 0, or null for all", layers)


@dataclass(kw_only=True)
class QuantSettings:
    """A base in 4 bits under an adapter, by bitsandbytes."""

    kind: str
    double: bool
    compute_dtype: str

    def __post_init__(self) -> None:
        one_of(self.kind, "model.quant.kind", ("nf4", "fp4"))
        one_of(self.compute_dtype, "model.quant.compute_dtype", ("float32", "bfloat16", "float16"))


@dataclass(kw_only=True)
class TinySettings:
    """A small Llama and how it is fitted to demonstrations."""

    seed: int
    hidden_size: int
    layers: int
    heads: int
    vocab_size: int
    fit_tokens: int
    fit_epochs: int
    fit_steps: int
    fit_lr: float

    def __post_init__(self) -> None:
        require_seed("model.tiny.seed", self.seed)
        for name in ("hidden_size", "layers", "heads", "fit_tokens", "fit_epochs", "fit_steps"):
            require(getattr(self, name) >= 1, f"model.tiny.{name}", "at least 1", getattr(self, name))
        require(0 < self.fit_lr < math.inf, "model.tiny.fit_lr", "a number above 0", self.fit_lr)
        require(self.hidden_size % self.heads == 0, "model.tiny.heads", "a divisor of hidden_size", self.heads)
        require(
            self.vocab_size >= 300, "model.tiny.vocab_size", "at least 300 (every byte is a token)", self.vocab_size
        )


@dataclass(kw_only=True)
class ModelSettings:
    name: str | None
    tiny: TinySettings | None
    adapter: AdapterSettings | None
    quant: QuantSettings | None
    reference: str
    reference_name: str | None
    sync_every: int | None
    sync_mix: float
    reference_store: bool
    critic: str
    gradient_checkpointing: bool
    trust_remote_code: bool
    dtype: str
    learning_rate: float

    def __post_init__(self) -> None:
        one_of(self.dtype, "model.dtype", DTYPES)
        one_of(self.critic, "model.critic", ("shared", "separate"))
        given = self.tiny is not None or bool(self.name)
        require(given, "model.name", "a hub name or a folder, e.g. model.name=HuggingFaceTB/SmolLM2-135M", self.name)
        unread = self.tiny is not None and self.name is not None
        require(not unread, "model.name", "left out with a tiny model; name one with model=hf or hf_lora", self.name)
        self._check_reference()

    def _check_reference(self) -> None:
        one_of(self.reference, "model.reference", REFERENCES)
        other, name = self.reference == "model", self.reference_name
        require(bool(name) or not other, "model.reference_name", "a hub name or a folder: model.reference=model", name)
        require(other or not name, "model.reference_name", "null unless model.reference=model", name)
        every = self.sync_every
        require(every is None or every >= 1, "model.sync_every", "at least 1 step, or null for never", every)
        require(0 < self.sync_mix <= 1, "model.sync_mix", "in (0, 1]", self.sync_mix)
        synced = self.reference in ("auto", "copy", "start")
        wanted = f"null with model.reference={self.reference}: only a copy can follow the policy (auto, copy, start)"
        require(synced or every is None, "model.sync_every", wanted, every)
