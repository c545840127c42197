"""The JSON of a run folder, held against what a run writes: a damaged or a foreign one is refused by its key."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from prefopt.errors import RequestError
from prefopt.files import check_schema, read_json
from prefopt.settings import BUILT, Settings

SCHEMA = 1
LARGEST = 1e300  # of a number; what is computed from it must stay one
SECTIONS = (*(name for name, kind in get_type_hints(Settings).items() if is_dataclass(kind)), *BUILT)


def held_config(file: Path, named: str, way_out: str = "") -> dict[str, Any]:
    """The request that a run answered. named: "run=runs/mine". way_out: what else to do, for the message."""
    found = read_json(file, named, way_out)
    for section in SECTIONS:
        if not isinstance(found.get(section, {}), dict):
            raise RequestError(f"{named}: its config.json: {section} must be an object; got {_shown(found[section])}")
    for key, kind, what in (("adapter", dict, "an object"), ("quant", dict, "an object"), ("name", str, "text")):
        value = found.get("model", {}).get(key)
        if not isinstance(value, (kind, type(None))):
            raise RequestError(f"{named}: its config.json: model.{key} must be {what} or null; got {_shown(value)}")
    return found


def held_summary(file: Path, named: str, way_out: str = "") -> dict[str, Any]:
    """What a run says of itself. A key may be null, as it is where it does not apply."""
    found = read_json(file, named, way_out)
    check_schema(found, SCHEMA, f"{named}: its summary.json", way_out)
    for wanted, holds, keys in ENTRIES:
        for key in keys:
            if found.get(key) is not None and not holds(found[key]):
                got = _shown(found[key])
                raise RequestError(f"{named}: its summary.json: {key} must be {wanted}; got {got}{way_out}")
    if found.get("schema") is not None:
        found["resumed_at"] = found.get("resumed_at") or []
    return found


def _shown(value: Any) -> str:
    return f"{value!r:.80}"


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and _number(value)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and abs(value) <= LARGEST


def _truth(value: Any) -> bool:
    return isinstance(value, bool)


def _object(value: Any) -> bool:
    return isinstance(value, dict)


def _texts(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_text, value.values()))


def _measures(value: Any) -> bool:
    return isinstance(value, dict) and all(entry is None or _number(entry) for entry in value.values())


def _steps(value: Any) -> bool:
    return isinstance(value, list) and all(map(_whole, value))


def _alarms(value: Any) -> bool:
    told = ("guard", "step", "action", "sentence")
    return isinstance(value, list) and all(isinstance(one, dict) and {*told} <= one.keys() for one in value)


Entries = tuple[tuple[str, Callable[[Any], bool], tuple[str, ...]], ...]
ENTRIES: Entries = (
    ("text", _text, ("status", "command", "loss", "device", "precision", "git", "error")),
    ("text", _text, ("config_hash", "comparable_hash", "data_hash", "tokens_hash", "base_hash")),
    ("text", _text, ("model_hash", "row_order_hash")),
    ("a whole number", _whole, ("seed", "steps", "examples", "tokens", "peak_memory_bytes", "parameters", "trainable")),
    ("a whole number", _whole, ("skipped_steps",)),
    ("a number", _number, ("train_seconds", "pairs_per_second", "tokens_per_second", "sampling_seconds")),
    ("true or false", _truth, ("reward_is_log_odds",)),
    ("an object", _object, ("audit", "versions")),
    ("an object of numbers", _measures, ("val", "test", "test_reference", "samples", "samples_reference", "world")),
    ("an object of numbers", _measures, ("rollouts",)),
    ("an object of text", _texts, ("others_hash",)),
    ("a list of steps", _steps, ("resumed_at",)),
    ("a list of alarms", _alarms, ("health",)),
)
