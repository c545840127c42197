"""Checkpoints that were cut, overwritten or exchanged: the run ends as an uninterrupted one, or is refused."""

from __future__ import annotations

import csv
import io
import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prefopt.config import command
from prefopt.errors import INTERRUPTED, OK, WRONG
from prefopt.module import PreferenceModule
from prefopt.train import task
from tests.fuzz.asking import answered, ask, case, damaged, fuzzed, whole_run
from tests.models.saved import pairs_file, saved_model
from tests.test_resume import DIFFERS, TIMES

pytestmark = pytest.mark.long
STEPS, KILLED = 4, 3
SMALL = (f"trainer.max_steps={STEPS}", "trainer.checkpoint_every=1", "data.batch_size=8", "trainer.accelerator=cpu")
SMALL += ("evaluation.prompts=1", "evaluation.samples_per_prompt=1", "evaluation.max_new_tokens=1", "optimizer.lr=0.05")
KINDS = {"dpo": ("loss=dpo", "model=hf_lora", "model.adapter.dropout=0.3"), "kto": ("loss=kto", "model=hf")}
PLACES = ("checkpoints/last.ckpt", "checkpoints/previous.ckpt")


class Killed(NamedTuple):
    """folder: a run that was interrupted at a step. result: what the uninterrupted one ends with. other: a sound
    checkpoint of another run. cache: where its reference log-probs are; computed anew they round elsewhere."""

    folder: Path
    asked: list[str]
    result: tuple[Any, ...]
    other: bytes
    cache: Path


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> dict[str, Killed]:
    root = tmp_path_factory.mktemp("killed")
    fixed = ["data=jsonl", f"data.train={pairs_file(root)}", f"model.name={saved_model(root / 'base')}", *SMALL]
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFOPT_CACHE", str(root / "cache"))
        for kind, more in KINDS.items():
            asked = [*fixed, *more]
            for name, seed in (("whole", 0), ("other", 1)):
                answer = ask(train, *asked, f"seed={seed}", f"run_dir={root / kind / name}")
                assert answer.code == OK, answer.err
            with pytest.MonkeyPatch.context() as killing:
                killing.setattr(PreferenceModule, "training_step", dies_at(KILLED, PreferenceModule.training_step))
                assert ask(train, *asked, "seed=0", f"run_dir={root / kind / 'killed'}").code == INTERRUPTED
            other = (root / kind / "other" / PLACES[0]).read_bytes()
            found[kind] = Killed(root / kind / "killed", asked, result(root / kind / "whole"), other, root / "cache")
    return found


def dies_at(step: int, usual: Callable[..., Any]) -> Callable[..., Any]:
    def training_step(self, *arguments):
        if self.trainer.global_step == step:
            raise KeyboardInterrupt
        return usual(self, *arguments)

    return training_step


def train() -> int:
    return command("train", task)


def result(run: Path) -> tuple[Any, ...]:
    """All that must be equal: the summary, the rows of metrics.csv, what is said of held-out rows."""
    summary = {key: value for key, value in whole_run(run).items() if key not in DIFFERS}
    with (run / "metrics.csv").open(newline="") as stream:
        steps = [{name: value for name, value in row.items() if name not in TIMES} for row in csv.DictReader(stream)]
    return summary, steps, (run / "val.jsonl").read_text(), (run / "samples.jsonl").read_text()


# ---------------------------------------------------------------- damage


