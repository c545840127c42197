"""prefopt evaluate: a run's own numbers again, any model on any rows, RewardBench's sections; wrong requests."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from prefopt import evaluate
from prefopt.errors import FAILED, INTERRUPTED, OK, WRONG, RequestError
from prefopt.metrics.rewardbench import section_scores
from prefopt.module import PreferenceModule
from prefopt.reports.compare.runs import read_runs
from tests.models.saved import pairs_file, saved_model, tokenizer, trained

KINDS = {
    "full": ("model=hf", "optimizer.lr=0.01"),
    "lora": ("model=hf_lora", "optimizer.lr=0.05", "loss=kto"),
    "biased": ("model=hf_lora", "optimizer.lr=0.05", "model.adapter.bias=lora_only"),
    "4-bit": ("model=hf_4bit", "optimizer.lr=0.05"),
    "judge": ("model=hf_lora", "loss=bradley_terry", "optimizer.lr=0.05"),
    "in bfloat16": ("model=hf", "loss=bradley_terry", "optimizer.lr=0.05", "trainer.precision=bf16-true"),
    "soft": ("model=hf", "optimizer.lr=0.01", "data.train=SOFT"),
    "target": ("model=hf", "optimizer.lr=0.01", "data.train=SOFT", "data.soft=target"),
    "own answers": (
        *("model=hf", "loss=ppo", "model.critic=separate", "optimizer.lr=0.01", "reward=rule", "reward.rule=regex"),
        *("reward.pattern=a", "source.kl_target=0.01", "source.kl_horizon=100", "model.reference=copy"),
    ),
    "heads": ("model=hf", "loss=bradley_terry", "loss.sft_weight=0.5", "optimizer.lr=0.01"),
}
SMALL = ["evaluation.prompts=2", "evaluation.samples_per_prompt=2", "evaluation.max_new_tokens=4"]


class Runs(dict):
    """A finished run of each kind, trained when first asked for. All stand on one base."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder, self.base = folder, saved_model(folder / "base", intermediate_size=64)

    def __missing__(self, kind: str) -> Path:
        if kind == "4-bit":
            pytest.importorskip("bitsandbytes")
        (self.folder / kind).mkdir()
        options = [option.replace("SOFT", soft_file(self.folder)) for option in KINDS[kind]]
        self[kind] = trained(self.folder / kind, f"model.name={self.base}", *options)
        return self[kind]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def ask(tmp_path, monkeypatch):
    """The command, with a cache and an output folder of the test's own. Returns what it has written."""

    def call(*arguments: str, out: str = "out") -> dict[str, Any]:
        places = [f"cache_dir={tmp_path / 'cache'}", f"out={tmp_path / out}", "device=cpu", "debug=true"]
        monkeypatch.setattr(sys, "argv", ["prefopt.evaluate", *arguments, *places])
        assert evaluate.main() == OK
        return json.loads((tmp_path / out / "summary.json").read_text())

    return call


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def labels_file(folder: Path) -> str:
    pairs = lines(pairs_file(folder))
    judged = [{"prompt": row["prompt"], "completion": row["chosen"], "label": i % 2} for i, row in enumerate(pairs)]
    return write(folder / "labels.jsonl", judged)


def soft_file(folder: Path) -> str:
    """Pairs whose second answer is the better one with a probability between."""
    columns = {"prompt": "instruction", "chosen": "output_1", "rejected": "output_2"}
    rows = [{ours: row[theirs] for theirs, ours in columns.items()} for row in lines(pairs_file(folder))]
    return write(folder / "soft.jsonl", [{**row, "preference": 1 + (i % 5) / 5} for i, row in enumerate(rows)])


SUBSETS = ("alpacaeval-easy", "alpacaeval-easy", "mt-bench-med", "math-prm", "hep-cpp", "of my own")


def benchmark_file(folder: Path) -> str:
    """Rows as RewardBench publishes them."""
    more = {"chosen_model": "GPT-4", "rejected_model": "human"}
    rows = [
        {**row, **more, "subset": SUBSETS[i % len(SUBSETS)], "id": i} for i, row in enumerate(lines(pairs_file(folder)))
    ]
    return write(folder / "filtered.jsonl", rows)


