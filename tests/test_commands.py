"""The command line as a person meets it: wrong requests, a user's own loss, a finished summary."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hydra import compose, initialize_config_dir

from prefopt.config import build_request, command, compose_request, config_dir
from prefopt.errors import FAILED, INTERRUPTED, OK, WRONG, RequestError
from prefopt.jobs.measure import compared_answers
from prefopt.jobs.train import train
from prefopt.models.base import weights_hash
from prefopt.objectives import create
from prefopt.run import KEYS, RunFolder
from tests.conftest import SMALL
from tests.models.saved import pairs_file, saved_model
from tests.toy import toy_examples, toy_module

CONF = Path(config_dir())
GROUPS_OF_RUNS = ("sweep", "pipeline")  # more than one run, which their own tests compose
CHOICES = [(f.parent.name, f.stem) for f in sorted(CONF.glob("*/*.yaml")) if f.parent.name not in GROUPS_OF_RUNS]
NEEDED = {  # what a choice cannot do without
    ("reward", "model"): ["reward.name=model"],
    ("reward", "ensemble"): ["reward.names=[model,./model]"],
    ("reward", "sum"): ["reward.parts={form: {kind: rule, rule: regex, pattern: x}}"],
    ("experiment", "overoptimisation"): ["reward.name=model"],
}
LOSS_OF = {"on_policy": "rloo", "overoptimisation": "ppo"}  # experiments of another loss than the default

WRONG_REQUESTS = [
    ("loss=dpoo", ["loss=dpoo", "did you mean 'dpo'?", "accepted: bradley_terry, dpo"]),
    ("los=dpo", ["los: no such key", "did you mean 'loss'?"]),
    ("model=tinny", ["model=tinny", "did you mean 'tiny'?"]),
    ("loss.betta=1", ["loss.betta: no such key", "did you mean 'beta'?", "accepted under loss:"]),
    ("+loss.typo=1", ["loss.typo: no such key"]),
    ("+trainer.typo=1", ["trainer.typo"]),
    ("+foo=1", ["foo: no such key"]),
    ("+strategy.x=1", ["strategy.x: no such key"]),
    ("+optimizer.typo=1", ["typo"]),
    ("optimizer.lr=-1", ["optimizer or schedule: Invalid learning rate: -1"]),
    ("schedule.warmup=-3", ["schedule.warmup must be at least 0; got -3"]),
    ("trainer.precision=bf17", ["trainer.precision must be one of", "got 'bf17'"]),
    ("trainer.accelerator=cudda", ["trainer.accelerator must be one of", "did you mean 'cuda'?"]),
    ("evaluation.prompts=0", ["evaluation.prompts must be at least 1"]),
    ("data.world.agreement=0.3", ["data.world.agreement must be in (0.5, 1]"]),
    ("data.train=mine.jsonl", ["data.train must be left out of the controlled world; files go with data=jsonl"]),
    ("model.name=gpt2", ["model.name must be left out with a tiny model; name one with model=hf"]),
    ("preset=ipo_original", ["preset=ipo_original is not for loss=dpo"]),
    ("trainer.devices=2", ["trainer.devices=2 needs strategy=ddp"]),
    ("trainer.max_step=3", ["trainer.max_step: no such key", "'max_steps'"]),
    ("trainer.max_steps=abc", ["trainer.max_steps", "abc"]),
    ("trainer.max_steps=0", ["trainer.max_steps must be at least 1"]),
    ("loss.beta=-1", ["loss.beta must be a number > 0; got -1"]),
    ("loss.beta=nan", ["loss.beta must be a number > 0"]),
    ("loss.beta=often", ["loss.beta must be a number > 0; got 'often'"]),
    ("loss.label_smoothing=0.5", ["loss.label_smoothing must be a number >= 0 and < 0.5"]),
    ("data=jsonl", ["data.train must be a file"]),
    ("model=hf", ["model.name must be a hub name or a folder"]),
    ("model.reference=copie", ["model.reference must be one of auto, adapter_off, copy"]),
    ("data.on_leak=ignore", ["data.on_leak must be one of warn, drop, error"]),
    ("data.batch_size=0", ["data.batch_size must be at least 1"]),
    ("loss.beta", ["loss.beta"]),
]


def run_command(monkeypatch, capsys, *arguments: str) -> tuple[int, str]:
    """A command in this process, up to the point where training would begin."""
    monkeypatch.setattr(sys, "argv", ["prefopt.train", *arguments])
    code = command("train", lambda cfg: OK if build_request(cfg) else WRONG)
    return code, capsys.readouterr().err


@pytest.mark.parametrize(("argument", "said"), WRONG_REQUESTS)
def test_a_wrong_request_is_answered_in_two_lines(monkeypatch, capsys, argument, said):
    code, error = run_command(monkeypatch, capsys, argument)
    assert code == WRONG
    assert len(error.strip().splitlines()) <= 2
    assert "Traceback" not in error
    for part in said:
        assert part in error


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["loss=dpoo"], "did you mean 'dpo'?"),
        (["data=jsonl", "data.train=nowhere.jsonl", "run_dir=run"], "data.train=nowhere.jsonl: no such file"),
        (["loss=ppo", "run_dir=run", "source=recorded"], "loss=ppo learns from its own answers; take source=rollouts"),
    ],
)
def test_the_real_command_leaves_nothing_behind(tmp_path, cache_dir, arguments, said):
    """Two lines at most, and what composition can tell is told within three seconds."""
    started = time.monotonic()
    found = subprocess.run(
        [sys.executable, "-m", "prefopt.train", *arguments, f"cache_dir={cache_dir}"],
        cwd=tmp_path,
        env={**__import__("os").environ, "PYTHONPATH": str(CONF.parent)},
        capture_output=True,
        text=True,
    )
    assert found.returncode == WRONG
    if arguments == ["loss=dpoo"]:
        assert time.monotonic() - started < 3
    assert said in found.stderr
    assert len(found.stderr.strip().splitlines()) <= 2
    assert "Traceback" not in found.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("group", "option"), CHOICES)
def test_every_config_composes_and_builds(group, option, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    overrides = [f"{group}={option}", *NEEDED.get((group, option), [])]
    if group == "preset":
        overrides.append(f"loss={next(f.stem for f in CONF.glob('loss/*.yaml') if option.startswith(f.stem + '_'))}")
    if option == "jsonl":
        rows = [{"prompt": f"p{i}", "chosen": "yes", "rejected": "no"} for i in range(8)]
        (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
        overrides.append("data.train=pairs.jsonl")
    if option == "hub":
        overrides.append("data.name=somebody/something")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model" / "model.safetensors").touch()
    if option.startswith("hf"):
        overrides.append("model.name=model")
    if option == "deepspeed" and not torch.cuda.is_available():
        with pytest.raises(
            RequestError, match="strategy=deepspeed runs on NVIDIA GPUs only; take strategy=fsdp or ddp"
        ):
            compose_request(overrides)
        return
    name = compose_request(overrides).objective.name
    expected = option if group == "loss" else option.split("_")[0] if group == "preset" else LOSS_OF.get(option, "dpo")
    assert name == expected


def test_every_loss_key_has_a_sentence():
    """A comment stands right above every key of every loss."""
    for file in CONF.glob("loss/*.yaml"):
        lines = file.read_text().splitlines()
        for above, line in zip(["", *lines], lines, strict=False):
            if line and line[0].isalpha():
                assert above.startswith("# "), f"{file.name}: {line}"


def test_defaults_compose_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with initialize_config_dir(config_dir(), version_base="1.3"):
        assert compose("train").loss.beta == 0.1


def test_a_run_leaves_a_complete_folder(small, tmp_path):
    assert train(compose_request([*small, "loss=dpo"])) == OK
    run = tmp_path / "run"
    summary = json.loads((run / "summary.json").read_text())
    assert list(summary) == list(KEYS)
    unknown = ("error",) if (CONF.parent / ".git").exists() else ("error", "git")
    # Of a policy that learns from its own answers, and of another model as its reference or its judge.
    live = ("rollouts", "sampling_seconds", "health", "others_hash")
    missing = [key for key in KEYS if summary[key] is None and key not in (*unknown, *live)]
    assert missing == []
    assert summary["status"] == "finished"
    assert summary["steps"] == 20
    assert summary["audit"]["rows_in"] == summary["audit"]["rows_kept"] + sum(summary["audit"]["dropped"].values())
    assert summary["pairs_per_second"] == pytest.approx(summary["examples"] / summary["train_seconds"])
    for name in ("config.yaml", "metrics.csv", "val.jsonl", "samples.jsonl", "model", "checkpoints", "tensorboard"):
        assert (run / name).exists(), name
    assert len((run / "metrics.csv").read_text().splitlines()) == 21
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert AutoModelForCausalLM.from_pretrained(run / "model").config.vocab_size == len(
        AutoTokenizer.from_pretrained(run / "model")
    )


def test_a_diverged_run_fails_and_says_where(small, tmp_path, capsys):
    """The loss is no number: exit 1, a summary that loads, what has been measured so far kept."""
    code = train(compose_request([*small, "loss=ipo", "optimizer=sgd", "optimizer.lr=1e30", "trainer.clip=null"]))
    assert code == FAILED
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["status"] == "failed"
    assert "step" in summary["error"]
    assert "is optimizer.lr too high?" in capsys.readouterr().err
    assert (tmp_path / "run/metrics.csv").exists()
    assert (tmp_path / "run/error.txt").exists()


def test_a_summary_never_holds_nan(tmp_path):
    run = RunFolder(str(tmp_path / "run"), {"seed": 0})
    with run:
        run.save(val={"loss": float("nan"), "accuracy": 0.5})
    assert json.loads((tmp_path / "run/summary.json").read_text())["val"] == {"loss": None, "accuracy": 0.5}


def test_only_what_a_wrong_request_began_is_removed(tmp_path):
    with RunFolder(str(tmp_path / "new"), {"seed": 0}) as run:
        assert run.discard()
    assert not (tmp_path / "new").exists()
    for _ in range(2):  # begun here and trained; then found
        with RunFolder(str(tmp_path / "trained"), {"seed": 0}) as run:
            run.metrics.write_text("step")
            assert not run.discard()
    assert (tmp_path / "trained/metrics.csv").exists()


def test_a_run_killed_before_its_first_summary_begins_again(tmp_path):
    """The config is there and nothing else: what it is gets said, and it can resume."""
    with RunFolder(str(tmp_path / "whole"), {"seed": 3}) as run:
        whole = run.summary
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed/config.json").write_text((tmp_path / "whole/config.json").read_text())
    with RunFolder(str(tmp_path / "killed"), {"seed": 3}) as run:
        assert run.summary == whole
        assert (tmp_path / "killed/config.yaml").exists()
        run.resumed(4)
    assert json.loads((tmp_path / "killed/summary.json").read_text())["resumed_at"] == [4]


def test_a_killed_evaluation_goes_on_from_the_end(small, tmp_path, monkeypatch):
    """All steps are done and checkpointed before evaluation begins, also with checkpoint_every=null."""
    request = [*small, "trainer.max_steps=3", "trainer.checkpoint_every=null"]
    with monkeypatch.context() as patch:
        patch.setattr("prefopt.jobs.train.evaluate_split", _interrupt)
        assert train(compose_request(request)) == INTERRUPTED
    assert json.loads((tmp_path / "run/summary.json").read_text())["status"] == "interrupted"
    before = (tmp_path / "run/metrics.csv").read_text()
    assert train(compose_request(request)) == OK
    assert (tmp_path / "run/metrics.csv").read_text() == before
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert (summary["status"], summary["steps"]) == ("finished", 3)
    assert summary["train_seconds"] > 0


def test_runs_compare_and_resume_on_the_same_tokens(tmp_path, monkeypatch, capsys):
    """Methods on the same rows share a table; the same rows cut at the other end do not, and do not go on there."""
    monkeypatch.setattr("prefopt.jobs.train.evaluate_split", _interrupt)
    fixed = ["model=hf", f"model.name={saved_model(tmp_path / 'base')}", f"cache_dir={tmp_path / 'cache'}"]
    fixed += ["data=jsonl", f"data.train={pairs_file(tmp_path)}", "data.max_length=8", "trainer.max_steps=1"]
    asked = {
        "dpo": ["loss=dpo", "data.truncation=truncate_completion"],
        "kto": ["loss=kto", "data.truncation=truncate_completion"],
        "left": ["loss=dpo", "data.truncation=truncate_prompt_left"],
    }
    found = {}
    for name, more in asked.items():
        assert train(compose_request([*fixed, *more, f"run_dir={tmp_path / name}"])) == INTERRUPTED
        found[name] = json.loads((tmp_path / name / "summary.json").read_text())
    assert found["dpo"]["data_hash"] == found["left"]["data_hash"]
    assert found["dpo"]["tokens_hash"] == found["kto"]["tokens_hash"] != found["left"]["tokens_hash"]
    assert found["dpo"]["comparable_hash"] == found["kto"]["comparable_hash"] != found["left"]["comparable_hash"]
    (tmp_path / "dpo/summary.json").write_text(json.dumps({**found["dpo"], "tokens_hash": "0" * 64}))
    assert train(compose_request([*fixed, *asked["dpo"], f"run_dir={tmp_path / 'dpo'}"])) == WRONG
    assert "tokens_hash was 000000000000 and is now" in capsys.readouterr().err


def _interrupt(*arguments):
    raise KeyboardInterrupt


def test_held_out_rows_say_what_the_summary_says(small, tmp_path):
    """val.jsonl and test.jsonl against the summary, samples.jsonl too; model/ against model_hash."""
    assert train(compose_request([*small, "trainer.max_steps=3"])) == OK
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    for split in ("val", "test"):
        rows = [json.loads(line) for line in (tmp_path / f"run/{split}.jsonl").read_text().splitlines()]
        chosen, rejected = rows[::2], rows[1::2]
        assert all(row["chosen"] for row in chosen)
        assert not any(row["chosen"] for row in rejected)
        gaps = [c["reward"] - r["reward"] for c, r in zip(chosen, rejected, strict=True)]
        accuracy = sum((gap > 0) + 0.5 * (gap == 0) for gap in gaps) / len(gaps)
        assert summary[split]["accuracy"] == pytest.approx(accuracy)
        for row in rows:  # β 0.1
            assert row["reward"] == pytest.approx(0.1 * (row["logp"] - row["ref_logp"]), abs=1e-5)
    answers = [json.loads(line) for line in (tmp_path / "run/samples.jsonl").read_text().splitlines()]
    for key, section in (("gold", "samples"), ("base_gold", "samples_reference")):
        worth = [value for row in answers for value in row[key]]
        assert len(worth) == 24  # 6 prompts, 4 answers
        assert summary[section]["gold_reward"] == pytest.approx(sum(worth) / 24)
    from transformers import AutoModelForCausalLM

    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "run/model")
    weights = ((f"model.{name}", p) for name, p in saved.named_parameters())
    assert weights_hash(weights) == summary["model_hash"]


def test_answers_are_sampled_where_the_run_trained(monkeypatch):
    """A validation ends with the module on the CPU, whatever device trained it; meta stands for one."""
    seen = []
    monkeypatch.setattr("prefopt.jobs.measure.sample_policy", lambda policy, *_, **options: seen.append(policy.device))
    settings = SimpleNamespace(prompts=2)
    dataset = SimpleNamespace(val=[], test=toy_examples(2), gold=None)
    plain = SimpleNamespace(forward_context=nullcontext)
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("meta")), precision_plugin=plain)
    compared_answers(trainer, toy_module(create("dpo")), dataset, None, settings, 0)
    assert seen == [torch.device("meta")] * 2


def test_another_request_in_the_same_folder_is_refused(small, tmp_path, capsys):
    """When it is composed, and again when it begins: another may have begun there in between."""
    late = compose_request([*small, "trainer.max_steps=2", "loss.beta=0.2"])
    assert train(compose_request([*small, "trainer.max_steps=2"])) == OK
    with pytest.raises(RequestError, match=r"loss\.beta is 0\.1 there and 0\.2 here"):
        compose_request([*small, "trainer.max_steps=2", "loss.beta=0.2"])
    assert train(late) == WRONG
    assert "loss.beta is 0.1 there and 0.2 here" in capsys.readouterr().err
    late = compose_request([*small, f"run_dir={tmp_path / 'other'}"])
    (tmp_path / "other").mkdir()
    (tmp_path / "other/thesis.tex").write_text("precious")
    assert train(late) == WRONG
    assert (tmp_path / "other/thesis.tex").read_text() == "precious"


OWN_LOSS = '''
"""Hinge loss on the log-ratio margin (SLiC, https://arxiv.org/abs/2305.10425)."""
from dataclasses import dataclass
import torch
from prefopt.objectives import Needs, Objective, Term, register

@register("my_hinge")
@dataclass(frozen=True, kw_only=True)
class MyHinge(Objective):
    needs = Needs(data="pairs", reference=True)
    beta: float = 0.1

    def terms(self, scores, statistics):
        chosen, rejected = scores.halves()
        gap = 1 - self.beta * (chosen.logratio - rejected.logratio)
        return (Term("hinge", (chosen.weight * torch.relu(gap)).sum(), "pairs"),)

    def reward(self, scores):
        return self.beta * scores.logratio
'''


def test_a_loss_from_outside_the_package_trains(tmp_path, cache_dir):
    """By `_target_` in a user's config folder, and by name through an installed entry point."""
    site = tmp_path / "site"
    (site / "mylosses-0.1.dist-info").mkdir(parents=True)
    (site / "mylosses.py").write_text(OWN_LOSS)
    (site / "mylosses-0.1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: mylosses\nVersion: 0.1\n")
    (site / "mylosses-0.1.dist-info/entry_points.txt").write_text("[prefopt.objectives]\nmy_hinge = mylosses\n")
    (tmp_path / "mine/loss").mkdir(parents=True)
    (tmp_path / "mine/loss/hinge.yaml").write_text("_target_: mylosses.MyHinge\nbeta: 0.5\n")
    env = {**__import__("os").environ, "PYTHONPATH": f"{site}:{CONF.parent}"}
    arguments = ["--config-dir", "mine", "loss=hinge", *SMALL, "trainer.max_steps=2", f"cache_dir={cache_dir}"]
    found = subprocess.run(
        [sys.executable, "-m", "prefopt.train", *arguments, "run_dir=run"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
    )
    assert found.returncode == OK, found.stderr
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["loss"] == "my_hinge"
    asked = (
        "from prefopt.objectives import create, names; print(create('my_hinge', beta=2.0).beta, 'my_hinge' in names())"
    )
    by_name = subprocess.run([sys.executable, "-c", asked], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert by_name.stdout.split() == ["2.0", "True"]


def test_request_errors_are_one_type():
    with pytest.raises(RequestError, match="loss=dpoo"):
        compose_request(["loss=dpoo"])
