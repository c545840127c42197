"""Runs grouped: a setting is a run's config without its seed, a method all settings of one loss."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from prefopt.reports.compare.runs import AT_ONCE, Run

UNSEEN = {"seed", *map(".".join, AT_ONCE)}  # of a setting
CHOICE = ("accuracy_logratio", "accuracy")  # of val; the second where a method has no log-prob
NAMES = {"accuracy_logratio": "accuracy by log-ratio", "accuracy": "accuracy by own reward"}


@dataclass(frozen=True, eq=False)
class Setting:
    """Runs that differ in nothing but their seed, in the order of seeds."""

    method: str
    label: str
    runs: tuple[Run, ...]

    @property
    def name(self) -> str:
        return f"{self.method} ({self.label})" if self.label else self.method

    @property
    def seeds(self) -> tuple[Any, ...]:
        return tuple(run.seed for run in self.runs)


@dataclass(frozen=True, eq=False)
class Method:
    """default: the setting whose loss options are all at their defaults; None where none is among the runs.
    best: of the grid, chosen on val by `chosen_by`."""

    name: str
    settings: tuple[Setting, ...]
    default: Setting | None
    best: Setting
    chosen_by: str

    @property
    def shown(self) -> tuple[Setting, ...]:
        return (self.best,) if self.default in (None, self.best) else (self.default, self.best)

    def choice(self, setting: Setting) -> str:
        best = f"best of {len(self.settings)}" if len(self.settings) > 1 else "only setting"
        roles = [*(["default"] if setting is self.default else []), *([best] if setting is self.best else [])]
        return ", ".join(roles)


def group(runs: Sequence[Run], defaults: Mapping[str, dict[str, Any]]) -> list[Method]:
    """Methods by name. defaults: the options of every known loss, by its `_target_`."""
    configs = [_flat({**run.config, "loss": None}) for run in runs]
    keys = dict.fromkeys(key for config in configs for key in config)
    usual = {key: Counter(_text(config.get(key)) for config in configs).most_common(1)[0][0] for key in keys}
    found: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        settings = found.setdefault(run.method, {})
        settings.setdefault(_text(_flat(run.config)), []).append(run)
    shared = _varying([run.config for run in runs], skipped="loss")
    return [_method(name, list(found[name].values()), defaults, usual, shared) for name in sorted(found)]


def _method(
    name: str, groups: list[list[Run]], defaults: Mapping[str, dict[str, Any]], usual: dict[str, str], shared: list[str]
) -> Method:
    firsts = [runs[0].config.get("loss") or {} for runs in groups]
    own = [key for key in _varying(firsts) if key != "_target_"]
    own = ["beta", *own] if "beta" not in own and "beta" in firsts[0] else own
    settings = [
        Setting(name, _label(runs[0].config, own, shared), tuple(sorted(runs, key=lambda run: _text(run.seed))))
        for runs in groups
    ]
    settings.sort(key=lambda setting: [_sortable(part) for part in setting.label.split(", ")])
    default = _default(settings, defaults, usual)
    measure = next((m for m in CHOICE if all(_on_val(s, m) is not None for s in settings)), CHOICE[-1])
    best = max(settings, key=lambda s: (_known(_on_val(s, measure)), s is default))
    return Method(name, tuple(settings), default, best, measure)


def _on_val(setting: Setting, measure: str) -> float | None:
    values = [run.measured("val", measure) for run in setting.runs]
    return None if any(value is None for value in values) else float(np.mean([v for v in values if v is not None]))


def _known(value: float | None) -> float:
    return -np.inf if value is None else value


def _default(
    settings: Sequence[Setting], defaults: Mapping[str, dict[str, Any]], usual: dict[str, str]
) -> Setting | None:
    """Of the settings with the loss as it comes, the one that else is most like the other runs."""

    def unusual(setting: Setting) -> int:
        held = _flat({**setting.runs[0].config, "loss": None})
        return sum(_text(held.get(key)) != value for key, value in usual.items())

    untouched = []
    for setting in settings:
        loss = setting.runs[0].config.get("loss") or {}
        default = defaults.get(str(loss.get("_target_")))
        if default is not None and all(loss.get(key) == value for key, value in default.items()):
            untouched.append(setting)
    return min(untouched, key=unusual, default=None)


def loss_defaults(folder: Path) -> dict[str, dict[str, Any]]:
    """The options in conf/loss/*.yaml, by `_target_`."""
    found = [yaml.safe_load(file.read_text("utf-8")) for file in sorted(folder.glob("*.yaml"))]
    return {loss["_target_"]: loss for loss in found}


# ---------------------------------------------------------------- labels


def _label(config: dict[str, Any], own: Sequence[str], shared: Sequence[str]) -> str:
    parts = [f"{key}={_shown(key, (config.get('loss') or {}).get(key))}" for key in own]
    return ", ".join([*parts, *(f"{key}={_shown(key, _at(config, key))}" for key in shared)])


def _varying(configs: Sequence[Any], prefix: str = "", skipped: str = "") -> list[str]:
    """The keys at which configs differ; of a section that some have not, its own name."""
    found = []
    for key in dict.fromkeys(key for config in configs for key in config):
        name, values = f"{prefix}{key}", [config.get(key) for config in configs]
        if name in (*UNSEEN, skipped) or len({_text(value) for value in values}) == 1:
            continue
        found += _varying(values, f"{name}.") if all(isinstance(value, dict) for value in values) else [name]
    return found


def _shown(key: str, value: Any) -> str:
    if isinstance(value, dict):
        return "set"
    if key.endswith("_target_"):
        return str(value).rpartition(".")[2]
    if isinstance(value, float):
        return f"{value:.10g}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _at(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = config.get(part) if isinstance(config, dict) else None
    return config


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in config.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return {key: value for key, value in found.items() if key not in UNSEEN}


def _sortable(part: str) -> tuple[str, float, str]:
    """beta=0.05 before beta=0.1 before beta=1."""
    key, _, value = part.partition("=")
    try:
        return key, float(value), ""
    except ValueError:
        return key, 0.0, value


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
