"""What no folder tells: home folders, tokens, passwords. And that text on the console stays text."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from rich.console import Console

from prefopt import compare, progress
from prefopt.errors import OK, WRONG, RequestError, first_line, refuse
from prefopt.reports import terminal
from prefopt.run import RunFolder, check_run_folder
from prefopt.scrub import scrubbed
from prefopt.sweep.ledger import Job, Ledger
from prefopt.sweep.processes import _last_line, _scrub
from tests.reports.fake import write_run

LETTERS = "aB3dE6gH9jK2mN5pQ8sT1vW4"
TEXTS = {  # HOME is /home/ada
    "/home/ada": "~",
    "/home/ada/x.jsonl": "~/x.jsonl",
    "data.train=/home/ada/x.jsonl": "data.train=~/x.jsonl",
    "'data.train=/home/ada/a b' run_dir=/home/ada/r": "'data.train=~/a b' run_dir=~/r",
    "in [/home/ada/a,/home/ada/b] and /home/ada.": "in [~/a,~/b] and ~.",
    "file:///home/ada/x": "file://~/x",
    "/home/adam/x /home/ada.old/x /mnt/home/ada/x": "/home/adam/x /home/ada.old/x /mnt/home/ada/x",
    f"hf_{LETTERS} ghp_{LETTERS},github_pat_{LETTERS}": "*** ***,***",
    f"glpat-{LETTERS} sk-{LETTERS} sk-proj-{LETTERS}-x xoxb-{LETTERS}": "*** *** *** ***",
    "AKIAIOSFODNN7EXAMPLE": "***",
    "model=hf_lora sk-learn-preferences-of-many-people": "model=hf_lora sk-learn-preferences-of-many-people",
    "https://ada:secret@host/x?token=abc&n=1": "https://***@host/x?token=***&n=1",
    "s3://key@bucket": "s3://***@bucket",
    "+a.api_key=abc +a.hf_token='a b' password=x WANDB_API_KEY=y": (
        "+a.api_key=*** +a.hf_token='*** b' password=*** WANDB_API_KEY=***"
    ),
    "evaluation.max_new_tokens=4 pad_token=<pad> the token is": (
        "evaluation.max_new_tokens=4 pad_token=<pad> the token is"
    ),
    "a0123456789abcdef0 true": "*** true",  # what two variables of the environment hold
}


@pytest.fixture
def ada(monkeypatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setenv("MY_HF_TOKEN", "a0123456789abcdef0")
    monkeypatch.setenv("SHORT_API_KEY", "true")


@pytest.mark.parametrize(("text", "expected"), TEXTS.items())
def test_texts(ada, text, expected):
    assert scrubbed(text) == expected
    assert scrubbed(expected) == expected


def test_all_that_json_holds(ada):
    asked = {"a": ["/home/ada/x", 1, None, {"b": "/home/ada"}], "api_key": "short", "token": 3, "seed": 0.5}
    held = {"a": ["~/x", 1, None, {"b": "~"}], "api_key": "***", "token": 3, "seed": 0.5}
    assert scrubbed(asked) == held


@pytest.mark.parametrize("home", ["/", ""])
def test_a_home_that_is_no_folder_of_anybodys(monkeypatch, home):
    monkeypatch.setenv("HOME", home)
    assert scrubbed("data.train=/data/x / y") == "data.train=/data/x / y"


def test_a_home_behind_a_link(tmp_path, monkeypatch):
    """Either name of it."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.setenv("HOME", str(tmp_path / "link"))
    assert scrubbed(f"{tmp_path}/real/x {tmp_path}/link/x") == "~/x ~/x"


# ---------------------------------------------------------------- folders


def test_a_run_folder_is_the_same_runs_by_either_name(ada, tmp_path, monkeypatch):
    """What it holds is scrubbed, also where an earlier version wrote it; another request is another."""
    plain = {"data": {"train": "/home/ada/x"}, "loss": {"beta": 0.1}, "seed": 0, "run_dir": "r"}
    monkeypatch.setattr(sys, "argv", ["prefopt.train", "data.train=/home/ada/x", f"+x.token={LETTERS}"])
    run = tmp_path / "run"
    with RunFolder(str(run), plain) as folder:
        folder.save(error=f"no /home/ada/x for hf_{LETTERS}")
    for file in ("config.json", "config.yaml", "summary.json"):
        assert "/home/ada" not in (run / file).read_text()
        assert LETTERS not in (run / file).read_text()
    assert json.loads((run / "summary.json").read_text())["error"] == "no ~/x for ***"
    for held in ("~/x", "/home/ada/x"):
        content = {"data": {"train": held}, "loss": {"beta": 0.1}, "seed": 0}
        (run / "config.json").write_text(json.dumps(content))
        check_run_folder(str(run), plain)
        check_run_folder(str(run), {**plain, "data": {"train": "~/x"}})
        with pytest.raises(RequestError, match=r"data\.train is '~/x' there and '~/y' here"):
            check_run_folder(str(run), {**plain, "data": {"train": "/home/ada/y"}})


