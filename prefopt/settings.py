"""What may be set, with types: the sections of conf/ that are not objects of their own. The YAML files explain each.

No defaults here: they stand in conf/, once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from prefopt.errors import RequestError, nearest

ALL_LINEAR = "all-linear"
REFERENCES = ("auto", "adapter_off", "copy", "start", "model", "none")
PRECISIONS = ("32", "32-true", "64", "64-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true")


def _require(holds: bool, key: str, wanted: str, value: object) -> None:
    if not holds:
        raise RequestError(f"{key} must be {wanted}; got {value!r}")


def _one_of(value: str, key: str, options: tuple[str, ...]) -> None:
    if value not in options:
        raise RequestError(f"{key} must be one of {', '.join(options)}; got {value!r}{nearest(value, options)}")


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
        _require(self.rank >= 1, f"{key}.rank", "at least 1", self.rank)
        _require(self.alpha >= 1, f"{key}.alpha", "at least 1", self.alpha)
        _require(0 <= self.dropout < 1, f"{key}.dropout", "in [0, 1)", self.dropout)
        _one_of(self.bias, f"{key}.bias", ("none", "lora_only", "all"))
        self.targets = [self.targets] if isinstance(self.targets, str) and self.targets != ALL_LINEAR else self.targets
        named = isinstance(self.targets, list) and bool(self.targets) and all(isinstance(t, str) for t in self.targets)
        known = f"{ALL_LINEAR}, or a list of module names"
        _require(named or self.targets == ALL_LINEAR, f"{key}.targets", known, self.targets)
        layers = self.layers
        some = layers is None or (bool(layers) and min(layers) >= 0)
        _require(some, f"{key}.layers", "a list of layer numbers from 0, or null for all", layers)


@dataclass(kw_only=True)
class QuantSettings:
    """A base in 4 bits under an adapter, by bitsandbytes."""

    kind: str
    double: bool
    compute_dtype: str

    def __post_init__(self) -> None:
        _one_of(self.kind, "model.quant.kind", ("nf4", "fp4"))
        _one_of(self.compute_dtype, "model.quant.compute_dtype", ("float32", "bfloat16", "float16"))


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
        _require(self.hidden_size % self.heads == 0, "model.tiny.heads", "a divisor of hidden_size", self.heads)
        _require(
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
    trust_remote_code: bool
    dtype: str
    learning_rate: float

    def __post_init__(self) -> None:
        _one_of(self.dtype, "model.dtype", ("float32", "bfloat16", "float16", "float64"))
        given = self.tiny is not None or bool(self.name)
        _require(given, "model.name", "a hub name or a folder, e.g. model.name=HuggingFaceTB/SmolLM2-135M", self.name)
        unread = self.tiny is not None and self.name is not None
        _require(not unread, "model.name", "left out with a tiny model; name one with model=hf or hf_lora", self.name)
        bare = self.quant is not None and self.adapter is None
        _require(not bare, "model.quant", "null without an adapter: 4-bit weights do not train", "an adapter of null")
        self._check_reference()

    def _check_reference(self) -> None:
        _one_of(self.reference, "model.reference", REFERENCES)
        if self.reference in ("adapter_off", "start") and self.adapter is None:
            raise RequestError(f"model.reference={self.reference} needs an adapter; model.adapter is null")
        other, name = self.reference == "model", self.reference_name
        _require(bool(name) or not other, "model.reference_name", "a hub name or a folder: model.reference=model", name)
        _require(other or not name, "model.reference_name", "null unless model.reference=model", name)
        every = self.sync_every
        _require(every is None or every >= 1, "model.sync_every", "at least 1 step, or null for never", every)
        _require(0 < self.sync_mix <= 1, "model.sync_mix", "in (0, 1]", self.sync_mix)
        synced = self.reference in ("auto", "copy", "start")
        wanted = f"null with model.reference={self.reference}: only a copy can follow the policy (auto, copy, start)"
        _require(synced or every is None, "model.sync_every", wanted, every)


@dataclass(kw_only=True)
class WorldSettings:
    subjects: int
    modifiers: int
    held_out: float
    pairs: int
    held_out_pairs: int
    val_pairs: int
    demonstrations: int
    agreement: float

    def __post_init__(self) -> None:
        _require(0.5 < self.agreement < 1, "data.world.agreement", "in (0.5, 1)", self.agreement)
        for name in ("pairs", "held_out_pairs", "val_pairs", "demonstrations"):
            _require(getattr(self, name) >= 2, f"data.world.{name}", "at least 2", getattr(self, name))


@dataclass(kw_only=True)
class DataSettings:
    kind: str
    name: str | None
    subset: str | None
    revision: str | None
    columns: dict[str, str] | None
    group: bool
    soft: str
    prompts: str
    templated: bool
    truncation: str
    train: str | None
    val: str | None
    test: str | None
    world: WorldSettings | None
    writer: TinySettings | None
    seed: int
    held_out: float
    max_length: int
    on_leak: str
    batch_size: int
    micro_batch_size: int | None

    def __post_init__(self) -> None:
        _require(self.batch_size >= 1, "data.batch_size", "at least 1", self.batch_size)
        micro = self.micro_batch_size
        _require(micro is None or micro >= 1, "data.micro_batch_size", "at least 1, or null for data.batch_size", micro)
        most = f"at most data.batch_size, which is {self.batch_size}"
        _require(micro is None or micro <= self.batch_size, "data.micro_batch_size", most, micro)
        _require(self.max_length >= 2, "data.max_length", "at least 2", self.max_length)
        _require(0 < self.held_out < 1, "data.held_out", "in (0, 1)", self.held_out)
        _one_of(self.kind, "data.kind", ("controlled", "jsonl", "hub"))
        _one_of(self.on_leak, "data.on_leak", ("warn", "drop", "error"))
        _one_of(self.soft, "data.soft", ("weight", "target"))
        _one_of(self.prompts, "data.prompts", ("auto", "chat", "text"))
        _one_of(self.truncation, "data.truncation", ("drop", "truncate_completion", "truncate_prompt_left"))
        given = self.kind != "jsonl" or bool(self.train)
        _require(given, "data.train", "a file of pairs or labels, e.g. data.train=pairs.jsonl", self.train)
        named = (self.kind == "hub") == bool(self.name)
        _require(named, "data.name", "a data set of the hub, with data=hub and only there", self.name)
        for name in ("train", "val", "test"):
            path = getattr(self, name)
            unread = path is not None and self.kind == "controlled"
            _require(not unread, f"data.{name}", "left out of the controlled world; files go with data=jsonl", path)


@dataclass(kw_only=True)
class TrainerSettings:
    max_steps: int | None
    max_epochs: float
    devices: int
    accelerator: str
    precision: Any
    clip: float | None
    checkpoint_every: float | None
    val_every: float | None

    def __post_init__(self) -> None:
        _require(self.max_steps is None or self.max_steps >= 1, "trainer.max_steps", "at least 1", self.max_steps)
        _require(self.max_epochs > 0, "trainer.max_epochs", "above 0", self.max_epochs)
        _require(self.devices >= 1, "trainer.devices", "at least 1", self.devices)
        _one_of(self.accelerator, "trainer.accelerator", ("auto", "cpu", "gpu", "cuda", "mps", "tpu"))
        _one_of(str(self.precision), "trainer.precision", PRECISIONS)
        _require(self.clip is None or self.clip > 0, "trainer.clip", "above 0, or null for none", self.clip)
        for name in ("checkpoint_every", "val_every"):
            value = getattr(self, name)
            wanted = "above 0: under 1 a fraction of the run, from 1 on optimiser steps"
            _require(value is None or value > 0, f"trainer.{name}", wanted, value)


@dataclass(kw_only=True)
class EvaluationSettings:
    batch_size: int
    prompts: int
    samples_per_prompt: int
    max_new_tokens: int
    temperature: float

    def __post_init__(self) -> None:
        for name in ("batch_size", "prompts", "samples_per_prompt", "max_new_tokens"):
            _require(getattr(self, name) >= 1, f"evaluation.{name}", "at least 1", getattr(self, name))
        _require(self.temperature > 0, "evaluation.temperature", "above 0", self.temperature)


@dataclass(kw_only=True)
class Settings:
    """A resolved request. loss, optimizer, schedule and strategy are built from their own `_target_`."""

    model: ModelSettings
    data: DataSettings
    trainer: TrainerSettings
    evaluation: EvaluationSettings
    seed: int
    run_dir: str | None
    cache_dir: str
    debug: bool
