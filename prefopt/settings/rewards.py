"""Who judges the answers of a run. conf/reward/ explains the keys and holds their defaults."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from typing import Any

from prefopt.errors import RequestError, first_line, nearest
from prefopt.settings.checks import one_of, require

KINDS = ("gold", "model", "ensemble", "rule", "sum")
RULES = ("exact", "regex", "function")
PENALTIES = ("missing_end", "length", "repetition")
TAKEN = ("raw", "spread", "unread", *PENALTIES)  # what an annotator's parts are called beside those of a sum
FUNCTION = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


@dataclass(kw_only=True)
class RewardSettings:
    kind: str
    name: str | None
    names: list[str] | None
    combine: str
    k: float
    rule: str
    pattern: str | None
    function: str | None
    parts: dict[str, Any] | None
    each: dict[str, Any] | None
    weight: float
    missing_end: float
    length: float
    repetition: float
    scale: str
    least_accuracy: float | None

    def __post_init__(self) -> None:
        one_of(self.kind, "reward.kind", KINDS)
        one_of(self.combine, "reward.combine", ("mean", "worst", "lower"))
        one_of(self.scale, "reward.scale", ("none", "running", "reference"))
        require(self.k >= 0, "reward.k", "at least 0", self.k)
        for name in PENALTIES:
            require(getattr(self, name) >= 0, f"reward.{name}", "at least 0 (off)", getattr(self, name))
        least = self.least_accuracy
        require(least is None or 0 <= least <= 1, "reward.least_accuracy", "in [0, 1], or null for never", least)
        self._check_models()
        self._check_rule()
        self._check_parts()

    def models(self) -> list[tuple[str, str]]:
        """(key, name) of every reward model that is asked, those of a sum's parts too."""
        own = [("reward.name", self.name)] if self.name else [("reward.names", name) for name in self.names or []]
        below = ((part, found) for part in self.parts or {} for found in self.part(part).models())
        return own + [(_inside(part, key), name) for part, (key, name) in below]

    def asks_gold(self) -> str:
        """The key that asks for the true reward, a part's too, or nothing."""
        if self.kind == "gold":
            return "reward.kind"
        below = (_inside(part, key) for part in self.parts or {} if (key := self.part(part).asks_gold()))
        return next(below, "")

    def scales(self) -> bool:
        """Whether it, or a part of it, is in units of a spread."""
        return self.scale != "none" or any(self.part(part).scales() for part in self.parts or {})

    def part(self, name: str) -> RewardSettings:
        """An entry of a sum, with what it leaves out. RequestError names the key where it is wrong."""
        try:
            return _typed((self.parts or {})[name], self.each or {})
        except RequestError as error:
            raise RequestError(_inside(name, str(error))) from error

    def as_it_is(self, kind: str, name: str | None = None) -> RewardSettings:
        """Gold or one reward model, without penalties, scale and weight."""
        nothing: dict[str, Any] = dict.fromkeys(("names", "pattern", "function", "parts", "each"))
        off: dict[str, Any] = {**dict.fromkeys(PENALTIES, 0.0), "scale": "none", "rule": "exact", "weight": 1.0}
        return replace(self, kind=kind, name=name, **nothing, **off)

    def _check_models(self) -> None:
        self._only("name", self.kind == "model", "a run, hub name or folder", "kind=model")
        self._only("names", self.kind == "ensemble", "a list of runs, hub names or folders", "kind=ensemble")
        names = self.names
        several = names is None or len(set(names)) == len(names) >= 2
        require(several, "reward.names", "at least two different ones", names)

    def _check_rule(self) -> None:
        one_of(self.rule, "reward.rule", RULES)
        rule = self.rule if self.kind == "rule" else None
        self._only("pattern", rule == "regex", "a regular expression", "rule=regex")
        self._only("function", rule == "function", "package.module:name", "rule=function")
        try:
            re.compile(self.pattern or "")
        except (re.error, OverflowError, RecursionError) as error:
            raise RequestError(f"reward.pattern={self.pattern!r}: not a regular expression: {error}") from error
        well_formed = self.function is None or FUNCTION.fullmatch(self.function)
        require(bool(well_formed), "reward.function", "package.module:name", self.function)

    def _check_parts(self) -> None:
        self._only("parts", self.kind == "sum", "a dictionary of names to annotators", "kind=sum")
        for name in self.parts or {}:
            wanted = f"named by a word other than {', '.join(TAKEN)}"
            require(name.isidentifier() and name not in TAKEN, "reward.parts", wanted, name)
            self.part(name)

    def _only(self, name: str, holds: bool, wanted: str, of: str) -> None:
        """A key that one kind needs is for that kind alone."""
        value = getattr(self, name)
        said = f"{wanted} with reward.{of}" if holds else f"null unless reward.{of}"
        require(bool(value) == holds, f"reward.{name}", said, value)


def _typed(given: Any, left_out: dict[str, Any]) -> RewardSettings:
    """The keys of a part held against the schema, as Hydra's are."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    known = [field.name for field in fields(RewardSettings)]
    require(isinstance(given, dict), "reward.kind", "given in a dictionary of keys", given)
    for key in given:
        if key not in known:
            raise RequestError(f"reward.{key}: no such key{nearest(str(key), known)}\naccepted: {', '.join(known)}")
    one_of(str(given.get("kind")), "reward.kind", tuple(kind for kind in KINDS if kind != "sum"))
    try:
        merged = OmegaConf.merge(OmegaConf.structured(RewardSettings), left_out, given)
        found = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise RequestError(f"reward.{error.full_key}: {first_line(error)}") from error
    assert isinstance(found, RewardSettings)
    return found


def _inside(part: str, key: str) -> str:
    """A message or key of a part, from outside: reward.kind is reward.parts.form.kind."""
    return f"reward.parts.{part}.{key.removeprefix('reward.')}"
