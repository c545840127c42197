"""Pipelines: every stage once, each from what the one before left; what is killed goes on, what fails ends it."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefopt.config.staged import by_stage, gathered
from prefopt.data.examples import Encoded, Example
from prefopt.errors import FAILED, INTERRUPTED, OK, WRONG, RequestError
from prefopt.files import replacing
from prefopt.jobs.fresh import Judge
from prefopt.models.base import Base
from prefopt.pipeline import runner
from prefopt.pipeline.ledger import Ledger, check_folder
from prefopt.pipeline.steps import Step, in_words, steps_of
from prefopt.rewards import Answer
from prefopt.rewards.gold import Gold
from prefopt.settings.pipelines import PipelineSettings, StageSettings
from prefopt.sweep.processes import quoted
from prefopt.train import main
from tests.conftest import SMALL
from tests.test_storage import killed_in
from tests.test_sweep import SAVING, alive, full_disk

FEW = ["trainer.max_steps=2", "trainer.accelerator=cpu", "source.samples=2"]


def command(folder: Path, cache: Path, *more: str, pipeline: str = "rlhf") -> list[str]:
    places = [f"pipeline_dir={quoted(str(folder))}", f"cache_dir={cache}"]
    return [sys.executable, "-m", "prefopt.train", f"pipeline={pipeline}", *SMALL, *FEW, *places, *more]


def run(folder: Path, cache: Path, *more: str, **options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(folder, cache, *more, **options), capture_output=True, text=True)


def told(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text())


def test_every_stage_goes_on_from_the_last_and_runs_once(tmp_path, cache_dir, monkeypatch, capsys):
    """On the same rows and ids, although the model is another; again, nothing is touched."""
    folder = tmp_path / "it's all"
    own = ["pipeline.ppo.loss.beta=0.3", "pipeline.rm.trainer.max_steps=3"]
    done = run(folder, cache_dir, *own)
    assert done.returncode == OK, done.stderr[-3000:]
    sft, rm, ppo = (told(folder / name / "summary.json") for name in ("1-sft", "2-rm", "3-ppo"))
    assert (sft["loss"], rm["loss"], ppo["loss"]) == ("sft", "bradley_terry", "ppo")
    assert (sft["steps"], rm["steps"], ppo["steps"]) == (2, 3, 2)
    assert rm["base_hash"] == ppo["base_hash"] == Base(str(folder / "1-sft/model"), None).hash()
    assert sft["data_hash"] == rm["data_hash"] == ppo["data_hash"]
    assert sft["tokens_hash"] == rm["tokens_hash"] == ppo["tokens_hash"]
    config = told(folder / "3-ppo/config.json")
    assert config["reward"]["name"] == str(folder / "2-rm")
    assert config["loss"]["beta"] == 0.3
    assert config["model"]["learning_rate"] == told(folder / "1-sft/config.json")["model"]["learning_rate"]
    assert f"reference: a frozen copy of {folder / '1-sft/model'}" in done.stderr
    assert ppo["samples"]["gold_reward"] is not None
    assert [stage["status"] for stage in told(folder / "pipeline.json")["stages"]] == ["finished"] * 3
    assert "3-ppo" in done.stdout.split("pipeline\n")[-1]

    before = {file: file.stat().st_mtime_ns for file in folder.glob("*/*")}
    monkeypatch.setattr(sys, "argv", command(folder, cache_dir, *own)[2:])
    assert main() == OK
    assert capsys.readouterr().err.count("finished before, left alone") == 3
    monkeypatch.setattr(sys, "argv", command(folder, cache_dir, "pipeline.ppo.loss.beta=0.1", own[1])[2:])
    assert main() == WRONG
    error = capsys.readouterr().err
    assert "holds another run: loss.beta is 0.3 there and 0.1 here" in error
    assert "(stage: ppo)" in error
    assert {file: file.stat().st_mtime_ns for file in folder.glob("*/*")} == before


@pytest.mark.long
def test_what_fails_ends_it(tmp_path, cache_dir):
    """With its exit code; the stages after it do not begin."""
    done = run(tmp_path / "p", cache_dir, "pipeline.sft.optimizer.lr=1e38", "trainer.clip=null", pipeline="online_dpo")
    assert done.returncode == FAILED
    assert f"1-sft failed (exit 1), in {tmp_path / 'p/1-sft'}" in done.stderr.replace("\n", "")
    statuses = [(stage["status"], stage["exit_code"]) for stage in told(tmp_path / "p/pipeline.json")["stages"]]
    assert statuses == [("failed", 1), ("pending", None), ("pending", None)]


def until_newer(file: Path, running: subprocess.Popen[bytes]) -> None:
    def stamp() -> int | None:
        return file.stat().st_mtime_ns if file.exists() else None

    before, deadline = stamp(), time.monotonic() + 240
    while stamp() == before and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)


@pytest.mark.long
def test_what_is_stopped_in_the_second_stage_ends_where_the_whole_does(tmp_path, cache_dir):
    """Asked to stop, and then killed, each time past a checkpoint; no process is left behind."""
    folder, asked = tmp_path / "p", ["pipeline.rm.trainer.max_steps=40", "pipeline.rm.trainer.checkpoint_every=2"]
    assert run(folder, cache_dir, *asked).returncode == OK
    whole = {name: told(folder / name / "summary.json")["model_hash"] for name in ("1-sft", "2-rm", "3-ppo")}
    for name in ("2-rm", "3-ppo"):
        shutil.rmtree(folder / name)
    checkpoint = folder / "2-rm/checkpoints/last.ckpt"
    for how, code in ((signal.SIGTERM, INTERRUPTED), (signal.SIGKILL, -signal.SIGKILL)):
        running = subprocess.Popen(
            command(folder, cache_dir, *asked), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        until_newer(checkpoint, running)
        running.send_signal(how)
        assert running.wait() == code, "it ended before it was stopped"
        time.sleep(1)
        assert not alive(str(folder)), "a stage outlived its pipeline"
        if how == signal.SIGTERM:
            stages = told(folder / "pipeline.json")["stages"]
            assert [stage["status"] for stage in stages][1:] == ["interrupted", "pending"]
    done = run(folder, cache_dir, *asked)
    assert done.returncode == OK, done.stderr[-3000:]
    assert len(told(folder / "2-rm/summary.json")["resumed_at"]) == 2
    assert {name: told(folder / name / "summary.json")["model_hash"] for name in whole} == whole


@pytest.mark.long
@pytest.mark.parametrize("model", ["tiny", "tiny_lora"])
def test_a_second_round(model, tmp_path, cache_dir):
    """It starts from the first one's policy, and its reward model goes on with that policy's answers."""
    folder = tmp_path / "p"
    done = run(folder, cache_dir, "pipeline.rounds=2", f"model={model}")
    assert done.returncode == OK, done.stderr[-3000:]
    rm, ppo = (told(folder / name / "summary.json") for name in ("5-rm", "6-ppo"))
    starts = {"4-fresh": "3-ppo", "5-rm": "2-rm", "6-ppo": "3-ppo"}
    for name, start in starts.items():
        assert told(folder / name / "config.json")["model"]["name"] == str(folder / start / "model")
    assert rm["base_hash"] != ppo["base_hash"] != told(folder / "3-ppo/summary.json")["base_hash"]
    assert told(folder / "6-ppo/config.json")["reward"]["name"] == str(folder / "5-rm")
    assert ppo["data_hash"] == told(folder / "1-sft/summary.json")["data_hash"] != rm["data_hash"]
    fresh = [json.loads(line) for line in (folder / "4-fresh/train.jsonl").read_text().splitlines()]
    assert len(fresh) == 2 * 16  # as many as the reward model will read
    assert rm["audit"]["splits"]["test"]["rows"] == ppo["audit"]["splits"]["test"]["rows"]
    before = (folder / "4-fresh/train.jsonl").stat().st_mtime_ns
    again = run(folder, cache_dir, "pipeline.rounds=2", f"model={model}")
    assert again.stderr.count("finished before, left alone") == 6
    assert (folder / "4-fresh/train.jsonl").stat().st_mtime_ns == before


# ---------------------------------------------------------------- parts


def stage(name: str, start: str | None = None, *words: str, fresh: bool = False) -> StageSettings:
    return StageSettings(name=name, words=list(words), start=start, fresh=fresh)


THREE = [stage("sft"), stage("rm", "sft", "x=1", fresh=True), stage("rl", "sft", "reward.name={rm}", "y={rm}/model")]


def test_a_step_saves_where_the_pipeline_fails(tmp_path, monkeypatch):
    """Its disk is full, and it ends; the step would be killed with it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runner, "hear", lambda: None)
    monkeypatch.setattr(runner, "python_command", lambda *_: [sys.executable, "-c", SAVING])
    monkeypatch.setattr(Ledger, "write", full_disk)
    step = Step(stage("sft"), tmp_path / "1-sft", 1, {})
    with pytest.raises(OSError, match="No space left"):
        runner.run([runner.Work(step, [])], Ledger(tmp_path, "rlhf", [step]))
    assert Path("saved").exists()


