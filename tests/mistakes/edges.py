"""What fuzzing has found: values and files at the edge of what Python, the file system or a library takes."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
from pyarrow import parquet

from tests.mistakes.asking import Make, mistake, rows, writes

LONG = "x" * 300
NEMO = {"prompt": "w1", "response": "w2", "preference": "chosen"}
ALPACA = {"instruction": "w1", "output": "w2"}


def columns(names: list[str], *arrays: pa.Array) -> Make:
    def make(here: Path) -> None:
        parquet.write_table(pa.Table.from_arrays(list(arrays), names=names), here / "a.parquet")

    return make


def no_text() -> pa.Array:
    """Bytes that are no UTF-8, in a column that says it is text."""
    return pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff"]).buffers())


def table(row: object, *said: str, more: str = " loss=sft"):
    return mistake(f"data=jsonl data.train=a.jsonl{more}", *said, make=rows("a.jsonl", row))


SETTINGS = [
    mistake("seed=-1", "seed must be from 0 to 4294967295; got -1"),
    mistake(f"seed={2**32}", "seed must be from 0 to 4294967295"),
    mistake("model.tiny.heads=0", "model.tiny.heads must be at least 1; got 0"),
    mistake("model.tiny.fit_lr=nan", "model.tiny.fit_lr must be a number above 0; got nan"),
    mistake("trainer.max_epochs=inf", "trainer.max_epochs must be a number above 0; got inf"),
    mistake("trainer.checkpoint_every=inf", "trainer.checkpoint_every must be above 0"),
    mistake("optimizer.betas=[0.9]", "optimizer or schedule: list index out of range"),
    mistake("optimizer._partial_=5", "optimizer: Instantiation: _partial_ flag must be a bool"),
]
PLACES = [
    mistake("run_dir='~nobody-here/a'", "run_dir=~nobody-here/a: no home folder of that name"),
    mistake("cache_dir='~nobody-here/a'", "cache_dir=~nobody-here/a: no home folder of that name"),
    mistake("data=jsonl data.train='~nobody-here/a.jsonl'", "data.train=~nobody-here/a.jsonl: no home folder"),
    mistake(f"data=jsonl data.train={LONG}.jsonl", ": File name too long"),
    mistake(f"model=hf model.name={LONG}", ": File name too long"),
    mistake(f"cache_dir={LONG}", ": File name too long"),
    mistake("run_dir=\udcff", "'run_dir=\\udcff': not UTF-8 text"),
    mistake("run_dir=a", "run_dir=a: its config.json cannot be read: ", make=writes("a/config.json", "[" * 100_000)),
]
ROWS = [
    table(
        {**NEMO, "preference": ["chosen"]}, "a.jsonl:1: column 'preference' must be chosen or rejected; got ['chosen']"
    ),
    table({**ALPACA, "history": [5]}, "a.jsonl:1: column 'history' must be a list of pairs", "got [5]"),
    table({**ALPACA, "history": 5}, "a.jsonl:1: column 'history' must be a list of pairs", "got 5"),
    table({"messages": [{"from": [], "value": "w1"}, {"from": "gpt", "value": "w2"}]}, "a.jsonl:1: a message must be"),
    mistake(
        "data=jsonl data.train=a.parquet",
        "a.parquet: its schema names the column 'prompt' twice",
        make=columns(["prompt", "prompt"], pa.array(["w1"]), pa.array(["w2"])),
    ),
    mistake(
        "data=jsonl data.train=a.parquet",
        "a.parquet: cannot be read as parquet: 'utf-8' codec can't decode byte 0xff",
        make=columns(["prompt", "completion"], no_text(), pa.array(["w2"])),
    ),
]