def accuracy(rows: list[dict[str, Any]], value) -> float:
    """By hand, from what was written of every row."""
    gaps = [value(good) - value(bad) for good, bad in zip(rows[::2], rows[1::2], strict=True)]
    return sum((gap > 0) + 0.5 * (gap == 0) for gap in gaps) / len(gaps)


# ---------------------------------------------------------------- runs


@pytest.mark.parametrize("kind", KINDS)
def test_a_runs_own_rows_say_what_they_said(runs, ask, tmp_path, kind):
    """Every number of test and of the answers, every row and every text; in 4 bits a base product may round."""
    run = runs[kind]
    held, found = json.loads((run / "summary.json").read_text()), ask(f"run={run}")
    for section in ("test", "test_reference", "samples", "samples_reference"):
        if held[section] is None:
            assert found[section] is None
        else:
            told = {key: value for key, value in held[section].items() if "annotation" not in key}  # of training alone
            assert found[section] == pytest.approx({**found[section], **told}, abs=2e-5), section
    assert held["test"]["accuracy"] is not None
    assert found["data_hash"] == held["data_hash"]
    for before, after in zip(lines(run / "test.jsonl"), lines(tmp_path / "out/test.jsonl"), strict=True):
        assert after == pytest.approx(before, abs=2e-5)
    assert (tmp_path / "out/samples.jsonl").exists() == (run / "samples.jsonl").exists()
    if (run / "samples.jsonl").exists():
        said = ("greedy", "sampled", "base_greedy", "base_sampled", "gold", "base_gold")
        for before, after in zip(lines(run / "samples.jsonl"), lines(tmp_path / "out/samples.jsonl"), strict=True):
            assert {key: after[key] for key in said} == {key: before[key] for key in said}
    assert (found["loss"], found["status"], found["rows"]) == (
        held["loss"],
        "evaluated",
        len(lines(run / "test.jsonl")) / 2,
    )


def test_a_run_on_other_rows_and_another_reference(runs, ask, tmp_path):
    """Of the file nothing is cut away. Held against its own start by name it says what it says anyway."""
    file = pairs_file(tmp_path)
    rows = ["data=jsonl", f"data.test={file}"]
    found = ask(f"run={runs['full']}", *rows)
    assert found["rows"] == 24
    assert found["test"]["loss"] is not None
    named = ask(f"run={runs['full']}", *rows, f"reference={runs.base}", out="named")
    assert named["test"] == pytest.approx(found["test"], abs=1e-6)
    other = ask(f"run={runs['full']}", *rows, f"reference={runs['full']}/model", out="other")
    assert other["test"]["accuracy_logratio"] == 0.5
    assert other["samples"]["kl"] == pytest.approx(0, abs=1e-5)


def test_labels_have_an_accuracy_under_a_loss_on_pairs(runs, ask, tmp_path):
    """And no loss, as it does not learn from them."""
    found = ask(f"run={runs['full']}", "data=jsonl", f"data.test={labels_file(tmp_path)}", "evaluation.prompts=0")
    assert found["test"]["loss"] is None
    assert 0 <= found["test"]["accuracy"] <= 1
    assert found["samples"] is None
    assert not (tmp_path / "out/samples.jsonl").exists()


def test_settings_of_the_answers_are_the_runs_unless_they_are_asked(runs, ask):
    found = ask(f"run={runs['full']}", "evaluation.samples_per_prompt=3", "evaluation.temperature=0.5", "seed=4")
    assert found["evaluation"]["samples_per_prompt"] == 3
    assert found["evaluation"]["max_new_tokens"] == 4
    assert found["samples"]["kl"] is None  # of the sampled policy at temperature 1 only
    assert found["seed"] == 4


# ---------------------------------------------------------------- other models


