"""What a run may be asked: the sections of conf/ that are not objects of their own.

No defaults here: they stand in conf/, once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from prefopt.errors import RequestError
from prefopt.settings.checks import DTYPES, one_of, require, require_seed
from prefopt.settings.guards import GuardsSettings
from prefopt.settings.rewards import RewardSettings

ALL_LINEAR = "all-linear"
REFERENCES = ("auto", "adapter_off", "copy", "start", "model", "none")
# Lightning's «true» precisions also cast batches, and with them weights and margins; here they only name the weights.
WHOLE = {"64": "float64", "64-true": "float64", "bf16-true": "bfloat16", "16-true": "float16"}
PRECISIONS = ("32", "32-true", "64", "64-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "auto")


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
        bare = self.quant is not None and self.adapter is None
        require(not bare, "model.quant", "null without an adapter: 4-bit weights do not train", "an adapter of null")
        self._check_reference()

    def _check_reference(self) -> None:
        one_of(self.reference, "model.reference", REFERENCES)
        if self.reference in ("adapter_off", "start") and self.adapter is None:
            raise RequestError(f"model.reference={self.reference} needs an adapter; model.adapter is null")
        other, name = self.reference == "model", self.reference_name
        require(bool(name) or not other, "model.reference_name", "a hub name or a folder: model.reference=model", name)
        require(other or not name, "model.reference_name", "null unless model.reference=model", name)
        every = self.sync_every
        require(every is None or every >= 1, "model.sync_every", "at least 1 step, or null for never", every)
        require(0 < self.sync_mix <= 1, "model.sync_mix", "in (0, 1]", self.sync_mix)
        synced = self.reference in ("auto", "copy", "start")
        wanted = f"null with model.reference={self.reference}: only a copy can follow the policy (auto, copy, start)"
        require(synced or every is None, "model.sync_every", wanted, every)


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
        require(0.5 < self.agreement <= 1, "data.world.agreement", "in (0.5, 1]", self.agreement)
        for name in ("pairs", "held_out_pairs", "val_pairs", "demonstrations"):
            require(getattr(self, name) >= 2, f"data.world.{name}", "at least 2", getattr(self, name))


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
    batch_tokens: int | None
    micro_batch_size: int | None

    def __post_init__(self) -> None:
        tokens = self.batch_tokens
        require(tokens is None or tokens >= 1, "data.batch_tokens", "at least 1, or null", tokens)
        whole = tokens is None or self.micro_batch_size is None
        require(
            whole, "data.micro_batch_size", "null with data.batch_tokens: steps differ in rows", self.micro_batch_size
        )
        require(self.batch_size >= 1, "data.batch_size", "at least 1", self.batch_size)
        micro = self.micro_batch_size
        require(micro is None or micro >= 1, "data.micro_batch_size", "at least 1, or null for data.batch_size", micro)
        most = f"at most data.batch_size, which is {self.batch_size}"
        require(micro is None or micro <= self.batch_size, "data.micro_batch_size", most, micro)
        require(self.max_length >= 2, "data.max_length", "at least 2", self.max_length)
        require(0 < self.held_out < 1, "data.held_out", "in (0, 1)", self.held_out)
        require_seed("data.seed", self.seed)
        one_of(self.on_leak, "data.on_leak", ("warn", "drop", "error"))
        one_of(self.soft, "data.soft", ("weight", "target"))
        one_of(self.prompts, "data.prompts", ("auto", "chat", "text"))
        one_of(self.truncation, "data.truncation", ("drop", "truncate_completion", "truncate_prompt_left"))


@dataclass(kw_only=True)
class SourceSettings:
    kind: str
    prompts: int | None
    samples: int
    passes: int
    pair: str
    max_new_tokens: int
    min_new_tokens: int
    temperature: float
    top_p: float
    batch_size: int
    kl_target: float | None
    kl_horizon: float
    watch: str | None

    def __post_init__(self) -> None:
        one_of(self.kind, "source.kind", ("auto", "recorded", "rollouts"))
        one_of(self.pair, "source.pair", ("best_worst", "random"))
        for name in ("samples", "passes", "max_new_tokens", "batch_size"):
            require(getattr(self, name) >= 1, f"source.{name}", "at least 1", getattr(self, name))
        fits = 0 <= self.min_new_tokens <= self.max_new_tokens
        require(fits, "source.min_new_tokens", "from 0 to source.max_new_tokens", self.min_new_tokens)
        require(self.temperature > 0, "source.temperature", "above 0", self.temperature)
        require(0 < self.top_p <= 1, "source.top_p", "in (0, 1]", self.top_p)
        target = self.kl_target
        require(target is None or target > 0, "source.kl_target", "above 0 nats, or null", target)
        require(self.kl_horizon > 0, "source.kl_horizon", "above 0 answers", self.kl_horizon)


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
        require(self.max_steps is None or self.max_steps >= 1, "trainer.max_steps", "at least 1", self.max_steps)
        require(0 < self.max_epochs < math.inf, "trainer.max_epochs", "a number above 0", self.max_epochs)
        require(self.devices >= 1, "trainer.devices", "at least 1", self.devices)
        one_of(self.accelerator, "trainer.accelerator", ("auto", "cpu", "gpu", "cuda", "mps", "tpu"))
        one_of(str(self.precision), "trainer.precision", PRECISIONS)
        alone = self.precision != "auto" or self.devices == 1
        require(alone, "trainer.precision", "a name: auto is measured, and several devices might disagree", "auto")
        require(self.clip is None or self.clip > 0, "trainer.clip", "above 0, or null for none", self.clip)
        for name in ("checkpoint_every", "val_every"):
            value = getattr(self, name)
            wanted = "above 0: under 1 a fraction of the run, from 1 on optimiser steps"
            require(value is None or 0 < value < math.inf, f"trainer.{name}", wanted, value)


@dataclass(kw_only=True)
class EvaluationSettings:
    batch_size: int
    prompts: int
    samples_per_prompt: int
    max_new_tokens: int
    temperature: float

    def __post_init__(self) -> None:
        for name in ("batch_size", "prompts", "samples_per_prompt", "max_new_tokens"):
            require(getattr(self, name) >= 1, f"evaluation.{name}", "at least 1", getattr(self, name))
        require(self.temperature > 0, "evaluation.temperature", "above 0", self.temperature)


@dataclass(kw_only=True)
class Settings:
    """A resolved request. loss, optimizer and schedule are built from their own `_target_`, strategy is a name."""

    model: ModelSettings
    data: DataSettings
    source: SourceSettings
    reward: RewardSettings
    guards: GuardsSettings
    trainer: TrainerSettings
    evaluation: EvaluationSettings
    seed: int
    run_dir: str | None
    cache_dir: str
    debug: bool

    def __post_init__(self) -> None:
        require_seed("seed", self.seed)

    @property
    def weights_dtype(self) -> str:
        return WHOLE.get(str(self.trainer.precision), self.model.dtype)

    @property
    def lightning_precision(self) -> Any:
        return "32-true" if str(self.trainer.precision) in WHOLE else self.trainer.precision

    def takes_turns(self, chat_template: str | None) -> bool:
        """data.prompts=auto: the chat template where a model has one of its own; a tiny base has seen plain text."""
        data, own = self.data, bool(chat_template) and self.model.tiny is None
        return data.prompts == "chat" or (data.prompts == "auto" and own and not data.templated)
