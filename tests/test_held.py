"""What is read of a run folder is what a run writes there; anything else is refused by its key."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from prefopt.errors import RequestError
from prefopt.jobs.precision import settle
from prefopt.models.files import is_classifier
from prefopt.reports.compare.runs import read_runs
from prefopt.run import KEYS, RunFolder, finished_run
from prefopt.run.held import SECTIONS, held_config, held_summary
from tests.reports.fake import write_run

SOUND = {
    "schema": 1,
    "status": "finished",
    "loss": "dpo",
    "seed": 0,
    "base_hash": "b",
    "resumed_at": [3],
    "steps": 4,
    "train_seconds": 1.5,
    "val": {"loss": 0.5, "accuracy": None},
    "reward_is_log_odds": True,
    "audit": {"rows_in": 3, "dropped": {}},
    "health": [{"guard": "kl", "step": 1, "action": "warn", "sentence": "far"}],
}


def summary(folder: Path, **changed: Any) -> dict[str, Any]:
    (folder / "summary.json").write_text(json.dumps({**SOUND, **changed}))
    return held_summary(folder / "summary.json", "run=x")


def test_what_a_run_writes_is_read(tmp_path: Path):
    """And null wherever something does not apply."""
    assert summary(tmp_path) == SOUND
    nothing = summary(tmp_path, **dict.fromkeys(key for key in SOUND if key != "schema"))
    assert nothing == {**dict.fromkeys(SOUND), "schema": 1, "resumed_at": []}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"schema": 2}, "its summary.json has schema 2, and this version of prefopt reads 1"),
        ({"status": 5}, "status must be text; got 5"),
        ({"base_hash": ["b"]}, r"base_hash must be text; got \['b'\]"),
        ({"steps": "4"}, "steps must be a whole number; got '4'"),
        ({"steps": 4.5}, "steps must be a whole number; got 4.5"),
        ({"train_seconds": float("nan")}, "train_seconds must be a number; got nan"),
        ({"train_seconds": 10**400}, "train_seconds must be a number; got 1000"),
        ({"resumed_at": 3}, "resumed_at must be a list of steps; got 3"),
        ({"resumed_at": ["a"]}, "resumed_at must be a list of steps"),
        ({"val": [1]}, "val must be an object of numbers"),
        ({"val": {"accuracy": "high"}}, "val must be an object of numbers; got {'accuracy': 'high'}"),
        ({"rollouts": {"beta": {}}}, "rollouts must be an object of numbers"),
        ({"audit": []}, "audit must be an object"),
        ({"others_hash": {"reward.name": 5}}, "others_hash must be an object of text"),
        ({"reward_is_log_odds": 1}, "reward_is_log_odds must be true or false"),
        ({"health": [{}]}, "health must be a list of alarms"),
    ],
)
def test_a_summary_that_no_run_writes_is_refused(tmp_path: Path, changed: dict[str, Any], said: str):
    with pytest.raises(RequestError, match=f"run=x: its summary.json:? ?{said}" if "schema" not in said else said):
        summary(tmp_path, **changed)


@pytest.mark.parametrize("key", KEYS[1:])
def test_whatever_a_run_may_write_is_held_against_what_it_must_be(tmp_path: Path, key: str):
    """No value may be a list of nothing known."""
    with pytest.raises(RequestError, match=rf"run=x: its summary.json: {key} must be .*; got \[\[\]\]"):
        summary(tmp_path, **{key: [[]]})


def test_a_config_is_sections(tmp_path: Path):
    file = tmp_path / "config.json"
    for config, said in (
        *(({section: 5}, f"{section} must be an object; got 5") for section in SECTIONS),
        ({"model": {"adapter": "lora"}}, "model.adapter must be an object or null; got 'lora'"),
        ({"model": {"name": 5}}, "model.name must be text or null; got 5"),
    ):
        file.write_text(json.dumps(config))
        with pytest.raises(RequestError, match=f"run=x: its config.json: {said}"):
            held_config(file, "run=x")


def test_a_run_that_goes_on_reads_no_other_summary(tmp_path: Path):
    """And touches nothing."""
    with RunFolder(str(tmp_path / "run"), {"seed": 0}):
        pass
    for changed in ({"schema": 2}, {"resumed_at": 5}):
        (tmp_path / "run/summary.json").write_text(text := json.dumps({**SOUND, "status": "interrupted", **changed}))
        with pytest.raises(RequestError, match=r"summary.json"), RunFolder(str(tmp_path / "run"), {"seed": 0}):
            pass
        assert (tmp_path / "run/summary.json").read_text() == text
    (tmp_path / "run/summary.json").write_text(json.dumps({**SOUND, "status": "failed", "resumed_at": None}))
    with RunFolder(str(tmp_path / "run"), {"seed": 0}) as run:
        run.resumed(4)
        assert run.summary["resumed_at"] == [4]


def test_a_finished_run_has_a_whole_config(tmp_path: Path):
    (tmp_path / "model").mkdir()
    (tmp_path / "summary.json").write_text(json.dumps(SOUND))
    config = {"model": {"adapter": None}, "data": {}, "trainer": {}, "evaluation": {}, "loss": {}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert finished_run(str(tmp_path)).summary["model_hash"] is None  # what is missing is null
    (tmp_path / "model/adapter_config.json").write_text("{}")
    with pytest.raises(RequestError, match=r"its model/ is an adapter, and by its config.json it trained none"):
        finished_run(str(tmp_path))
    del config["trainer"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(RequestError, match=r"its config.json has no trainer"):
        finished_run(str(tmp_path))


def test_a_precision_that_nobody_chose(tmp_path: Path):
    with pytest.raises(RequestError, match=r"precision must be what auto has chosen, 32, highest; .*; got '33'"):
        settle(SimpleNamespace(precision="auto"), "33")


@pytest.mark.parametrize("named", [5, {}, {"0": "a"}, [], [5], "LlamaForSequenceClassification", None])
def test_architectures_of_any_kind(tmp_path: Path, named: Any):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": named}))
    assert not is_classifier(str(tmp_path), "model.name")


@pytest.mark.parametrize(
    "changed",
    [
        {"sampled": "fine"},
        {"sampled": [5, 6]},
        {"base_sampled": ["so"]},
        {"gold": [1.0]},
        {"gold": [1.0, "a"]},
        {"gold": [1.0, float("nan")]},
        {"base_gold": 5},
    ],
)
def test_answers_that_no_run_writes_are_refused(tmp_path: Path, changed: dict[str, Any]):
    run = write_run(tmp_path / "run")
    assert len(read_runs([run]).runs[0].samples) == 2
    rows = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    (run / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (rows[0], {**rows[1], **changed})))
    with pytest.raises(RequestError, match=r"its samples\.jsonl: row 2 holds no answers as a run writes them"):
        _ = read_runs([run]).runs[0].samples
