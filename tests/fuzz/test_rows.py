"""Rows of every shape, damaged, in every container: read and shown, or refused in two lines with nothing left."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from prefopt import inspect
from prefopt.config import command
from prefopt.data.shapes import COLUMNS, SHAPES
from prefopt.errors import INTERRUPTED, OK, WRONG
from prefopt.train import task
from tests.fuzz.asking import ODD_TEXTS, VALUES, Answer, answered, ask, case, damaged, fuzzed, interrupt, whole_run
from tests.mistakes.asking import left
from tests.models.saved import saved_model
from tests.test_mistakes import nothing_left

pytestmark = pytest.mark.long
Rows = list[Any]
TURN = "\n\nHuman: w{i}\n\nAssistant:"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return saved_model(tmp_path_factory.mktemp("model"))


# ---------------------------------------------------------------- rows


def good(shape: tuple[str, ...], i: int) -> dict[str, Any]:
    """A row of this shape, another one for every i."""
    values: dict[str, Any] = {
        **dict.fromkeys(("chosen", "chosen_response", "output_1", "output_A", "completion_A"), f" w{i % 9} w2"),
        **dict.fromkeys(("rejected", "rejected_response", "output_2", "output_B", "completion_B"), " w5 w6"),
        **dict.fromkeys(("completion", "output", "response"), f" w{i % 7}"),
        **dict.fromkeys(("prompt", "instruction"), f"w{i % 11} w{i}"),
        **dict.fromkeys(("label", "kto_tag"), i % 2 == 0),
        **dict.fromkeys(("chosen_model", "rejected_model", "subset"), "math"),
        "messages": [{"role": "user", "content": f"w{i}"}, {"role": "assistant", "content": "w1"}],
        "conversations": [{"from": "human", "value": f"w{i}"}],
        "prompt_conversation": f"w{i}",
        "completions": [" w1", " w2", " w3"],
        "ranks": [1, 2, 3],
        "scores": [0.5, 2, -1],
        "preference": ("chosen", "rejected")[i % 2] if "response" in shape else 1 + i % 2,
    }
    if "prompt" not in shape and shape[:2] == ("chosen", "rejected"):
        values |= {name: TURN.format(i=i) + values[name] for name in ("chosen", "rejected")}
    return {column: values[column] for column in shape}


EXTRAS = ("weight", "margin", "tie", "annotator", "slice", "history", "system", "input", "kto_tag", "label", "chosn")


@st.composite
def rows(draw: st.DrawFn) -> Rows:
    """Rows of one shape, some of them spoilt; sometimes of two shapes, sometimes no rows at all."""
    shapes = draw(st.lists(st.sampled_from(SHAPES), min_size=1, max_size=2 if draw(st.integers(0, 4)) == 0 else 1))
    found: Rows = [good(shapes[i % len(shapes)].columns, i) for i in range(draw(st.sampled_from((0, 1, 2, 8, 12, 20))))]
    for _ in range(draw(st.integers(0, 4)) if found else 0):
        some = [draw(st.integers(0, len(found) - 1))] if draw(st.booleans()) else range(len(found))
        spoil = draw(spoilers())
        found = [spoil(row) if i in some else row for i, row in enumerate(found)]
    return found


@st.composite
def spoilers(draw: st.DrawFn) -> Callable[[Any], Any]:
    column = draw(st.sampled_from((*sorted(COLUMNS), *EXTRAS)) | st.text(max_size=6) | st.sampled_from(ODD_TEXTS))
    value, place = draw(VALUES | messages() | nested()), draw(st.integers(0, 5))
    how = draw(st.sampled_from(("set", "set there", "set there", "remove", "rename", "whole")))

    def spoil(row: Any) -> Any:
        if not isinstance(row, dict) or not row:
            return row
        there = list(row)[place % len(row)]
        if how == "whole":
            return value
        rest = {name: kept for name, kept in row.items() if name != there}
        if how == "remove":
            return rest
        if how == "rename":
            return {**rest, column: row[there]}
        return {**row, (there if how == "set there" else column): value}

    return spoil


def messages() -> st.SearchStrategy[Any]:
    """Conversations, most of them wrong in something."""
    role = st.sampled_from(("user", "assistant", "system", "human", "gpt", "", None, [], 5))
    said = st.sampled_from(("w1", "", None, 5, [], {}, "\ud83d", "<eos>"))
    message = st.one_of(
        st.fixed_dictionaries({"role": role, "content": said}),
        st.fixed_dictionaries({"from": role, "value": said}),
        st.sampled_from(({}, {"role": "user"}, None, "w1", [["w1", "w2"]])),
    )
    return st.lists(message, max_size=4) | st.lists(st.lists(said, max_size=3), max_size=2)


def nested() -> st.SearchStrategy[Any]:
    """Lists in lists, up to what Python reads and a little beyond."""

    def of_depth(depth: int) -> Any:
        found: Any = 1
        for _ in range(depth):
            found = [found]
        return found

    return st.sampled_from((5, 200, 700, 850, 900, 950, 990)).map(of_depth)


# ---------------------------------------------------------------- containers


def json_text(value: Any, ascii_only: bool = True) -> str:
    """As json.dumps, however deep."""
    if isinstance(value, list) and len(value) == 1:
        depth = 0
        while isinstance(value, list) and len(value) == 1:
            value, depth = value[0], depth + 1
        return "[" * depth + json_text(value, ascii_only) + "]" * depth
    if isinstance(value, dict):
        pairs = (f"{json.dumps(str(k), ensure_ascii=ascii_only)}: {json_text(v, ascii_only)}" for k, v in value.items())
        return "{" + ", ".join(pairs) + "}"
    return json.dumps(value, ensure_ascii=ascii_only)


@st.composite
def json_lines(draw: st.DrawFn, found: Rows) -> bytes:
    ascii_only, end = draw(st.booleans()), draw(st.sampled_from(("\n", "\n", "\r\n", "\n\n", "\r")))
    lines = [json_text(row, ascii_only) for row in found]
    if lines and draw(st.integers(0, 5)) == 0:  # a key twice, as no dictionary can hold it
        lines[-1] = lines[-1].replace("{", '{"prompt": "w1", "prompt": "w2", ', 1)
    return _encoded(end.join(lines) + draw(st.sampled_from((end, ""))), draw)


@st.composite
def json_list(draw: st.DrawFn, found: Rows) -> bytes:
    whole = "[" + ", ".join(json_text(row) for row in found) + "]"
    return _encoded(draw(st.sampled_from((whole, whole, whole, '{"rows": ' + whole + "}", "1", "null"))), draw)


@st.composite
def table(draw: st.DrawFn, found: Rows) -> bytes:
    """CSV: whatever is no text becomes its JSON, as a person would write it."""
    records = [row for row in found if isinstance(row, dict)]
    header = list(dict.fromkeys(str(name) for row in records for name in row))
    if header and draw(st.integers(0, 6)) == 0:
        header.append(header[0])
    buffer = io.StringIO()
    quoting = draw(st.sampled_from((csv.QUOTE_MINIMAL, csv.QUOTE_ALL)))
    writer = csv.writer(buffer, quoting=quoting, lineterminator=draw(st.sampled_from(("\n", "\r\n", "\r"))))
    writer.writerow(header)
    for row in records:
        cells = [row.get(name) for name in header]
        writer.writerow([cell if isinstance(cell, str) else "" if cell is None else json_text(cell) for cell in cells])
    return _encoded(buffer.getvalue(), draw)


def _encoded(text: str, draw: st.DrawFn) -> bytes:
    codec = draw(st.sampled_from(("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1")))
    errors = "surrogatepass" if codec.startswith("utf") else "replace"
    return text.encode(codec, errors)


@st.composite
def columnar(draw: st.DrawFn, found: Rows) -> bytes:
    """Parquet, with its own types; what has none becomes text."""
    records = [row for row in found if isinstance(row, dict)]
    names = list(dict.fromkeys(str(name) for row in records for name in row))
    arrays = [_array([row.get(name) for row in records]) for name in names]
    if names and draw(st.integers(0, 3)) == 0:
        place = draw(st.integers(0, len(names) - 1))
        arrays[place] = draw(st.sampled_from(STRANGE))(max(len(records), 1)).slice(0, len(records))
    if names and draw(st.integers(0, 6)) == 0:
        names, arrays = [*names, names[0]], [*arrays, arrays[0]]
    names = [name.encode("utf-8", "replace").decode() for name in names]
    try:
        return _parquet(names, arrays)
    except pa.ArrowException:  # a time that the format has no place for
        return _parquet(names, [pa.nulls(len(array)) for array in arrays])


def _parquet(names: list[str], arrays: list[pa.Array]) -> bytes:
    buffer = io.BytesIO()
    parquet.write_table(pa.Table.from_arrays(arrays, names=names), buffer)
    return buffer.getvalue()


def _deep(value: Any) -> bool:
    """Deeper than anybody's columns: a type of its own for every level."""
    for _ in range(20):
        value = value[0] if isinstance(value, list) and value else None
    return value is not None