def test_what_a_kill_left_is_no_other_file(tmp_path):
    """While pipeline.json was written for the first time: the same command goes on."""
    killed_in(replacing, tmp_path / "pipeline.json")
    assert len(list(tmp_path.glob(".pipeline.json.*"))) == 1
    check_folder(tmp_path, "rlhf")
    with Ledger(tmp_path, "rlhf", []):
        assert {path.name for path in tmp_path.iterdir()} == {".lock", "pipeline.json"}


def test_steps_of_two_rounds():
    """The second one means the first one's policy wherever it names the first stage."""
    steps = steps_of(PipelineSettings(stages=THREE, rounds=2), Path("/p"))
    assert [step.folder.name for step in steps] == ["1-sft", "2-rm", "3-rl", "4-fresh", "5-rm", "6-rl"]
    assert [step.round for step in steps] == [1, 1, 1, 2, 2, 2]
    starts = [None, "1-sft", "1-sft", "3-rl", "2-rm", "3-rl"]
    assert [step.start and step.start.name for step in steps] == starts
    assert steps[2].words([], {})[0] == "reward.name='/p/2-rm'"
    assert steps[5].words([], {}) == ["reward.name='/p/5-rm'", "y='/p/5-rm/model'"]
    assert [step.pairs for step in steps] == [None, None, None, None, Path("/p/4-fresh"), None]
    several = stage("both", None, "reward.names=[{rm}, {sft}/x]", r"p='\d{2}'", "q=")
    several = Step(several, Path("/p/b"), 1, steps[2].where)
    assert several.words([], {}) == ["reward.names=['/p/2-rm','/p/1-sft/x']", r"p='\d{2}'", "q="]
    own = {"rm": ["b=1", "model=m", "model.name=n"], "fresh": ["c=1"]}
    assert steps[3].words(["a=1"], own) == ["x=1", "a=1", "b=1", "c=1"]  # the policy speaks, not what rm begins with
    assert steps[4].words(["a=1"], own) == ["x=1", "a=1", *own["rm"]]


