"""What a run may be asked: the sections of conf/ that are not objects of their own, and how they are trained by.

No defaults in any of them: they stand in conf/, once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from prefopt.settings.checks import one_of, require, require_seed, seconds_of
from prefopt.settings.data import DataSettings
from prefopt.settings.guards import GuardsSettings
from prefopt.settings.models import ModelSettings
from prefopt.settings.rewards import RewardSettings

# Lightning's «true» precisions also cast batches, and with them weights and margins; here they only name the weights.
WHOLE = {"64": "float64", "64-true": "float64", "bf16-true": "bfloat16", "16-true": "float16"}
PRECISIONS = ("32", "32-true", "64", "64-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "auto")


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
    non_finite: str
    checkpoint_every: float | None
    val_every: float | None

    def __post_init__(self) -> None:
        require(self.max_steps is None or self.max_steps >= 1, "trainer.max_steps", "at least 1", self.max_steps)
        require(0 < self.max_epochs < math.inf, "trainer.max_epochs", "a number above 0", self.max_epochs)
        require(self.devices >= 1, "trainer.devices", "at least 1", self.devices)
        one_of(self.accelerator, "trainer.accelerator", ("auto", "cpu", "gpu", "cuda"))
        one_of(str(self.precision), "trainer.precision", PRECISIONS)
        require(self.clip is None or self.clip > 0, "trainer.clip", "above 0, or null for none", self.clip)
        one_of(self.non_finite, "trainer.non_finite", ("stop", "skip"))
        for name in ("checkpoint_every", "val_every"):
            value = getattr(self, name)
            wanted = "above 0: under 1 a fraction of the run, from 1 on optimiser steps"
            require(value is None or 0 < value < math.inf, f"trainer.{name}", wanted, value)


@dataclass(kw_only=True)
class StrategySettings:
    """Where the weights and the optimiser's state lie. stage, offload: of DeepSpeed's ZeRO."""

    name: str
    stage: int | None = None
    offload: bool = False

    def __post_init__(self) -> None:
        one_of(self.name, "strategy.name", ("single", "ddp", "fsdp", "deepspeed"))
        staged = self.name != "deepspeed" or self.stage in (2, 3)
        require(staged, "strategy.stage", "2 or 3", self.stage)

    @property
    def saves(self) -> bool:
        """Whether there are checkpoints to go on from: DeepSpeed's are folders of pickles, which are not read."""
        return self.name != "deepspeed"


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


BUILT = ("loss", "optimizer", "schedule", "strategy")  # sections of a request that become objects of their own


@dataclass(kw_only=True)
class Settings:
    """A resolved request, but for strategy; loss, optimizer and schedule are built from their own `_target_`."""

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
    save_by: Any
    debug: bool

    def __post_init__(self) -> None:
        require_seed("seed", self.seed)
        limit = self.time_limit
        require(limit is None or limit > 0, "save_by", "seconds, HH:MM:SS or D-HH:MM:SS, or null", self.save_by)

    @property
    def time_limit(self) -> float | None:
        """Seconds; nan where save_by says no time."""
        return None if self.save_by is None else seconds_of(str(self.save_by))

    @property
    def weights_dtype(self) -> str:
        return WHOLE.get(str(self.trainer.precision), self.model.dtype)

    @property
    def lightning_precision(self) -> Any:
        return "32-true" if str(self.trainer.precision) in WHOLE else self.trainer.precision

    def judges(self) -> list[tuple[str, str]]:
        """(key, hub name or folder) of every model that says what an answer is worth, and of one that only watches."""
        watch = self.source.watch
        watching = [("source.watch", watch)] if watch is not None and watch not in ("auto", "gold") else []
        return [*self.reward.models(), *watching]

    def takes_turns(self, chat_template: str | None) -> bool:
        """data.prompts=auto: the chat template where a model has one of its own; a tiny base has seen plain text."""
        data, own = self.data, bool(chat_template) and self.model.tiny is None
        return data.prompts == "chat" or (data.prompts == "auto" and own and not data.templated)
