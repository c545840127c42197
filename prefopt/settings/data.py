"""What `data` may be asked: where rows are from, how they become tokens, and how many make a step."""

from __future__ import annotations

from dataclasses import dataclass

from prefopt.settings.checks import one_of, require, require_seed
from prefopt.settings.models import TinySettings


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