def test_fresh_pairs_are_the_last_policys():
    """Also where the reward model starts from a base of its own."""
    own = [stage("sft"), stage("rm", None, "model=hf", "model.name=big", "x=1", fresh=True), stage("rl", "sft")]
    steps = steps_of(PipelineSettings(stages=own, rounds=2), Path("/p"))
    assert (steps[3].name, steps[3].start) == ("fresh", Path("/p/3-rl"))
    assert steps[3].words([], {}) == ["x=1"]
    assert steps[4].start == Path("/p/2-rm")


def test_what_a_stage_goes_on_from():
    """A tiny model goes on in plain text; a model of the stage's own is left to it."""
    first, rm, _, _, again, _ = steps_of(PipelineSettings(stages=THREE, rounds=2), Path("/p"))
    tiny = {"model": {"adapter": None, "tiny": {"seed": 0}}, "data": {"prompts": "auto"}}
    adapted = {"model": {"adapter": {"rank": 8}, "tiny": None}, "data": {"prompts": "auto"}}
    model = {"model.tiny": None, "model.name": "/p/1-sft/model"}
    assert first.follows([], tiny, None) == {}
    assert rm.follows([], tiny, {"seed": 1}) == {"data.writer": {"seed": 1}, **model, "data.prompts": "text"}
    assert rm.follows([], adapted, None) == {**model, "model.adapter.start": None}
    assert rm.follows(["model.name=mine"], adapted, None) == {}
    assert again.follows(["model.name=mine"], adapted, None)["model.name"] == "/p/2-rm/model"
    assert in_words({"a": None, "b": {"c": 1, "d": 0.5}, "e": False, "f": "it's"}) == [
        "a=null",
        "b={c:1,d:0.5}",
        "e=false",
        r"f='it\'s'",
    ]


def test_words_for_one_stage():
    asked = ["seed=1", "+pipeline.rl.model.x=[1,2]", "pipeline=rlhf", "pipeline.rounds=2.5", "pipeline.rm.a.b='c,d'"]
    found = gathered(asked)
    assert found[0] == "seed=1"
    assert found[2:] == ["pipeline=rlhf", "pipeline.rounds=2.5"]
    assert found[1] == r"+pipeline._words=['+pipeline.rl.model.x=[1,2]','pipeline.rm.a.b=\'c,d\'']"
    assert by_stage([asked[1], asked[4]], ["rm", "rl"]) == {"rl": ["+model.x=[1,2]"], "rm": ["a.b='c,d'"]}
    assert gathered(["loss=dpo", "loss.beta=1"]) == ["loss=dpo", "loss.beta=1"]
    with pytest.raises(RequestError, match="name the stage"):
        gathered(["pipeline=rlhf", "preset=dpo_tulu"])


@pytest.mark.parametrize(("temperature", "share"), [(None, 1.0), (0.0, 1.0), (1.0, 0.7311)])
def test_fresh_pairs_are_judged(temperature, share):
    """By the judge's word, or as often as σ(1 / T) says where the answers are 1 apart: 0.7311 at T = 1."""
    n = 4000
    texts = ["1", "0"] * n
    answers = [Answer("p", text, None, True, None) for text in texts]
    prompts = [Encoded(Example(prompt="p", completions=("a",), scores=(1.0,)), np.zeros(1), (np.zeros(1),))] * n
    judge = Judge(Gold(lambda prompt, text: float(text)), temperature, seed=0)
    rows = judge.pairs(prompts, answers)
    right = np.mean([row["chosen"] == "1" for row in rows])
    assert right == pytest.approx(share, abs=4 * np.sqrt(0.2 / n))
    assert judge.pairs(prompts, answers) == rows
    assert not any(row["tie"] for row in rows)
    equal = [Answer("p", text, None, True, None) for text in ("1", "1")]
    assert judge.pairs(prompts[:1], equal)[0]["tie"] is (temperature is None)
