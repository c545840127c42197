"""What a column of a row may hold, each as itself or as text says it. ValueError says which column is wrong."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from typing import Any

from prefopt.data.containers import kind
from prefopt.data.examples import Message

ROLES = {"human": "user", "gpt": "assistant"}  # ShareGPT's names


def text_of(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"column {name!r} must be text, got {kind(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        message = f"column {name!r} holds half a surrogate pair, which is no text; mend its \\u escapes"
        raise ValueError(message) from None
    return value


def number_of(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> float:
    """A finite number in [low, high]; text that is one will do, as CSV knows no other."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if math.isfinite(number) and low <= number <= high:
        return number
    wanted = f"in {low:g} to {high:g}" if high < math.inf else f">= {low:g}" if low > -math.inf else ""
    raise ValueError(f"column {name!r} must be a finite number {wanted}".rstrip() + f"; got {value!r:.80}")


def truth_of(name: str, value: Any, soft: bool = False) -> float:
    names = {"true": 1.0, "false": 0.0, "1": 1.0, "0": 0.0, "1.0": 1.0, "0.0": 0.0}
    found = names.get(str(value).strip().lower())
    if found is not None:
        return found
    wanted = "true, false, 1, 0 or a probability between" if soft else "true, false, 1 or 0"
    try:
        number = float(value) if soft else math.nan
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not 0 <= number <= 1:
        raise ValueError(f"column {name!r} must be {wanted}; got {value!r:.80}")
    return number


def list_of(name: str, value: Any) -> list[Any]:
    """A list, or the JSON of one, as in a CSV cell."""
    if isinstance(value, str):
        with suppress(ValueError):
            value = json.loads(value)
    if not isinstance(value, list):
        raise ValueError(f"column {name!r} must be a list, got {kind(value)}")
    return value


def messages_of(value: list[Any]) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError("messages must be a list that holds at least one")
    found = []
    for message in value:
        if isinstance(message, dict) and "from" in message and "value" in message:
            who = message["from"]
            message = {"role": ROLES.get(who, who) if isinstance(who, str) else who, "content": message["value"]}
        if not (isinstance(message, dict) and isinstance(message.get("role"), str) and "content" in message):
            raise ValueError(f"a message must be {{'role': …, 'content': …}}, got {message!r:.80}")
        found.append({"role": text_of("role", message["role"]), "content": text_of("content", message["content"])})
    return tuple(found)


def answer_of(name: str, value: Any) -> str:
    """Text, a message, or a list of messages that ends in the assistant's."""
    if isinstance(value, dict):
        value = [value]
    if isinstance(value, list):
        last = messages_of(value)[-1]
        if last["role"] != "assistant":
            raise ValueError(f"column {name!r} must end in a message of the assistant, not of {last['role']!r}")
        return last["content"]
    return text_of(name, value)
