"""Files of prompts to answer: the same rows that train a model will do, what they answer themselves is not read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from prefopt.data.containers import kind, numbered_lines, read_rows
from prefopt.data.examples import Text
from prefopt.data.shapes import examples_of, has_shape
from prefopt.data.values import messages_of, text_of
from prefopt.errors import RequestError, nearest
from prefopt.files import at_home, check_can_be_named


@dataclass(frozen=True)
class Prompt:
    """source: "file:line", for messages."""

    prompt: Text
    source: str = ""


def read_prompts(path: str, setting: str) -> list[Prompt]:
    """Every prompt of a file: the lines of a .txt, rows with `prompt` or `messages`, or of any shape that data has. At
    least one."""
    file = at_home(path, setting)
    check_can_be_named(file, f"{setting}={path}")
    rows = _text_lines(file) if file.suffix.lower() == ".txt" and file.is_file() else read_rows(path, setting)
    found = [*_prompts(f"{setting}={path}", rows)]
    if not found:
        raise RequestError(f"{setting}={path}: holds no prompts")
    return found


def _prompts(title: str, rows: Iterator[tuple[str, Any]]) -> Iterator[Prompt]:
    first = next(rows, None)
    if (
        first is not None and has_shape(first[1]) and not _column(first[1])
    ):  # the prompt stands in a column of its shape
        for example in examples_of(title, chain([first], rows)):
            yield Prompt(example.prompt, example.source)
    elif first is not None:
        for where, row in chain([first], rows):
            yield Prompt(_prompt(row, where), where)


def _text_lines(file: Path) -> Iterator[tuple[str, Any]]:
    for number, line in numbered_lines(file):
        if line.strip():
            yield f"{file}:{number}", {"prompt": line.rstrip("\r\n")}


def _column(row: dict[str, Any]) -> str | None:
    return next((name for name in ("prompt", "messages") if row.get(name) is not None), None)


def _prompt(row: Any, where: str) -> Text:
    """`messages` end where the answer begins: an answer that they hold already is left out."""
    if not isinstance(row, dict):
        raise RequestError(f"{where}: a row must be an object, got {kind(row)}")
    name = _column(row)
    if name is None:
        near = next((found for column in row if (found := nearest(column, ("prompt", "messages")))), "")
        raise RequestError(f"{where}: no column prompt or messages{near}\nfound: {', '.join(row) or 'nothing'}")
    try:
        if name == "prompt" and not isinstance(row[name], list):
            return text_of(name, row[name])
        turns = messages_of(row[name])
    except ValueError as error:
        raise RequestError(f"{where}: {error}") from error
    asked = turns[:-1] if turns[-1]["role"] == "assistant" else turns
    if not asked:
        raise RequestError(f"{where}: column {name!r} holds an answer and no question")
    return asked
