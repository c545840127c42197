"""Rows, and the files they stand in."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

from tests.mistakes.asking import both, mistake, pairs, rows, writes

PAIR = {"prompt": "p", "chosen": "yes", "rejected": "no"}
NO_PAIRS = "needs pairs (chosen and rejected), and data.train has none; it can be read as demonstrations, labels"
LINE = json.dumps(PAIR)
PACKED = gzip.compress("\n".join([LINE] * 50).encode())


def same(count: int = 8, **columns):
    """Rows of these columns under a prompt each."""
    return [{"prompt": f"w{i}", **columns} for i in range(count)]


def folder(here: Path) -> None:
    (here / "a.jsonl").mkdir()


def locked(here: Path) -> None:
    pairs("a.jsonl")(here)
    os.chmod(here / "a.jsonl", 0)


def endless(here: Path) -> None:
    """100 MB in one line; a hole in the file, so that the disk does not notice."""
    with (here / "a.jsonl").open("wb") as stream:
        stream.truncate(100_000_000)


def file(name: str, content: str | bytes, *said: str):
    return mistake(f"data=jsonl data.train={name}", *said, make=writes(name, content))


FILES = [
    mistake(
        "loss=ppo data=jsonl data.train=few.jsonl",
        "reward=gold is known in the controlled world only; take reward=model reward.name=RUN",
        make=pairs("few.jsonl"),
    ),
    mistake(
        "loss=ppo data=jsonl data.train=few.jsonl reward=sum reward.parts={a:{kind:rule},b:{kind:gold}}",
        "reward.parts.b.kind=gold is known in the controlled world only",
        make=pairs("few.jsonl"),
    ),
    mistake(
        "loss=ppo data=jsonl data.train=few.jsonl reward=rule source.watch=gold",
        "source.watch=gold is known in the controlled world only; take source.watch=RUN",
        make=pairs("few.jsonl"),
    ),
    mistake("data=jsonl", "data.train must be a file of pairs or labels", "got None"),
    mistake(
        "data=jsonl data.train=a.jsonl",
        "data.train=a.jsonl: no such file; did you mean 'aa.jsonl'?",
        real=True,
        make=pairs("aa.jsonl"),
    ),
    mistake("data=jsonl data.train=nowhere/a.jsonl", "data.train=nowhere/a.jsonl: no such file"),
    mistake("data=jsonl data.train=a.jsonl", "data.train=a.jsonl: a folder; name a file in it", make=folder),
    mistake(
        "data=jsonl data.train=a.jsonl", "a.jsonl:1: cannot be read: ", "Permission denied", make=locked, needs="user"
    ),
    mistake("data=jsonl data.train=a.jsonl", "a.jsonl:1: a line of over 16 MiB", real=True, make=endless),
    file("a.txt", LINE, "data.train=a.txt: .txt is not read; accepted: .jsonl, .jsonl.gz, .json, .csv, .parquet"),
    file("a.jsonl", "", "data.train=a.jsonl: holds no rows"),
    file("a.json", LINE, "a.json: a .json file must hold a list of rows, this one holds an object"),
    file("a.jsonl.gz", PACKED[:-9], "a.jsonl.gz:", "cannot be read: Compressed file ended before"),
    file("a.jsonl.gz", LINE, "a.jsonl.gz:1: cannot be read: Not a gzipped file"),
    file("a.jsonl", b'{"prompt": "\xff"}', "a.jsonl:1: not UTF-8 text: "),
    file("a.jsonl", f"{LINE}\n{{'prompt': 1}}", "a.jsonl:2: not JSON: Expecting property name"),
    file("a.jsonl", '{"prompt": "p", "prompt": "q"}', "a.jsonl:1: not JSON: the key 'prompt' stands twice"),
    file("a.csv", "prompt,chosen,rejected,chosen\n", "a.csv:1: the header names the column 'chosen' twice"),
    file("a.csv", "prompt,chosen,rejected\np,a, b,c\n", "a.csv:2: 4 cells under a header of 3"),
]


def table(content, *said: str, more: str = "", real: bool = False):
    return mistake(f"data=jsonl data.train=a.jsonl{more}", *said, make=rows("a.jsonl", *content), real=real)


ROWS = [
    table(
        [{"question": "p", "good": "a"}],
        "a.jsonl:1: columns 'question', 'good' are no known shape",
        "accepted: ",
        real=True,
    ),
    table([{"prompt": "p", "choosen": "a", "rejected": "b"}], "a.jsonl:1: ", "for 'choosen'; is it 'chosen'?"),
    table([PAIR, {"prompt": "p", "completion": "a", "label": 1}], "a.jsonl:2: column 'chosen' is missing"),
    table([{**PAIR, "weight": float("nan")}], "a.jsonl:1: column 'weight' must be a finite number >= 0; got nan"),
    table(same(completion="a", label=float("nan")), "a.jsonl:1: column 'label' must be true, false, 1, 0", "got nan"),
    table([PAIR, {**PAIR, "chosen": "\ud83d"}], "a.jsonl:2: column 'chosen' holds half a surrogate pair"),
    table([PAIR, {**PAIR, "chosen": None}], "a.jsonl:2: column 'chosen' must be text, got null"),
    table([PAIR], "data.columns names 'better'", more=" data.columns={chosen:better}"),
    table([PAIR], "did you mean 'chosen'?", more=" data.columns={chosen:chosn}"),
    table(same(completion="a", label=1), NO_PAIRS),
    table(same(completion="a"), NO_PAIRS),
    table(
        same(completion="a", label=0),
        "completions judged good, and data.train has none; it can be read as labels",
        more=" loss=sft",
    ),
    table(same(chosen="", rejected=""), "data.train=a.jsonl: no row can be learnt from: 8 empty completion"),
    table(same(chosen="a", rejected="a"), "data.train=a.jsonl: no row can be learnt from: 8 identical pair"),
    table(same(chosen="a", rejected="b", tie=True), "data.train=a.jsonl: no row can be learnt from: 8 tie"),
    table([PAIR], "no val row is left: give data.val, or more prompts to cut it from"),
]
SPLITS = [
    mistake(
        "data=jsonl data.train=a.jsonl data.val=a.jsonl data.on_leak=error",
        "data.on_leak=error: 8 training prompts stand in the held-out rows too",
        make=pairs("a.jsonl"),
    ),
    mistake(
        "data=jsonl data.train=a.jsonl data.val=b.jsonl",
        "data.val=b.jsonl: no row can be learnt from: 8 empty completion",
        make=both(pairs("a.jsonl"), rows("b.jsonl", *same(chosen="", rejected="a"))),
    ),
    mistake(
        "data=jsonl data.train=a.jsonl data.val=b.jsonl loss=kto model=hf model.name={model}",
        "labels need completions under at least two different prompts",
        make=both(
            rows("a.jsonl", *[{"prompt": "w1", "completion": f"w{i}", "label": i % 2} for i in range(8)]),
            rows("b.jsonl", *same(completion="w9", label=1)),
        ),
    ),
    mistake(
        "data=jsonl data.train=a.jsonl data.max_length=2 model=hf model.name={model}",
        "no training row is left of 8: 8 too long",
        make=pairs("a.jsonl"),
    ),
    mistake(
        "data=jsonl data.train=a.jsonl data.max_length=2 model=hf model.name={model} run_dir=far/below/run",
        "no training row is left of 8: 8 too long",
        make=pairs("a.jsonl"),
    ),
]