def _array(values: list[Any]) -> pa.Array:
    try:
        if not any(map(_deep, values)):
            return pa.array(values)
        raise ValueError
    except (pa.ArrowException, OverflowError, UnicodeError, RecursionError, TypeError, ValueError):
        texts = (None if v is None else v if isinstance(v, str) else json_text(v) for v in values)
        return pa.array([None if text is None else text.encode("utf-8", "replace").decode() for text in texts])


def _no_text(n: int) -> pa.Array:
    """Bytes that are no UTF-8, in a column that says it is text."""
    return pa.Array.from_buffers(pa.string(), n, pa.array([b"\xff\xfe"] * n).buffers())


def _twins(n: int) -> pa.Array:
    return pa.StructArray.from_arrays([pa.array(["w1"] * n), pa.array(["w2"] * n)], names=["a", "a"])


STRANGE = (
    _no_text,
    _twins,
    lambda n: pa.array([b"w1"] * n),
    lambda n: pa.array([2**62] * n, pa.timestamp("s")),
    lambda n: pa.array([2**62 + 1] * n, pa.timestamp("ns")),
    lambda n: pa.array([2**30] * n, pa.date32()),
    lambda n: pa.array(["w1", *["w2"] * (n - 1)]).dictionary_encode(),
    lambda n: pa.array([[("a", 1), ("a", 2)]] * n, pa.map_(pa.string(), pa.int64())),
    lambda n: pa.nulls(n),
)
CONTAINERS: dict[str, Callable[[Rows], st.SearchStrategy[bytes]]] = {
    "rows.jsonl": json_lines,
    "rows.jsonl.gz": lambda found: json_lines(found).map(lambda content: gzip.compress(content, mtime=0)),
    "rows.json": json_list,
    "rows.csv": table,
    "rows.parquet": columnar,
}
HUGE = (17 << 20, 17 << 20, 1 << 20)  # bytes of a line without an end, a little over what is read and well under it


