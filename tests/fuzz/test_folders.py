"""Run folders in which something is not as a run left it: read, or refused in two lines, and nothing else touched."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefopt import compare, evaluate, export, sample
from prefopt.config import command
from prefopt.errors import FAILED, OK, WRONG
from prefopt.jobs.precision import PLAIN
from prefopt.train import task
from tests.fuzz.asking import VALUES, Answer, answered, ask, case, damaged, fuzzed, whole_run
from tests.mistakes.asking import left, rows
from tests.models.saved import pairs_file, saved_model

pytestmark = pytest.mark.long
JSON = ("summary.json", "config.json")
LINES = ("validation.jsonl", "val.jsonl", "test.jsonl", "samples.jsonl")
FILES = (*JSON, *JSON, *LINES, "metrics.csv")
BINARY = ("model/model.safetensors", "model/adapter_model.safetensors", "model/probe.safetensors")
OTHERS = ("model/config.json", "model/adapter_config.json", "model/tokenizer.json", "config.yaml", ".lock", "model")
WRITTEN = ("summary.json", "metrics.csv", "validation.jsonl", "error.txt", "config.yaml", ".lock")
SMALL = ("trainer.max_steps=2", "trainer.val_every=1", "data.batch_size=8", "evaluation.prompts=1")
SMALL += ("evaluation.samples_per_prompt=2", "evaluation.max_new_tokens=2", "trainer.accelerator=cpu")
KINDS = {"full": ("model=hf", "trainer.precision=auto"), "lora": ("model=hf_lora", "loss=kto")}


class Trained(NamedTuple):
    folder: Path
    asked: list[str]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, Trained]:
    """A finished run of each kind, with the words that ask for it."""
    root = tmp_path_factory.mktemp("trained")
    fixed = ["data=jsonl", f"data.train={pairs_file(root)}", f"model.name={saved_model(root / 'base')}", *SMALL]
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prefopt.jobs.precision._chosen", lambda trainer: PLAIN)
        patch.setenv("PREFOPT_CACHE", str(root / "cache"))
        for kind, more in KINDS.items():
            answer = ask(train, *fixed, *more, f"run_dir={root / kind}")
            assert answer.code == OK, answer.err
            found[kind] = Trained(root / kind, [*fixed, *more])
    return found


def train() -> int:
    return command("train", task)


# ---------------------------------------------------------------- damage


@st.composite
def changed(draw: st.DrawFn, content: Any, depth: int = 4) -> Any:
    """JSON with one entry, wherever it stands, gone, replaced or added."""
    if depth == 0 or not isinstance(content, (dict, list)) or not content or draw(st.integers(0, 5)) == 0:
        return draw(VALUES | st.sampled_from((None, [], {}, 0, "", -1, 2, "finished", [None], {"a": None})))
    if isinstance(content, list):
        place = draw(st.integers(0, len(content) - 1))
        return [draw(changed(entry, depth - 1)) if i == place else entry for i, entry in enumerate(content)]
    key = draw(st.sampled_from(sorted(content)))
    how = draw(st.sampled_from(("change", "change", "change", "change", "remove", "add")))
    if how == "remove":
        return {name: entry for name, entry in content.items() if name != key}
    if how == "add":
        return {**content, draw(st.text(max_size=5)): draw(VALUES)}
    return {**content, key: draw(changed(content[key], depth - 1))}


def in_bounds(content: Any) -> Any:
    """No evaluation of a million answers."""
    if isinstance(content, dict) and isinstance(content.get("evaluation"), dict):
        asked = content["evaluation"].items()
        held = {name: min(value, 50) if isinstance(value, (int, float)) else value for name, value in asked}
        return {**content, "evaluation": held}
    return content


def text_of(content: Any) -> bytes:
    return json.dumps(content).encode()


@st.composite
def spoilt(draw: st.DrawFn, name: str, content: bytes) -> bytes:
    """A file of a run, changed so that it can be read, or damaged."""
    if draw(st.integers(0, 3)) == 0:
        return draw(damaged(content))
    if name in JSON:
        return text_of(in_bounds(draw(changed(json.loads(content)))))
    lines = content.splitlines(keepends=True)
    place = draw(st.integers(0, len(lines) - 1))
    if name in LINES:
        lines[place] = text_of(draw(changed(json.loads(lines[place]), depth=2))) + b"\n"
    else:
        cells = lines[place].rstrip().split(b",")
        cells[draw(st.integers(0, len(cells) - 1))] = draw(st.sampled_from((b"", b"x", b"nan", b"-1", b"1e999", b'"')))
        lines[place] = b",".join(cells) + b"\n"
    return b"".join(lines)


# ---------------------------------------------------------------- asking


def resume(here: Path, asked: list[str]) -> Answer:
    return ask(train, *asked, "run_dir=run")


def measure(here: Path, asked: list[str]) -> Answer:
    return ask(evaluate.main, "run=run", "out=out", "device=cpu")


def write(here: Path, asked: list[str]) -> Answer:
    return ask(export.main, "run=run", "out=out")


def answer(here: Path, asked: list[str]) -> Answer:
    rows("prompts.jsonl", {"prompt": "w1 w2"})(here)
    return ask(sample.main, "run=run", "prompts=prompts.jsonl", "out=out", "max_new_tokens=2", "device=cpu")


def report(here: Path, asked: list[str]) -> Answer:
    return ask(compare.main, "run", "other", "--out", "out", "--optimum", "off")


COMMANDS: tuple[Callable[[Path, list[str]], Answer], ...] = (resume, resume, measure, write, answer, report)


@fuzzed
@given(
    kind=st.sampled_from(tuple(KINDS)),
    asking=st.sampled_from(COMMANDS),
    names=st.lists(st.sampled_from((*FILES, *FILES, *OTHERS, *BINARY)), min_size=1, max_size=2, unique=True),
    stray=st.sampled_from(("", "", "", "notes.txt", ".DS_Store", "model/.cache", "checkpoints/x")),
    data=st.data(),
)
def test_folders(
    trained: dict[str, Trained],
    kind: str,
    asking: Callable[[Path, list[str]], Answer],
    names: list[str],
    stray: str,
    data: st.DataObject,
):
    with case() as here:
        run = here / "run"
        shutil.copytree(trained[kind].folder, run)
        if asking is report:
            shutil.copytree(trained["lora" if kind == "full" else "full"].folder, here / "other")
        if asking is resume:
            unfinished(run)
        if stray:
            (run / stray).parent.mkdir(exist_ok=True)
            (run / stray).write_text("somebody's")
        for name in names:
            spoil(run / name, name, data)
        before = left(here)
        found = asking(here, trained[kind].asked)
        torn = {*BINARY, *OTHERS} & {*names}  # what only the libraries can read
        answered(found, OK, WRONG, *([FAILED] if torn and asking is not resume else []))
        if asking is resume:
            check_resumed(here, before, found, stray)
        else:
            check_untouched(here, before, found)


def unfinished(run: Path) -> None:
    """As a kill before the evaluation would have left it."""
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps({**summary, "status": "interrupted"}))


def spoil(path: Path, name: str, data: st.DataObject) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    elif path.is_file() and (not path.stat().st_size or data.draw(st.integers(0, 6)) == 0):
        path.unlink()
    elif path.is_file():
        content = path.read_bytes()
        path.write_bytes(data.draw(spoilt(name, content) if name in FILES else damaged(content)))


def check_resumed(here: Path, before: dict[str, bytes | None], found: Answer, stray: str) -> None:
    """What was refused is as it was, but for what a run says of itself; what went on has ended well."""
    if found.code == WRONG:
        mine = {f"run/{name}" for name in WRITTEN}
        assert kept(left(here), mine) == kept(before, mine)
        assert "run/error.txt" not in left(here)
    else:
        assert whole_run(here / "run", stray)["status"] in ("finished", "stopped")


def kept(found: dict[str, bytes | None], mine: set[str]) -> dict[str, bytes | None]:
    return {name: content for name, content in found.items() if name not in mine and "/tensorboard" not in name}


def check_untouched(here: Path, before: dict[str, bytes | None], found: Answer) -> None:
    """The runs are as they were; what was asked for is there as a whole or not at all."""
    after = left(here)
    made = {name for name in after if name == "out" or name.startswith("out/")}
    assert {name: content for name, content in after.items() if name not in made | {"prompts.jsonl"}} == before
    assert bool(made) == (found.code == OK)
    assert not [name for name in made if name.rpartition("/")[2].startswith(".")]