class Evil:
    """Pickled, it writes a file where it is read without care."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (Path("evil"), "called")


CONTENTS: tuple[Any, ...] = (
    {},
    [],
    None,
    5,
    "text",
    {"state_dict": {}},
    {"a": torch.ones(3)},
    {"epoch": 0},
    torch.ones(2),
)


def saved(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@st.composite
def without_a_key(draw: st.DrawFn, content: bytes) -> bytes:
    """A checkpoint that is whole as a file and lacks an entry, or holds there what no checkpoint does."""
    held = torch.load(io.BytesIO(content), weights_only=True)
    key = draw(st.sampled_from(sorted(held)))
    if draw(st.booleans()):
        return saved({name: value for name, value in held.items() if name != key})
    return saved({**held, key: draw(st.sampled_from((None, 5, "text")))})


@st.composite
def torn_inside(draw: st.DrawFn, content: bytes) -> bytes:
    """A sound zip file, one of whose parts is not as it was: only its CRC, or its tensor's size, can tell."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w") as new:
        torn = draw(st.sampled_from(old.namelist()))
        for name in old.namelist():
            part = old.read(name)
            new.writestr(name, part[: draw(st.integers(0, len(part) // 2))] if name == torn else part)
    return buffer.getvalue()


@st.composite
def any_damage(draw: st.DrawFn, content: bytes) -> bytes | None:
    """None: the file is gone."""
    how = draw(st.sampled_from(("damage", "damage", "damage", "damage", "inside", "gone", "pickle", "text")))
    if how == "damage":
        return draw(damaged(content))
    if how == "inside":
        return draw(torn_inside(content))
    return {"gone": None, "pickle": pickle.dumps(Evil()), "text": b"no checkpoint"}[how]


# ---------------------------------------------------------------- resuming


def resumed(killed: Killed, spoil: Callable[[Path], None]) -> None:
    with case() as here, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFOPT_CACHE", str(killed.cache))
        shutil.copytree(killed.folder, here / "run")
        spoil(here / "run")
        answer = ask(train, *killed.asked, "seed=0", "run_dir=run")
        assert not (here / "evil").exists()
        answered(answer, OK, WRONG)
        if answer.code == OK:
            assert result(here / "run") == killed.result
        else:
            json.loads((here / "run/summary.json").read_text())
            assert not [p for p in (here / "run").rglob(".*") if p.name != ".lock"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_sound_one_goes_on(killed: dict[str, Killed], kind: str):
    """And what is expected below is told from what it is not: another seed ends elsewhere."""
    resumed(killed[kind], lambda run: None)
    other = killed[kind].folder.parent / "other"
    assert result(other)[1] != killed[kind].result[1]


@pytest.mark.parametrize("place", PLACES)
def test_what_is_pickled_is_not_called(killed: dict[str, Killed], place: str):
    """Whatever the answer is."""
    with case() as here:
        shutil.copytree(killed["dpo"].folder, here / "run")
        (here / "run" / place).write_bytes(pickle.dumps(Evil()))
        ask(train, *killed["dpo"].asked, "seed=0", "run_dir=run")
        assert not (here / "evil").exists()


@fuzzed
@given(kind=st.sampled_from(tuple(KINDS)), both=st.integers(0, 3), data=st.data())
def test_damage(killed: dict[str, Killed], kind: str, both: int, data: st.DataObject):
    """The last one, the one before it, or both."""

    def spoil(run: Path) -> None:
        for place in {0: PLACES, 1: PLACES[1:]}.get(both, PLACES[:1]):
            file = run / place
            found = data.draw(any_damage(file.read_bytes())) if file.is_file() else b""
            file.unlink(missing_ok=True)
            if found is not None:
                file.write_bytes(found)

    resumed(killed[kind], spoil)


@fuzzed
@given(
    kind=st.sampled_from(tuple(KINDS)), how=st.sampled_from(("other", "content", "key", "key", "key")), data=st.data()
)
def test_contents(killed: dict[str, Killed], kind: str, how: str, data: st.DataObject):
    """A sound file that holds something else: another run's checkpoint, another method's, or none at all."""

    def spoil(run: Path) -> None:
        last, other = run / PLACES[0], "kto" if kind == "dpo" else "dpo"
        found = {
            "other": lambda: data.draw(st.sampled_from((killed[kind].other, killed[other].other))),
            "content": lambda: saved(data.draw(st.sampled_from(CONTENTS))),
            "key": lambda: data.draw(without_a_key(last.read_bytes())),
        }[how]()
        last.write_bytes(found)
        (run / PLACES[1]).unlink(missing_ok=True)

    resumed(killed[kind], spoil)