@st.composite
def files(draw: st.DrawFn) -> tuple[str, bytes]:
    name = draw(st.sampled_from(tuple(CONTAINERS)))
    content = draw(CONTAINERS[name](draw(rows())))
    if draw(st.integers(0, 3)) == 0:
        content = draw(damaged(content))
    if draw(st.integers(0, 40)) == 0:
        content = b'{"prompt": "' + b"w" * draw(st.sampled_from(HUGE)) + content
    return name, content


# ---------------------------------------------------------------- asking

OPTIONS = (
    *("data.group=true", "data.soft=target", "data.on_leak=drop", "data.on_leak=error", "data.max_length=6"),
    *(
        "data.truncation=truncate_completion data.max_length=4",
        "data.truncation=truncate_prompt_left data.max_length=4",
    ),
    *(
        "data.prompts=chat",
        "data.templated=true",
        "data.columns={prompt:instruction}",
        "data.columns={chosen:output_1}",
    ),
    *("data.val={name}", "data.test={name}", "data.held_out=0.5"),
)


@fuzzed
@given(
    file=files(),
    loss=st.sampled_from(("dpo", "dpo", "kto", "sft", "orpo")),
    options=st.lists(st.sampled_from(OPTIONS), max_size=2, unique=True),
    training=st.booleans(),
)
def test_rows(model: str, file: tuple[str, bytes], loss: str, options: list[str], training: bool):
    name, content = file
    with case() as here:
        (here / name).write_bytes(content)
        before = left(here)
        asked = [f"loss={loss}", "data=jsonl", f"data.train={name}", "model=hf", f"model.name={model}"]
        asked += [word for option in options for word in option.replace("{name}", name).split(" ")]
        if training:
            answer = train(*asked)
            answered(answer, INTERRUPTED, WRONG)
            if answer.code == INTERRUPTED:
                assert whole_run(Path("run"))["status"] == "interrupted"
                return
        else:
            answer = ask(inspect.main, *asked)
            answered(answer, OK, WRONG)
            assert "\x1b" not in answer.out  # what a row says does not steer the terminal
        nothing_left(here, before)


def train(*asked: str) -> Answer:
    """As far as the rows are read and told."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prefopt.jobs.train.build_module", interrupt)
        return ask(lambda: command("train", task), *asked, "run_dir=run")