def test_a_plain_model_says_what_needs_no_reference(runs, ask, tmp_path, capsys):
    """Its log-probs are those of the same weights in the run that they come from."""
    rows = ["data=jsonl", f"data.test={pairs_file(tmp_path)}", *SMALL]
    run, found = ask(f"run={runs['full']}", *rows), ask(f"model.name={runs['full']}/model", *rows, out="plain")
    assert "held against nobody (reference=MODEL names one)" in capsys.readouterr().err
    own = {name for name, value in found["test"].items() if value is not None}
    assert own == {"accuracy_logp", "chosen_length", "rejected_length"}
    assert found["test"]["accuracy_logp"] == run["test"]["accuracy_logp"]
    assert (found["reference"], found["samples"]["kl"], found["samples_reference"]) == (None, None, None)
    assert found["samples"]["length"] > 0
    answers = lines(tmp_path / "plain/samples.jsonl")
    assert all(row["greedy"] and row["base_sampled"] is None for row in answers)
    held = ask(f"model.name={runs['full']}/model", f"reference={runs.base}", *rows, out="held")
    assert held["test"]["accuracy_logratio"] == run["test"]["accuracy_logratio"]
    assert held["samples"]["kl"] == pytest.approx(run["samples"]["kl"], abs=1e-5)
    assert (held["test"]["accuracy"], held["test"]["loss"]) == (None, None)


def test_a_hugging_face_folder_with_a_template(runs, ask, tmp_path):
    """Text prompts are turns of its template, unless the data say otherwise."""
    folder = saved_model(tmp_path / "chats", seed=3)
    words = tokenizer(20)
    words.add_tokens(["user", "assistant", "<end>"], special_tokens=True)
    turns = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} <end> {% endfor %}"
    words.chat_template = turns + "{% if add_generation_prompt %}assistant {% endif %}"
    words.save_pretrained(folder)
    rows = ["data=jsonl", f"data.test={pairs_file(tmp_path)}", "evaluation.prompts=0"]
    chat = ask(f"model.name={folder}", *rows)
    plain = ask(f"model.name={folder}", *rows, "data.prompts=text", out="text")
    same = ask(f"model.name={folder}", *rows, "data.prompts=chat", out="chat")
    assert chat["tokens_hash"] == same["tokens_hash"] != plain["tokens_hash"]


def test_rewardbench_is_read_as_it_is(runs, ask, tmp_path, capsys):
    """By subset, and its sections as they weigh them; the numbers again from the rows that are written."""
    found = ask(f"model.name={runs['judge']}/model", "data=jsonl", f"data.test={benchmark_file(tmp_path)}")
    said = capsys.readouterr()
    assert "read as pairs with a prompt (RewardBench)" in said.err
    assert "RewardBench, accuracy, own reward: Chat " in said.out
    rows = lines(tmp_path / "out/test.jsonl")
    assert {row["slice"] for row in rows} == set(SUBSETS)
    by_hand = {}
    for subset, measures in found["slices"].items():
        part = [row for row in rows if row["slice"] == subset]
        by_hand[subset] = accuracy(part, lambda row: row["reward"])
        assert measures["accuracy"] == pytest.approx(by_hand[subset])
        assert measures["rows"] == len(part) / 2
    assert found["test"]["accuracy"] == pytest.approx(accuracy(rows, lambda row: row["reward"]))
    assert len(set(by_hand.values())) > 1
    assert found["sections"] == {"accuracy": pytest.approx(section_scores(by_hand))}
    assert set(found["sections"]["accuracy"]) == {"Chat", "Reasoning"}
    assert found["samples"] is None


def test_a_run_on_rewardbench_has_sections_by_every_accuracy(runs, ask, tmp_path):
    found = ask(f"run={runs['lora']}", "data=jsonl", f"data.test={benchmark_file(tmp_path)}", "evaluation.prompts=0")
    assert set(found["sections"]) == {"accuracy", "accuracy_logratio", "accuracy_logp"}
    assert ask(f"run={runs['lora']}", out="own")["sections"] is None


# ---------------------------------------------------------------- what is there afterwards


def test_an_evaluation_is_no_run(runs, ask, tmp_path):
    ask(f"run={runs['judge']}", out="runs/evaluation")
    shutil.copytree(runs["judge"], tmp_path / "runs/run")
    found = read_runs([tmp_path / "runs"])
    assert [run.path.name for run in found.runs] == ["run"]
    assert found.left_out == [f"{tmp_path / 'runs/evaluation'}: evaluated, not finished"]


