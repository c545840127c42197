"""Files of rows: JSON lines, JSON, CSV and Parquet, read row by row, each with the line it stands in."""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from prefopt.errors import RequestError, first_line, nearest
from prefopt.files import at_home, check_can_be_named

Row = dict[str, Any]
LONGEST_LINE = 2**24  # characters; a longer row is no example but a file without line breaks


def read_rows(path: str, setting: str) -> Iterator[tuple[str, Any]]:
    """("path:line", row) of a file; the rows of a .json list and of .parquet, which have no lines, count from 1.

    setting: the key that named the file. A file larger than memory is fine, but for .json, which is read whole.
    """
    file = at_home(path, setting)
    check_can_be_named(file, f"{setting}={path}")
    if file.is_dir():
        raise RequestError(f"{setting}={path}: a folder; name a file in it")
    if not file.is_file():
        beside = [other.name for other in file.parent.glob("*") if other.is_file()]
        raise RequestError(f"{setting}={path}: no such file{nearest(file.name, beside)}")
    for suffix, read in READERS.items():
        if file.name.lower().endswith(suffix):
            return ((f"{path}:{line}", row) for line, row in read(file))
    raise RequestError(f"{setting}={path}: {file.suffix or 'no ending'} is not read; accepted: {', '.join(READERS)}")


def _json_lines(file: Path) -> Iterator[tuple[int, Row]]:
    for line, text in numbered_lines(file):
        if text.strip():
            yield line, _json(text, file, line)


def _json_list(file: Path) -> Iterator[tuple[int, Row]]:
    content = _json("".join(text for _, text in numbered_lines(file, longest=-2)), file)
    if not isinstance(content, list):
        raise RequestError(f"{file}: a .json file must hold a list of rows, this one holds {kind(content)}")
    return enumerate(content, 1)


def _csv(file: Path) -> Iterator[tuple[int, Row]]:
    """A cell is text as it stands, whatever it looks like; an empty one is null."""
    csv.field_size_limit(LONGEST_LINE)
    reader = csv.reader((text for _, text in numbered_lines(file)), strict=True)
    line = 1  # where the row begins, which may hold line breaks
    try:
        header = next(reader, [])
        _refuse_twice(header, f"{file}:1: the header")
        line = reader.line_num + 1
        for cells in reader:
            if cells and len(cells) != len(header):
                found = f"{len(cells)} cells under a header of {len(header)}"
                raise RequestError(f"{file}:{line}: {found}; a text with a comma or line break stands in quotes")
            if cells:
                yield line, {name: cell or None for name, cell in zip(header, cells, strict=True)}
            line = reader.line_num + 1
    except csv.Error as error:
        raise RequestError(f"{file}:{line}: not CSV: {error}") from error


def _parquet(file: Path) -> Iterator[tuple[int, Row]]:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    number = 0
    try:
        with ParquetFile(file) as parquet:
            _refuse_twice(parquet.schema_arrow.names, f"{file}: its schema")
            for batch in parquet.iter_batches(batch_size=1024):
                for number, row in enumerate(batch.to_pylist(), number + 1):  # noqa: B020  (goes on counting)
                    yield number, row
    except RequestError:
        raise
    except (OSError, pyarrow.ArrowException, ValueError, OverflowError) as error:  # a text or date that Python has not
        raise RequestError(f"{file}: cannot be read as parquet: {first_line(error)}") from error


READERS: dict[str, Callable[[Path], Iterator[tuple[int, Row]]]] = {
    ".jsonl": _json_lines,
    ".jsonl.gz": _json_lines,
    ".json": _json_list,
    ".csv": _csv,
    ".parquet": _parquet,
}


def numbered_lines(file: Path, longest: int = LONGEST_LINE) -> Iterator[tuple[int, str]]:
    """longest: bytes that a line may have; -2 for any number."""
    opener = gzip.open if file.name.lower().endswith(".gz") else open
    line = 0
    try:
        with opener(file, "rb") as stream:
            while raw := stream.readline(longest + 1):
                line += 1
                if len(raw) > longest >= 0:
                    raise RequestError(
                        f"{file}:{line}: a line of over {LONGEST_LINE >> 20} MiB; one row stands in each line"
                    )
                try:
                    yield line, raw.decode("utf-8-sig" if line == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise RequestError(f"{file}:{line}: not UTF-8 text: {error}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise RequestError(f"{file}:{line + 1}: cannot be read: {error}") from error


def _json(text: str, file: Path, line: int = 0) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        where = f"{file}:{line or error.lineno}"
        raise RequestError(f"{where}: not JSON: {error.msg} at character {error.colno}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, a thousand nested lists
        raise RequestError(f"{file}:{line or 1}: not JSON: {error}") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON lets a key stand twice and takes the last; which one was meant nobody knows."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError(f"the key {_twice(name for name, _ in pairs)!r} stands twice in one object")
    return found


def _refuse_twice(names: Iterable[str], where: str) -> None:
    twice = _twice(names)
    if twice is not None:
        raise RequestError(f"{where} names the column {twice!r} twice")


def _twice(names: Iterable[str]) -> str | None:
    """The first that stands there more than once."""
    return next((name for name, count in Counter(names).items() if count > 1), None)


def kind(value: Any) -> str:
    """What a value is, for a message."""
    names = {dict: "an object", list: "a list", str: "text", type(None): "null (or an empty cell)"}
    return names.get(type(value), f"{type(value).__name__} {value!r:.40}")