def test_a_sweep_keeps_its_words_for_itself(ada, tmp_path):
    """A job that goes on does so by the words that are given now, not by those that are written down."""
    words = ["data.train=/home/ada/x", f"+x.token={LETTERS}"]
    with Ledger(tmp_path) as ledger:
        (job,) = ledger.add([Job.of(words, words, {"seed": 0}, 1)])
        assert job.name.startswith("trainx-token-")
    for _ in range(2):
        assert (tmp_path / "sweep.json").read_text().count("data.train=~/x") == 1
        assert LETTERS not in (tmp_path / "sweep.json").read_text()
        with Ledger(tmp_path) as ledger:
            assert ledger.add([Job.of(words, words, {"seed": 0}, 1)])[0].overrides == words
    log = tmp_path / "a.log"
    log.write_bytes(f"in /home/ada/x\nhf_{LETTERS}\x1b[2J\xff\n".encode("latin-1"))
    _scrub(log)
    assert log.read_text() == "in ~/x\n***\x1b[2J\N{REPLACEMENT CHARACTER}\n"


# ---------------------------------------------------------------- the console

EVIL, TAME = "a\x1b[2Jb\u202e[/b]:x:", "a\\x1b[2Jb\\u202e[/b]:x:"


def test_what_is_said_steers_no_terminal(tmp_path, capsys, monkeypatch):
    said = io.StringIO()
    monkeypatch.setattr(progress, "console", Console(file=said, soft_wrap=True, emoji=progress.console._emoji))
    (tmp_path / "log").write_text(f"first\n{EVIL}\n")
    progress.say(f"failed: {_last_line(tmp_path / 'log')}\nsecond")
    assert said.getvalue() == f"failed: {TAME}\nsecond\n"
    assert refuse(f"{EVIL}\n{EVIL}\nthird") == WRONG
    assert capsys.readouterr().err == f"{TAME}\n{TAME}\n"
    assert first_line(ValueError(f"\n {EVIL}\nx")) == TAME


def test_a_comparison_says_what_foreign_folders_say_as_text(tmp_path, capsys, monkeypatch):
    """On the console and in results.md: names of methods and slices, how a run ended."""
    for seed in (0, 1):
        write_run(tmp_path / f"runs/a{seed}", seed=seed, summary={"loss": EVIL}, gaps=[2.0, 3.0] * 40)
        write_run(tmp_path / f"runs/b{seed}", seed=seed, loss="ipo", gaps=[-2.0, -3.0] * 40)
    write_run(tmp_path / "runs/c", summary={"status": EVIL})
    monkeypatch.setattr(sys, "argv", ["prefopt.compare", str(tmp_path / "runs"), "--out", str(tmp_path / "out")])
    assert compare.main() == OK
    said = capsys.readouterr().out
    for line in (f"c: {TAME}, not finished", f"difference  {TAME}"):
        assert line in said
    for text in (said, (tmp_path / "out/results.md").read_text()):
        assert TAME in text
        assert "\x1b" not in text
        assert "\u202e" not in text
    monkeypatch.setattr(sys, "argv", ["prefopt.compare", str(tmp_path / "runs/c"), "--out", str(tmp_path / "out")])
    assert compare.main() == WRONG
    assert f"c: {TAME}, not finished" in capsys.readouterr().err


def test_the_end_of_a_run_is_told_whatever_its_folder_is_called(capsys):
    measures = dict.fromkeys(key for _, key, _ in terminal.ROWS)
    told = {"loss": EVIL, "steps": 1, "pairs_per_second": None, "examples": 1, "train_seconds": 1.0, "test": measures}
    told |= dict.fromkeys(("test_reference", "samples", "samples_reference", "world", "rollouts"))
    terminal.print_summary(Path(EVIL), {**told, "health": [{"action": "warn", "step": 1, "sentence": "[/b]"}]})
    said = capsys.readouterr().out
    assert f"run folder  {TAME}   (" in said
    assert f"model       {TAME}/model" in said
    assert f"{TAME}, 1 steps" in said
    slices = {EVIL: {"rows": 1, **measures}}
    evaluated = {**told, "model": EVIL, "rows": 1, "slices": slices, "sections": None}
    terminal.print_evaluation(Path(EVIL), evaluated)
    assert f"evaluation  {TAME}   (" in capsys.readouterr().out