def test_a_failure_leaves_nothing(runs, tmp_path, monkeypatch, capsys):
    def fail(*arguments, **options):
        raise OSError("no space")

    monkeypatch.setattr("prefopt.jobs.evaluate.write_json", fail)
    arguments = [f"run={runs['judge']}", f"out={tmp_path / 'deep/out'}", f"cache_dir={tmp_path / 'cache'}"]
    monkeypatch.setattr(sys, "argv", ["prefopt.evaluate", *arguments, "device=cpu"])
    assert evaluate.main() == FAILED
    assert "the evaluation failed, nothing is left: OSError: no space" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_nothing_either(runs, tmp_path, monkeypatch, number):
    """In the middle of the held-out rows, where Lightning would end with 0 on the one and with 1 on the other."""
    before = {asked: signal.getsignal(asked) for asked in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin without
    monkeypatch.setattr(PreferenceModule, "validation_step", lambda *_: os.kill(os.getpid(), number))
    arguments = [f"run={runs['judge']}", f"out={tmp_path / 'deep/out'}", f"cache_dir={tmp_path / 'cache'}"]
    monkeypatch.setattr(sys, "argv", ["prefopt.evaluate", *arguments, "device=cpu"])
    try:
        assert evaluate.main() == INTERRUPTED
        after = {asked: signal.getsignal(asked) for asked in before}
        assert after == {**before, signal.SIGINT: signal.default_int_handler}
    finally:
        for asked, handler in before.items():
            signal.signal(asked, handler)
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_a_run_that_stands_on_something_else_is_refused(runs, tmp_path, monkeypatch):
    """Its rows changed; its base moved, changed or gone. A reference by name needs no base of a whole run."""
    monkeypatch.chdir(tmp_path)
    run = shutil.copytree(runs["full"], tmp_path / "run")
    for name, content in (("base_hash", "what it started from is not there any more: its weights were 0000"),):
        summary = json.loads((run / "summary.json").read_text())
        (run / "summary.json").write_text(json.dumps({**summary, name: "0" * 64}))
        assert content in refused(run)
        (run / "summary.json").write_text(json.dumps({**summary, "tokens_hash": "0" * 64}))
        assert "its rows are others by now: tokens_hash was 000000000000 and is" in refused(run)
    config = json.loads((run / "config.json").read_text())
    config["model"]["name"] = str(tmp_path / "gone")
    (run / "config.json").write_text(json.dumps(config))
    (run / "summary.json").write_text(json.dumps(summary))
    assert "what it started from is not there any more: model.name=" in refused(run)
    assert evaluated(run, f"reference={runs.base}") == OK


def test_a_moved_base_is_named(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run, base = shutil.copytree(runs["lora"], tmp_path / "run"), shutil.copytree(runs.base, tmp_path / "base")
    adapter = run / "model/adapter_config.json"
    adapter.write_text(adapter.read_text().replace(runs.base, str(tmp_path / "gone")))
    assert "base=FOLDER names where it lies now" in refused(run)
    assert evaluated(run, f"base={base}") == OK


def settings_of(run: Path, *overrides: str):
    from hydra import compose, initialize_config_dir

    from prefopt.config import config_dir

    with initialize_config_dir(config_dir(), version_base="1.3"):
        return compose("evaluate", [f"run={run}", "cache_dir=cache", "device=cpu", *overrides])


def evaluated(run: Path, *overrides: str) -> int:
    return evaluate.task(settings_of(run, *overrides))


def refused(run: Path) -> str:
    with pytest.raises(RequestError) as error:
        evaluated(run)
    assert not Path("evaluations").exists()
    return str(error.value)


# ---------------------------------------------------------------- wrong requests

ROWS = ["data=jsonl", "data.test=PAIRS"]
WRONG_EVALUATIONS = [
    ([], "run or model.name must be given, and only one"),
    (["run=RUN", "model.name=BASE"], "run or model.name must be given, and only one"),
    (["run=RUNN"], "no run there: no summary.json; did you mean 'run'?"),
    (["model.name=BASEE", *ROWS], "no such folder; did you mean 'base'?"),
    (["model.name=BASE"], "data must be given with model.name, e.g. data=jsonl data.test=pairs.jsonl"),
    (["model.name=BASE", "base=BASE", *ROWS], "base must be left out with model.name"),
    (["run=RUN", "base=BASE"], "holds whole weights and needs no base"),
    (["run=JUDGE", "base=BASE"], "holds whole weights and needs no base"),
    (["run=JUDGE", *ROWS, "data.soft=sotf"], "data.soft must be one of weight, target"),
    (["run=RUN", "data=jsonl"], "data.test must be a file of pairs or labels, e.g. data.test=pairs.jsonl"),
    (["run=RUN", "data=jsnol", "data.test=PAIRS"], "data=jsnol: no such option; did you mean 'jsonl'?"),
    (
        ["run=RUN", "data.test=PAIRS"],
        "data.test: data is null; choose it first, e.g. data=jsonl",
        "accepted: controlled, hh",
    ),
    (["run=RUN", *ROWS, "data.train=PAIRS"], "data.train must be left out: data.test is what is evaluated"),
    (["run=RUN", *ROWS, "data.tset=PAIRS"], "data.tset: no such key; did you mean 'test'?"),
    (["run=RUN", "data=jsonl", "data.test=PAIR"], "no such file; did you mean 'pairs.jsonl'?"),
    (["run=RUN", "data=hub", "data.test=test"], "data.name must be a data set of the hub"),
    (["run=RUN", *ROWS, "data.max_length=2"], "no test row is left of 24: 24 too long"),
    (["run=RUN", *ROWS, "data.prompts=chat"], "data.prompts=chat: ", "has no chat template; take data.prompts=text"),
    (["run=RUN", "reference=BASEE"], "reference=", "no such folder; did you mean 'base'?"),
    (["run=RUN", "reference=LARGE"], "reference=", "another vocabulary (20 tokens, 20 of them as in the policy's 23)"),
    (["run=JUDGE", "reference=BASE"], "a reward model has no log-probs to hold against it"),
    (["run=RUN", "evaluation.prompts=-1"], "evaluation.prompts must be at least 0"),
    (["run=RUN", "evaluation.promts=1"], "evaluation.promts: no such key; did you mean 'prompts'?"),
    (["run=RUN", "evaluation.temperature=0"], "evaluation.temperature must be above 0"),
    (["run=RUN", "evaluation.batch_size=0"], "evaluation.batch_size must be at least 1"),
    (["run=RUN", "out=BASE"], "holds files already; name a new or empty folder"),
    (["run=RUN", "out=PAIRS"], "is a file; name a folder"),
    (["run=RUN", "device=cudda"], "device must be one of auto, cpu, cuda; got 'cudda'; did you mean 'cuda'?"),
    (["run=RUN", "model.dtype=float23"], "did you mean 'float32'?"),
    (["run=RUN", "loss=dpo"], "loss: no such key"),
    (["model=hf", "model.name=BASE", *ROWS], "model: no options of it here, only keys", "accepted: model.name, model."),
    (["run=RUN", "refrence=BASE"], "refrence: no such key; did you mean 'reference'?"),
    (["run=RUN", "+typo=1"], "typo: no such key"),
]


@pytest.mark.parametrize(("arguments", "said"), [(row[0], row[1:]) for row in WRONG_EVALUATIONS], ids=str)
def test_a_wrong_request_is_answered_in_two_lines(runs, tmp_path, monkeypatch, capsys, arguments, said):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    rows = str(pairs_file(tmp_path))
    places = {"RUN": str(runs["full"]), "RUNN": f"{runs['full']}n", "BASE": runs.base, "BASEE": f"{runs.base}e"}
    places |= {"PAIRS": rows, "PAIR": rows.replace("pairs.", "pars."), "JUDGE": str(runs["judge"])}
    if "reference=LARGE" in arguments:
        places["LARGE"] = saved_model(tmp_path / "small", size=20)
    given = [f"{key}={places.get(value, value)}" for key, _, value in (a.partition("=") for a in arguments)]
    monkeypatch.setattr(sys, "argv", ["prefopt.evaluate", *given, f"cache_dir={tmp_path / 'cache'}"])
    capsys.readouterr()  # of the training
    assert evaluate.main() == WRONG
    error = capsys.readouterr().err
    told = [line for line in error.strip().splitlines() if not line.startswith(("data.test: ", "test rows: "))]
    assert len(told) <= 2, error
    assert "Traceback" not in error
    for part in said:
        assert part in error
    assert not list((tmp_path / "here").iterdir())
