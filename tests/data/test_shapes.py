"""Files to examples: every shape in every container, every wrong file in two lines, and the real files whole."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow
import pyarrow.parquet
import pytest

from prefopt.data.containers import read_rows
from prefopt.data.examples import Example
from prefopt.data.shapes import TURN, examples_of
from prefopt.errors import RequestError
from tests.data.made import label, pair

Row = dict[str, Any]
CONTAINERS = ("jsonl", "jsonl.gz", "json", "csv", "parquet")


def jsonl(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def write_csv(path: Path, rows: list[Row]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        table.writeheader()
        table.writerows(rows)


WRITE: dict[str, Callable[[Path, list[Row]], Any]] = {
    "jsonl": lambda path, rows: path.write_bytes(jsonl(rows)),
    "jsonl.gz": lambda path, rows: path.write_bytes(gzip.compress(jsonl(rows))),
    "json": lambda path, rows: path.write_text(json.dumps(rows, indent=1, ensure_ascii=False), "utf-8"),
    "csv": write_csv,
    "parquet": lambda path, rows: pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path),
}


def write(folder: Path, container: str, rows: list[Row]) -> str:
    path = folder / f"rows.{container}"
    WRITE[container](path, rows)
    return str(path)


def read_examples(path: str, setting: str) -> tuple[list[Example], str]:
    """All examples of a file, and what they were read as."""
    shape: list[str] = []
    examples = list(examples_of(f"{setting}={path}", read_rows(path, setting), shape.append))
    return examples, shape[0]


def read(path: str) -> list[Example]:
    """The examples without where they stood."""
    return [replace(example, source="") for example in read_examples(path, "data.train")[0]]


def user(text: str) -> Row:
    return {"role": "user", "content": text}


def assistant(text: str) -> Row:
    return {"role": "assistant", "content": text}


# ------------------------------------------------------------------------------------------- shapes

# Three dialogues: the second turn differs, whole answers share a beginning, and an answer is a beginning of the other.
TEA = "\n\nHuman: How do I brew tea?\n\nAssistant: In hot water.\n\nHuman: How long?\n\nAssistant:"
HH = [
    {"chosen": f"{TEA} Three minutes.", "rejected": f"{TEA} Forever, and then some."},
    {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello you", "rejected": "\n\nHuman: Hi\n\nAssistant: Hello, who?"},
    {"chosen": "\n\nHuman: 2+2?\n\nAssistant: 4", "rejected": "\n\nHuman: 2+2?\n\nAssistant: 4 or 5"},
]
HH_READ = [
    pair(TEA, " Three minutes.", " Forever, and then some."),
    pair("\n\nHuman: Hi\n\nAssistant:", " Hello you", " Hello, who?"),
    pair("\n\nHuman: 2+2?\n\nAssistant:", " 4", " 4 or 5"),
]
BENCH = {"chosen_model": "GPT-4", "rejected_model": "human", "subset": "alpacaeval-easy"}
SYSTEM = {"role": "system", "content": "Be brief."}
TURNS = (user("Tea?"), assistant("Hot water."), user("How long?"))


class Shape(NamedTuple):
    name: str
    rows: list[Row]
    examples: list[Example]
    containers: tuple[str, ...] = CONTAINERS


NESTED = ("jsonl", "jsonl.gz", "json", "parquet")  # a cell of a .csv holds no messages
SHAPES = {
    "text": Shape(
        "pairs with a prompt",
        [
            {"prompt": "Q: 1+1? ", "chosen": "2", "rejected": 'three, or "3"\nwho knows'},
            {"prompt": "Größe?\r\n", "chosen": "🙂 None", "rejected": "$5, nan"},
            {"prompt": "NA", "chosen": "None", "rejected": "0010"},
        ],
        [
            pair("Q: 1+1? ", "2", 'three, or "3"\nwho knows'),
            pair("Größe?\r\n", "🙂 None", "$5, nan"),
            pair("NA", "None", "0010"),
        ],
    ),
    "RewardBench": Shape(  # what else its rows hold says nothing; a slice of their own says more
        "pairs with a prompt (RewardBench)",
        [
            {**BENCH, "prompt": "a", "chosen": "b", "rejected": "c", "id": 1},
            {**BENCH, "prompt": "d", "chosen": "e", "rejected": "f", "id": 2, "subset": "hep-cpp"},
        ],
        [
            replace(pair("a", "b", "c"), slice="alpacaeval-easy"),
            replace(pair("d", "e", "f"), slice="hep-cpp"),
        ],
    ),
    "messages prompt, text answers": Shape(
        "pairs with a prompt",
        [
            {"prompt": list(TURNS), "chosen": "Three minutes.", "rejected": "A year."},
            {"prompt": [SYSTEM, user("Hi")], "chosen": "Hello.", "rejected": "Bye."},
        ],
        [pair(TURNS, "Three minutes.", "A year."), pair((SYSTEM, user("Hi")), "Hello.", "Bye.")],
        NESTED,
    ),
    "messages prompt, messages answers": Shape(
        "pairs with a prompt",
        [{"prompt": [user("Hi")], "chosen": [assistant("Hello.")], "rejected": [assistant("Bye.")]}],
        [pair((user("Hi"),), "Hello.", "Bye.")],
        NESTED,
    ),
    "text prompt, whole dialogues": Shape(  # the prompt is what the dialogues share, so it goes through the template
        "pairs with a prompt",
        [
            {
                "prompt": "Hi",
                "chosen": [SYSTEM, user("Hi"), assistant("Hello.")],
                "rejected": [SYSTEM, user("Hi"), assistant("Bye.")],
            },
            {
                "prompt": "Tea?",
                "chosen": [*TURNS, assistant("Three minutes.")],
                "rejected": [*TURNS, assistant("A year.")],
            },
        ],
        [pair((SYSTEM, user("Hi")), "Hello.", "Bye."), pair(TURNS, "Three minutes.", "A year.")],
        NESTED,
    ),
    "implicit text": Shape("pairs, the prompt inside both sides", HH, HH_READ),
    "implicit messages": Shape(
        "pairs, the prompt inside both sides",
        [{"chosen": [*TURNS, assistant("Three minutes.")], "rejected": [*TURNS, assistant("A year.")]}],
        [pair(TURNS, "Three minutes.", "A year.")],
        NESTED,
    ),
    "labels": Shape(
        "labelled completions",
        [
            {"prompt": "1+1?", "completion": "2", "label": True, "generator": "someone"},
            {"prompt": "1+1?", "completion": "3", "label": False, "generator": "someone else"},
        ],
        [label("1+1?", "2"), label("1+1?", "3", good=False)],
    ),
    "labels under messages": Shape(
        "labelled completions",
        [
            {"prompt": [user("Hi")], "completion": [assistant("Hello.")], "label": 1},
            {"prompt": [user("Hi")], "completion": [user("Hi"), assistant("Bye.")], "label": 0},
        ],
        [label((user("Hi"),), "Hello."), label((user("Hi"),), "Bye.", good=False)],
        NESTED,
    ),
    "judged pairs": Shape(  # 1: the first is better, 2: the second; the best comes first, with the judge's certainty
        "judged pairs",
        [
            {"instruction": "a", "output_1": "b", "output_2": "c", "preference": 1.25},
            {"instruction": "a", "output_1": "b", "output_2": "c", "preference": 2.0},
            {"instruction": "a", "output_1": "b", "output_2": "c", "preference": 1.5},
        ],
        [
            replace(pair("a", "b", "c"), scores=(0.75, 0.25), target=0.75),
            pair("a", "c", "b"),
            replace(pair("a", "b", "c"), scores=(0.5, 0.5), target=0.5),
        ],
    ),
    "judged pairs of HALOs": Shape(
        "judged pairs (HALOs)",
        [
            {"prompt": "a", "output_A": "b", "output_B": "c", "label": 1, "reward_A": 0.3},
            {"prompt": "a", "output_A": "b", "output_B": "c", "label": 0, "reward_A": 0.1},
        ],
        [pair("a", "b", "c"), pair("a", "c", "b")],
    ),
    "judged pairs of Tinker": Shape(
        "judged pairs (Tinker)",
        [
            {"prompt_conversation": [user("a")], "completion_A": "b", "completion_B": "c", "label": "B"},
            {"prompt_conversation": [user("a")], "completion_A": "b", "completion_B": "c", "label": "Tie"},
        ],
        [
            pair((user("a"),), "c", "b"),
            replace(pair((user("a"),), "b", "c"), scores=(0.5, 0.5), target=0.5),
        ],
        NESTED,
    ),
    "scores": Shape(  # higher is better; equal ones keep their order
        "scored completions",
        [{"prompt": "a", "completions": ["b", "c", "d", "e"], "scores": [1, 3.5, -2, 3.5]}],
        [Example(prompt="a", completions=("c", "e", "b", "d"), scores=(3.5, 3.5, 1.0, -2.0))],
        NESTED,
    ),
    "scores in a cell": Shape(
        "scored completions",
        [{"prompt": "a", "completions": '["b", "c"]', "scores": "[0, 1]"}],
        [Example(prompt="a", completions=("c", "b"), scores=(1.0, 0.0))],
    ),
    "ranks": Shape(  # 1 is best
        "ranked completions",
        [{"prompt": "a", "completions": ["b", "c", "d"], "ranks": [2, 1, 3]}],
        [Example(prompt="a", completions=("c", "b", "d"), scores=(-1.0, -2.0, -3.0))],
        NESTED,
    ),
    "soft labels": Shape(
        "labelled completions",
        [{"prompt": "a", "completion": "b", "label": 0.75}, {"prompt": "a", "completion": "c", "label": 0.25}],
        [label("a", "b", target=0.75), label("a", "c", good=False, target=0.75)],
    ),
    "labels of HALOs": Shape(
        "labelled completions (HALOs)",
        [{"prompt": "a", "output": "b", "label": 0, "type": "binary_feedback"}],
        [label("a", "b", good=False)],
    ),
    "pairs of NeMo-Aligner": Shape(
        "pairs with a prompt (NeMo-Aligner)",
        [{"prompt": "a", "chosen_response": "b", "rejected_response": "c", "chosen_reward": 1.0}],
        [pair("a", "b", "c")],
    ),
    "labels of NeMo-Aligner": Shape(
        "labelled completions (NeMo-Aligner)",
        [{"prompt": "a", "response": "b", "preference": "rejected"}],
        [label("a", "b", good=False)],
    ),
    "pairs of LLaMA-Factory": Shape(
        "pairs under an instruction (LLaMA-Factory)",
        [
            {"instruction": "a", "input": "x", "chosen": "b", "rejected": "c", "system": None, "history": None},
            {"instruction": "a", "input": None, "chosen": "b", "rejected": "c", "system": "s", "history": [["q", "r"]]},
        ],
        [
            pair("a\nx", "b", "c"),
            pair(({"role": "system", "content": "s"}, user("q"), assistant("r"), user("a")), "b", "c"),
        ],
        NESTED,
    ),
    "conversations of LLaMA-Factory": Shape(
        "pairs under a conversation (LLaMA-Factory)",
        [
            {
                "conversations": [{"from": "human", "value": "a"}],
                "chosen": {"from": "gpt", "value": "b"},
                "rejected": {"from": "gpt", "value": "c"},
            }
        ],
        [pair((user("a"),), "b", "c")],
        NESTED,
    ),
    "labels of LLaMA-Factory": Shape(
        "labelled completions (LLaMA-Factory)",
        [{"instruction": "a", "output": "b", "kto_tag": False}],
        [label("a", "b", good=False)],
    ),
    "labelled conversations": Shape(
        "labelled conversations (LLaMA-Factory)",
        [{"messages": [user("a"), assistant("b")], "kto_tag": False}],
        [label((user("a"),), "b", good=False)],
        NESTED,
    ),
    "labelled conversations of ms-swift": Shape(
        "labelled conversations (ms-swift)",
        [{"messages": [user("a"), assistant("b")], "label": False}],
        [label((user("a"),), "b", good=False)],
        NESTED,
    ),
    "demonstrations": Shape("demonstrations", [{"prompt": "a", "completion": "b", "id": 7}], [label("a", "b")]),
    "demonstrations of Alpaca": Shape(
        "demonstrations (Alpaca)", [{"instruction": "a", "input": None, "output": "b"}], [label("a", "b")]
    ),
    "conversations": Shape(
        "conversations", [{"messages": [SYSTEM, user("a"), assistant("b")]}], [label((SYSTEM, user("a")), "b")], NESTED
    ),
    "ties and annotators": Shape(
        "pairs with a prompt",
        [
            {"prompt": "a", "chosen": "b", "rejected": "c", "tie": False, "annotator": "ann"},
            {"prompt": "a", "chosen": "b", "rejected": "c", "tie": True, "annotator": "bob"},
        ],
        [
            pair("a", "b", "c", annotator="ann"),
            replace(pair("a", "b", "c"), scores=(0.0, 0.0), target=0.5, annotator="bob"),
        ],
    ),
    "optional columns": Shape(
        "pairs with a prompt",
        [
            {"prompt": "a", "chosen": "b", "rejected": "c", "weight": 0.5, "margin": 2.0, "slice": "maths"},
            {"prompt": "d", "chosen": "e", "rejected": "f", "weight": None, "margin": None, "slice": None},
            {"prompt": "g", "chosen": "h", "rejected": "i", "weight": 0.0, "margin": 0.0, "slice": "1"},
        ],
        [
            pair("a", "b", "c", weight=0.5, margin=2.0, slice="maths"),
            pair("d", "e", "f"),
            pair("g", "h", "i", weight=0.0, margin=0.0, slice="1"),
        ],
    ),
}


@pytest.mark.parametrize(
    ("shape", "container"), [(name, container) for name, shape in SHAPES.items() for container in shape.containers]
)
def test_a_shape_reads_the_same_from_every_container(tmp_path: Path, shape: str, container: str):
    wanted = SHAPES[shape]
    path = write(tmp_path, container, wanted.rows)
    assert read(path) == wanted.examples
    assert read_examples(path, "data.train")[1] == wanted.name


@pytest.mark.parametrize("container", ["jsonl", "csv"])
@pytest.mark.parametrize(
    ("said", "good"),
    [(True, True), (False, False), (1, True), (0, False), (1.0, True), ("True", True), ("false", False), (" 1 ", True)],
)
def test_labels_are_spelt_in_many_ways(tmp_path: Path, container: str, said: Any, good: bool):
    path = write(tmp_path, container, [{"prompt": "p", "completion": "c", "label": said}])
    assert read(path) == [label("p", "c", good=good)]


def test_numbers_of_optional_columns_may_be_text_or_whole(tmp_path: Path):
    row = {"prompt": "a", "chosen": "b", "rejected": "c", "weight": "0.5", "margin": 2, "slice": 7}
    (example,) = read(write(tmp_path, "jsonl", [row]))
    assert (example.weight, example.margin, example.slice) == (0.5, 2.0, "7")


def test_the_text_of_a_dialogue_is_cut_and_nothing_else(tmp_path: Path):
    for row, example in zip(HH, read(write(tmp_path, "jsonl", HH)), strict=True):
        assert [f"{example.prompt}{text}" for text in example.completions] == [row["chosen"], row["rejected"]]
        assert example.prompt.endswith(TURN)


def test_identical_dialogues_are_cut_at_their_last_turn(tmp_path: Path):
    row = {"chosen": HH[0]["chosen"], "rejected": HH[0]["chosen"]}
    assert read(write(tmp_path, "jsonl", [row])) == [pair(TEA, " Three minutes.", " Three minutes.")]


def test_a_dialogue_that_ends_at_its_turn_has_an_empty_answer(tmp_path: Path):
    assert read(write(tmp_path, "jsonl", [{"chosen": TEA, "rejected": f"{TEA} No."}])) == [pair(TEA, "", " No.")]


def test_sides_that_part_before_the_last_turn_are_cut_where_they_part(tmp_path: Path):
    first = "\n\nHuman: Hi\n\nAssistant:"
    row = {"chosen": f"{first} Hello.\n\nHuman: Tea?\n\nAssistant: Yes.", "rejected": f"{first} Bye."}
    expected = pair(first, " Hello.\n\nHuman: Tea?\n\nAssistant: Yes.", " Bye.")
    assert read(write(tmp_path, "jsonl", [row])) == [expected]


# ------------------------------------------------------------------------------------------- where rows stand


def sources(path: str) -> list[str]:
    return [example.source.removeprefix(path) for example in read_examples(path, "data.train")[0]]


def test_a_row_knows_its_line(tmp_path: Path):
    rows = SHAPES["text"].rows
    assert sources(write(tmp_path, "jsonl", rows)) == [":1", ":2", ":3"]
    assert sources(write(tmp_path, "json", rows)) == [":1", ":2", ":3"]  # rows, as of .parquet
    assert sources(write(tmp_path, "parquet", rows)) == [":1", ":2", ":3"]
    # A text of the first row holds a line break, and so does one of the second.
    assert sources(write(tmp_path, "csv", rows)) == [":2", ":4", ":6"]


def test_blank_lines_are_no_rows_but_count(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(
        b'\n{"prompt": "p", "completion": "c", "label": 1}\n  \n{"prompt": "p", "completion": "c", "label": 1}'
    )
    assert sources(str(path)) == [":2", ":4"]
    path = tmp_path / "rows.csv"
    path.write_bytes(b"prompt,completion,label\n\np,c,1\n\np,c,0\n")
    assert sources(str(path)) == [":3", ":5"]


def test_a_byte_order_mark_and_windows_line_ends_change_nothing(tmp_path: Path):
    for name, content in {"a.jsonl": '{"prompt": "p", "completion": "c", "label": 1}', "b.csv": TABLE}.items():
        path = tmp_path / name
        path.write_bytes(("\ufeff" + content.strip().replace("\n", "\r\n") + "\r\n").encode())
        assert read(str(path)) == [label("p", "c")]


def test_endings_in_capitals_and_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "ROWS.JSONL.GZ").write_bytes(gzip.compress(jsonl(HH)))
    assert read("~/ROWS.JSONL.GZ") == HH_READ


# ------------------------------------------------------------------------------------------- wrong files

TABLE = "prompt,completion,label\np,c,1\n"
GOOD = {"prompt": "p", "chosen": "yes", "rejected": "no"}
LABEL = {"prompt": "p", "completion": "c", "label": 1}
DEMONSTRATION = {"prompt": "p", "completion": "c"}
JUDGED = {"instruction": "p", "output_1": "a", "output_2": "b", "preference": 1.0}
RANKED = {"prompt": "p", "completions": ["a", "b", "c"], "scores": [1, 3, 2]}
PACKED = gzip.compress(jsonl([GOOD] * 50))
DAMAGED = PACKED[:10] + b"\xff" * 40  # a sound frame around what zlib cannot unpack

ENDINGS = "accepted: .jsonl, .jsonl.gz, .json, .csv, .parquet"
UNKNOWN = "are no known shape"
SHAPES_READ = "accepted: prompt/chosen/rejected; "
OBJECT = "a row must be an object with named columns, this one is"
QUOTES = "a text with a comma or line break stands in quotes"
TEXT = "must be text, got"
FINITE = "must be a finite number >= 0; got"
UNREAD = "would go unread, and every answer be shown as good: the others are those of"
TRUTH = "'label' must be true, false, 1, 0 or a probability between; got"
HALF = "holds half a surrogate pair, which is no text"
ASSISTANT = "must end in a message of the assistant, not of"
MESSAGE = "a message must be {'role': …, 'content': …}, got"
SAME = "chosen and rejected must be the same messages up to their last one"
BEFORE = "the messages in chosen/rejected before the last must be those of the prompt"
TURNLESS = "no prompt column, and no '\\n\\nAssistant:' in what chosen and rejected share"


def parquet(rows: list[Row]) -> bytes:
    """As pyarrow writes it: NaN and null stay two things."""
    stream = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), stream)
    return stream.getvalue()


class Wrong(NamedTuple):
    """A file, the line its message names (0: the file alone; None: the setting), and how the message goes on."""

    name: str
    content: bytes
    line: int | None
    said: str


FILES = {
    "unknown ending": Wrong("a.txt", b"x", None, f".txt is not read; {ENDINGS}"),
    "no ending": Wrong("rows", b"x", None, f"no ending is not read; {ENDINGS}"),
    "empty": Wrong("a.jsonl", b"", None, "holds no rows"),
    "only blank lines": Wrong("a.jsonl", b"\n \n", None, "holds no rows"),
    "an empty list": Wrong("a.json", b"[]", None, "holds no rows"),
    "an empty table": Wrong("a.csv", b"", None, "holds no rows"),
    "only a header": Wrong("a.csv", b"prompt,completion,label\n", None, "holds no rows"),
    "an empty parquet": Wrong("a.parquet", parquet([]), None, "holds no rows"),
    "truncated gzip": Wrong("a.jsonl.gz", PACKED[:-4], 51, "cannot be read: Compressed file ended before"),
    "damaged gzip": Wrong("a.jsonl.gz", DAMAGED, 1, "cannot be read: Error -3 while decompressing"),
    "no gzip": Wrong("a.jsonl.gz", jsonl([GOOD]), 1, "cannot be read: Not a gzipped file"),
    "no parquet": Wrong("a.parquet", jsonl([GOOD]), 0, "cannot be read as parquet: "),
    "truncated parquet": Wrong("a.parquet", parquet([GOOD])[:-30], 0, "cannot be read as parquet: "),
    "lines not in UTF-8": Wrong("a.jsonl", jsonl([GOOD]) + b'{"prompt": "\xff"}', 2, "not UTF-8 text: "),
    "a table not in UTF-8": Wrong("a.csv", TABLE.encode() + b"\xfc,c,0\n", 3, "not UTF-8 text: "),
    "a list not in UTF-8": Wrong("a.json", b'[\n{"prompt": "\xff"}]', 2, "not UTF-8 text: "),
    "not JSON": Wrong("a.jsonl", jsonl([GOOD, GOOD]) + b"{'prompt': 1}", 3, "not JSON: Expecting property name"),
    "a broken list": Wrong("a.json", b'[{"prompt": "p"},\n{]', 2, "not JSON: Expecting property name"),
    "lines in a .json": Wrong("a.json", jsonl([GOOD, GOOD]), 2, "not JSON: Extra data"),
    "an object in a .json": Wrong(
        "a.json", b"{}", 0, "a .json file must hold a list of rows, this one holds an object"
    ),
    "lists without end": Wrong("a.jsonl", b"[" * 100_000, 1, "not JSON: maximum recursion depth"),
    "a number without end": Wrong("a.jsonl", b'{"prompt": ' + b"1" * 5000, 1, "not JSON: Exceeds the limit"),
    "a comma too many": Wrong("a.csv", TABLE.encode() + b"p, or q,c,1\n", 3, f"4 cells under a header of 3; {QUOTES}"),
    "a comma too few": Wrong("a.csv", TABLE.encode() + b"p,c\n", 3, f"2 cells under a header of 3; {QUOTES}"),
    "a quote left open": Wrong("a.csv", TABLE.encode() + b'p,"c,1\np,c,1\n', 3, "not CSV: unexpected end of data"),
    "a table without a header": Wrong("a.csv", b'"a\nb",c\nd,e\n', 3, f"columns 'a\\nb', 'c' {UNKNOWN}\n{SHAPES_READ}"),
    "no object": Wrong("a.jsonl", b'["p", "c"]', 1, f"{OBJECT} a list"),
    "no object later": Wrong("a.jsonl", jsonl([GOOD, "p"]), 2, f"{OBJECT} text"),
    "null for a row": Wrong("a.json", json.dumps([GOOD, None]).encode(), 2, f"{OBJECT} null"),
    "a number for text in parquet": Wrong("a.parquet", parquet([{**GOOD, "chosen": 4}]), 1, f"'chosen' {TEXT} int 4"),
    "null in parquet": Wrong("a.parquet", parquet([GOOD, {**GOOD, "prompt": None}]), 2, f"'prompt' {TEXT} null"),
    "NaN in parquet": Wrong("a.parquet", parquet([{**GOOD, "weight": float("nan")}]), 1, f"'weight' {FINITE} nan"),
    "an empty cell": Wrong("a.csv", b"prompt,chosen,rejected\na,,c\n", 2, f"'chosen' {TEXT} null (or an empty cell)"),
    "an empty label": Wrong("a.csv", TABLE.encode() + b"p,c,\n", 3, f"{TRUTH} None"),
    "NaN in a table": Wrong("a.csv", TABLE.encode().replace(b"1", b"nan"), 2, f"{TRUTH} 'nan'"),
}
FIRST: dict[str, tuple[Row, str]] = {
    "a column misspelt": (
        {"prompt": "p", "choosen": "c", "rejected": "r"},
        "the columns are those of pairs with a prompt, but for 'choosen'; is it 'chosen'?",
    ),
    "unknown columns": ({"question": "q"}, f"columns 'question' {UNKNOWN}\n{SHAPES_READ}"),
    "no columns": ({}, f"columns (none) {UNKNOWN}\n{SHAPES_READ}"),
    "a judgement of a demonstration": ({**DEMONSTRATION, "kto_tag": False}, f"'kto_tag' {UNREAD} demonstrations"),
    "a judgement under an instruction": (
        {"instruction": "p", "output": "c", "label": 0},
        f"'label' {UNREAD} demonstrations (Alpaca)",
    ),
    "a label of doubt": ({**LABEL, "label": "maybe"}, f"{TRUTH} 'maybe'"),
    "a label out of range": ({**LABEL, "label": 1.1}, f"{TRUTH} 1.1"),
    "a label misspelt": (
        {"prompt": "p", "completion": "c", "lable": 1},
        "the columns are those of labelled completions, but for 'lable'; is it 'label'?",
    ),
    "a preference out of range": ({**JUDGED, "preference": 0}, "'preference' must be a finite number in 1 to 2; got 0"),
    "a tie of doubt": ({**GOOD, "tie": "maybe"}, "'tie' must be true, false, 1 or 0; got 'maybe'"),
    "a score too few": ({**RANKED, "scores": [1]}, "3 completions and 1 scores; give as many, and at least two"),
    "a score of NaN": ({**RANKED, "scores": [1, float("nan"), 2]}, "'scores' must be a finite number; got nan"),
    "scores that are none": ({**RANKED, "scores": "high"}, "'scores' must be a list, got text"),
    "a verdict of nobody": (
        {"prompt": "p", "output_A": "a", "output_B": "b", "label": "C"},
        "'label' must be a finite number in 0 to 1; got 'C'",
    ),
    "a completion of the user": ({**LABEL, "completion": [user("c")]}, f"'completion' {ASSISTANT} 'user'"),
    "a dialogue of the user": ({"chosen": [*TURNS], "rejected": [*TURNS]}, f"'chosen' {ASSISTANT} 'user'"),
    "no prompt": ({"chosen": [assistant("c")], "rejected": [assistant("d")]}, f"{SAME}, which answers them"),
    "two dialogues": ({"chosen": [*TURNS, assistant("c")], "rejected": [SYSTEM, *TURNS, assistant("c")]}, SAME),
    "text against messages": ({"chosen": [assistant("c")], "rejected": "d"}, f"'chosen' {TEXT} a list"),
    "no shared turn": ({"chosen": "Yes.", "rejected": "No."}, TURNLESS),
    "a turn on one side": ({"chosen": TEA, "rejected": TEA[5:]}, TURNLESS),
    "half a pair in a dialogue": ({"chosen": f"{TEA}\udc00", "rejected": TEA}, f"'chosen' {HALF}"),
}
SECOND: dict[str, tuple[Row, str]] = {
    "a missing column": ({"rejected": ...}, "'rejected' is missing; the first row has it"),
    "a number for text": ({"chosen": 4}, f"'chosen' {TEXT} int 4"),
    "null for text": ({"chosen": None}, f"'chosen' {TEXT} null"),
    "an object for text": ({"prompt": {"role": "user"}}, f"'prompt' {TEXT} an object"),
    "half a surrogate pair": ({"prompt": "\ud83d"}, f"'prompt' {HALF}"),
    "half a pair in a message": ({"prompt": [user("\ud83d")]}, f"'content' {HALF}"),
    "half a pair in a slice": ({"slice": "\ud83d"}, f"'slice' {HALF}"),
    "an answer of the user": ({"chosen": [user("Hi")]}, f"'chosen' {ASSISTANT} 'user'"),
    "no message": ({"chosen": []}, "messages must be a list that holds at least one"),
    "a prompt without messages": ({"prompt": []}, "messages must be a list that holds at least one"),
    "strange keys": ({"prompt": [{"by": "human", "said": "Hi"}]}, f"{MESSAGE} {{'by': 'human', 'said': 'Hi'}}"),
    "a message of nobody": ({"prompt": [{"content": "Hi"}]}, f"{MESSAGE} {{'content': 'Hi'}}"),
    "a message of nothing": ({"prompt": [{"role": "user"}]}, f"{MESSAGE} {{'role': 'user'}}"),
    "a message that is text": ({"prompt": ["Hi"]}, f"{MESSAGE} 'Hi'"),
    "a message without text": ({"prompt": [{"role": "user", "content": None}]}, f"'content' {TEXT} null"),
    "another dialogue": ({"chosen": [user("Hi"), assistant("c")]}, BEFORE),
    "two openings": ({"chosen": [user("p"), assistant("c")], "rejected": [SYSTEM, user("p"), assistant("c")]}, BEFORE),
    "a weight of text": ({"weight": "heavy"}, f"'weight' {FINITE} 'heavy'"),
    "a weight of NaN": ({"weight": float("nan")}, f"'weight' {FINITE} nan"),
    "a negative weight": ({"weight": -0.5}, f"'weight' {FINITE} -0.5"),
    "a weight too large to be one": ({"weight": 10**400}, f"'weight' {FINITE} 1000"),
    "an infinite margin": ({"margin": float("inf")}, f"'margin' {FINITE} inf"),
    "a list of margins": ({"margin": [1]}, f"'margin' {FINITE} [1]"),
}


def second(changed: Row) -> bytes:
    """A good row, then one with these columns changed; ... leaves a column out."""
    return jsonl([GOOD, {name: value for name, value in {**GOOD, **changed}.items() if value is not ...}])


SAYS_LESS: dict[str, tuple[Row, Row, str]] = {
    "a label later": (DEMONSTRATION, {**DEMONSTRATION, "label": False}, "'label' is not in the first row, and demonst"),
    "a pair later": (DEMONSTRATION, {**DEMONSTRATION, "chosen": "c", "rejected": "d"}, "'chosen' is not in the first"),
    "scores later": (DEMONSTRATION, {**DEMONSTRATION, "scores": [1, 2]}, "'scores' is not in the first row"),
    "a tag later": (
        {"messages": [*TURNS, assistant("c")]},
        {"messages": [*TURNS, assistant("c")], "kto_tag": False},
        "'kto_tag' is not in the first row, and conversations",
    ),
    "a prompt later": (
        {"chosen": f"{TEA} c", "rejected": f"{TEA} d"},
        {"prompt": TEA, "chosen": " c", "rejected": " d"},
        "'prompt' is not in the first row",
    ),
}


WRONG = {
    **FILES,
    **{name: Wrong("a.jsonl", jsonl([row, other]), 2, said) for name, (row, other, said) in SAYS_LESS.items()},
    **{name: Wrong("a.jsonl", jsonl([row]), 1, said) for name, (row, said) in FIRST.items()},
    **{name: Wrong("a.jsonl", second(row), 2, said) for name, (row, said) in SECOND.items()},
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_a_wrong_file_is_refused_in_two_lines(tmp_path: Path, wrong: Wrong):
    path = tmp_path / wrong.name
    path.write_bytes(wrong.content)
    with pytest.raises(RequestError) as refused:
        read_examples(str(path), "data.train")
    message = str(refused.value)
    where = {None: f"data.train={path}: ", 0: f"{path}: "}.get(wrong.line, f"{path}:{wrong.line}: ")
    assert message.startswith(where)
    assert message.removeprefix(where).removeprefix("column ").startswith(wrong.said)
    assert len(message.splitlines()) <= 2
    assert len(message) <= len(where) + 300


@pytest.mark.parametrize("name", ["row.jsonl", "nowhere/rows.jsonl"])
def test_a_missing_file_is_named(tmp_path: Path, name: str):
    (tmp_path / "rows.jsonl").write_bytes(jsonl([GOOD]))
    hint = "; did you mean 'rows.jsonl'?" if name == "row.jsonl" else ""
    with pytest.raises(RequestError) as refused:
        read_examples(str(tmp_path / name), "data.val")
    assert str(refused.value) == f"data.val={tmp_path / name}: no such file{hint}"


def test_a_long_text_is_read_from_a_table_but_not_poured_out(tmp_path: Path):
    path, text = tmp_path / "a.csv", "word " * 50_000
    path.write_text(TABLE + f'p,"{text}",0\n', "utf-8")
    assert read(str(path))[1].completions == (text,)
    path.write_text(f'p,"{text}",0\n' + TABLE, "utf-8")
    with pytest.raises(RequestError, match="are no known shape") as refused:
        read_examples(str(path), "data.train")
    assert len(str(refused.value)) < 400


def test_columns_that_say_nothing_about_the_shape_may_come_later(tmp_path: Path):
    """What the first row has and its shape does not read, optional ones, strange ones, and nulls."""
    rows = [
        {**DEMONSTRATION, "chosen": "x"},
        {**DEMONSTRATION, "chosen": "y", "weight": 0.5, "id": 3, "label": None},
    ]
    (tmp_path / "a.jsonl").write_bytes(jsonl(rows))
    assert [example.weight for example in read(str(tmp_path / "a.jsonl"))] == [1.0, 0.5]


# ------------------------------------------------------------------------------------------- real data


def lines(path: Path) -> list[Row]:
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


@pytest.mark.parametrize(("split", "count"), [("train", 1500), ("test", 300)])
def test_real_dialogues(real_data: Path, split: str, count: int):
    path = real_data / "hh-harmless" / f"{split}.jsonl.gz"
    examples, shape = read_examples(str(path), "data.train")
    assert shape == "pairs, the prompt inside both sides"
    assert len(examples) == count
    for row, example in zip(lines(path), examples, strict=True):
        assert [f"{example.prompt}{text}" for text in example.completions] == [row["chosen"], row["rejected"]]
        assert example.prompt.startswith("\n\nHuman:")
        assert example.prompt.endswith(TURN)


def test_real_solutions(real_data: Path):
    path = real_data / "gsm8k" / "solutions.jsonl.gz"
    examples, shape = read_examples(str(path), "data.train")
    rows = lines(path)
    assert shape == "labelled completions"
    assert len(examples) == len(rows) == 4000
    assert len({example.prompt for example in examples}) == 1000
    for row, example in zip(rows, examples, strict=True):
        assert (example.prompt, *example.completions) == (row["prompt"], row["completion"])
        assert example.scores == (float(row["label"]),)


@pytest.mark.parametrize("container", ["csv", "parquet", "json"])
def test_real_dialogues_survive_other_containers(real_data: Path, tmp_path: Path, container: str):
    path = real_data / "hh-harmless" / "test.jsonl.gz"
    rows = [row for row in lines(path) if all(row.values())]
    assert read(write(tmp_path, container, rows)) == read(str(path))
