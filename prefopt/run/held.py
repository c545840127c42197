"""The JSON of a run folder, held against what a run writes: a damaged or a foreign one is refused by its key."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

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
    for key, entry in ENTRIES.items():
        value = found.get(key)
        if value is not None and not entry.holds(value):
            raise RequestError(f"{named}: its summary.json: {key} must be {entry.wanted}; got {_shown(value)}{way_out}")
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


class Entry(NamedTuple):
    """wanted: what a value must be, in words."""

    wanted: str
    holds: Callable[[Any], bool]


TEXT, WHOLE, NUMBER = Entry("text", _text), Entry("a whole number", _whole), Entry("a number", _number)
MEASURES = Entry("an object of numbers", _measures)
# What a summary.json says beside its schema, in its order.
ENTRIES = {
    "status": TEXT,
    "command": TEXT,
    "loss": TEXT,
    "seed": WHOLE,
    "config_hash": TEXT,
    "comparable_hash": TEXT,
    "data_hash": TEXT,
    "tokens_hash": TEXT,
    "base_hash": TEXT,
    "model_hash": TEXT,
    "row_order_hash": TEXT,
    "resumed_at": Entry("a list of steps", _steps),
    "steps": WHOLE,
    "examples": WHOLE,
    "tokens": WHOLE,
    "train_seconds": NUMBER,
    "pairs_per_second": NUMBER,
    "tokens_per_second": NUMBER,
    "peak_memory_bytes": WHOLE,
    "parameters": WHOLE,
    "trainable": WHOLE,
    "val": MEASURES,
    "test": MEASURES,
    "test_reference": MEASURES,
    "samples": MEASURES,
    "samples_reference": MEASURES,
    "reward_is_log_odds": Entry("true or false", _truth),
    "world": MEASURES,
    "audit": Entry("an object", _object),
    "versions": Entry("an object", _object),
    "rollouts": MEASURES,
    "sampling_seconds": NUMBER,
    "health": Entry("a list of alarms", _alarms),
    "skipped_steps": WHOLE,
    "others_hash": Entry("an object of text", _texts),
    "device": TEXT,
    "precision": TEXT,
    "git": TEXT,
    "error": TEXT,
}
