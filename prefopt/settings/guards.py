"""What a run on its own answers watches for. conf/train.yaml explains the keys and holds their defaults."""

from __future__ import annotations

from dataclasses import dataclass, fields

from prefopt.settings.checks import one_of, require

COUNTS = ("window", "patience")
ACTIONS = ("off", "warn", "stop", "rollback")


@dataclass(kw_only=True)
class GuardSettings:
    """at: the bound. do: what happens where it is crossed."""

    at: float
    do: str


@dataclass(kw_only=True)
class GuardsSettings:
    window: int
    patience: int
    kl: GuardSettings
    kl_for_nothing: GuardSettings
    entropy: GuardSettings
    length: GuardSettings
    variety: GuardSettings
    equal_rewards: GuardSettings
    below_start: GuardSettings
    overoptimised: GuardSettings

    def __post_init__(self) -> None:
        for name in COUNTS:
            require(getattr(self, name) >= 1, f"guards.{name}", "at least 1 collection", getattr(self, name))
        for name, guard in self.each().items():
            one_of(guard.do, f"guards.{name}.do", ACTIONS)
            require(guard.at >= 0, f"guards.{name}.at", "at least 0", guard.at)

    def each(self) -> dict[str, GuardSettings]:
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name not in COUNTS}
