"""prefopt compare --reward: what a reward model says of the runs' answers."""

from __future__ import annotations

import csv
import json
import math
import sys
from pathlib import Path

import pytest

from prefopt import compare
from prefopt.errors import FAILED, OK, WRONG
from prefopt.jobs import judging
from prefopt.reports.compare.differences import differences, unit_values, win_rates
from prefopt.reports.compare.measures import base_value, run_values
from prefopt.reports.compare.runs import read_runs
from prefopt.reports.compare.settings import group
from tests.reports.fake import DEFAULTS, write_run

UNREAD = "<mark>"
UNKNOWN = {"samples": {"kl": 0.5, "kl_stderr": 0.1, "length": 10.0}, "samples_reference": {"length": 10.0}}


def by_length(judge: object, prompt: str, texts: list[str], source: str) -> list[float]:
    """The longer the better; asked once for a text."""
    assert len(set(texts)) == len(texts)
    return [math.nan if text == UNREAD else float(len(text)) for text in texts]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the judges that were opened."""
    found: list[str] = []
    monkeypatch.setattr(judging, "open_judge", lambda name, key: found.append(name))
    monkeypatch.setattr(judging, "judged", by_length)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(compare, "check_local", lambda name, key: None)
    return found


def say(run: Path, own: list[list[str]], base: list[list[str]]) -> None:
    """Other answers in a run's samples.jsonl, of whose true worth nothing is known."""
    rows = [
        {"prompt": f"prompt {i}?", "greedy": "g", "sampled": mine, "gold": None}
        | {"base_greedy": "g", "base_sampled": its, "base_gold": None}
        for i, (mine, its) in enumerate(zip(own, base, strict=True))
    ]
    (run / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_judged_answers_by_hand(tmp_path: Path, asked: list[str]):
    """Lengths 1, 4 | 2, 2 against 1, 1 | 3, unread, which is as bad as 1: a tie, a win, a loss, a win."""
    run = write_run(tmp_path / "dpo", summary=UNKNOWN)
    say(run, [["a", "abcd"], ["ab", "ba"]], [["x", "y"], ["xyz", UNREAD]])
    (found,), told = judging.judge_runs(read_runs([tmp_path]).runs, "judge")
    assert told.startswith("Reward model: judge. 1 of 8 different answers it cannot read")
    assert asked == ["judge"]
    assert (found.judged.own, found.judged.base) == ([[1, 4], [2, 2]], [[1, 1], [3, 1]])
    values = run_values(found)
    assert values["judged_reward"] == (2.5 + 2) / 2
    assert values["judged_reward_stderr"] == pytest.approx(0.25)  # of 2.5 and 2
    assert values["win_rate_vs_reference"] == (0.5 + 1 + 0 + 1) / 4
    assert values["gold_reward"] is None
    assert base_value(found, "judged_reward") == (1 + 2) / 2
    assert run_values(read_runs([tmp_path]).runs[0])["win_rate_vs_reference"] is None  # nobody judged


def test_the_true_reward_goes_before(tmp_path: Path, asked: list[str]):
    """Wins are by gold where it is known (0.6 in the summary), and both are held up for differences."""
    for seed in (0, 1):
        write_run(tmp_path / f"dpo{seed}", seed=seed, text="longer")
        write_run(tmp_path / f"ipo{seed}", seed=seed, loss="ipo")
    runs, told = judging.judge_runs(read_runs([tmp_path]).runs, "judge")
    assert told == "Reward model: judge."
    assert {run_values(run)["win_rate_vs_reference"] for run in runs} == {0.6}
    assert runs[0].worth is runs[0].gold
    methods = group(runs, DEFAULTS)
    assert unit_values(methods[0].best, "judged_reward").tolist() == [[6, 6], [6, 6]]
    measured = [d.measure for d in differences(methods)]
    assert measured == ["accuracy_logratio", "gold_reward", "judged_reward"]
    assert differences(methods)[2].mean == 2  # "longer" less "fine"


def test_methods_meet_by_the_judge_where_nothing_else_tells(tmp_path: Path, asked: list[str]):
    """abc and a against ab and ab: two of the four meetings are won."""
    for loss, texts in (("dpo", ["abc", "a"]), ("ipo", ["ab", "ba"])):
        say(write_run(tmp_path / loss, loss=loss, summary=UNKNOWN), [texts, texts], [["x", "x"], ["x", "x"]])
    runs = read_runs([tmp_path]).runs
    assert win_rates(group(runs, DEFAULTS)) == []
    assert win_rates(group(judging.judge_runs(runs, "judge")[0], DEFAULTS)) == [[None, 0.5], [0.5, None]]


def test_gold_that_one_method_lacks_is_not_mixed_with_the_judge(tmp_path: Path, asked: list[str]):
    """dpo's gold would win all; to the judge, who sees all answers, "fine" and "fine" are a tie."""
    write_run(tmp_path / "dpo")
    say(write_run(tmp_path / "ipo", loss="ipo", summary=UNKNOWN), [["fine"] * 2] * 2, [["x", "x"]] * 2)
    runs, _ = judging.judge_runs(read_runs([tmp_path]).runs, "judge")
    assert win_rates(group(runs, DEFAULTS)) == [[None, 0.5], [0.5, None]]


def ask(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["compare", *map(str, arguments), "--reward", "judge"])
    return compare.main()


def test_what_is_written(tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch, capsys):
    for loss in ("dpo", "ipo"):
        say(write_run(tmp_path / "runs" / loss, loss=loss, summary=UNKNOWN), [["abc"], ["a"]], [["x"], ["x"]])
    assert ask(monkeypatch, tmp_path / "runs", "--out", tmp_path / "out") == OK
    page, text = ((tmp_path / "out" / name).read_text() for name in ("index.html", "results.md"))
    rows = list(csv.DictReader((tmp_path / "out/results.csv").open()))
    assert [float(row["judged_reward"]) for row in rows if not row["slice"]] == [2, 2]
    for written in (page, text):
        assert "Reward model: judge." in written
    assert "Reward model against KL" in page
    capsys.readouterr()


def test_no_answers_and_none_that_can_be_read_are_refused(tmp_path, asked, monkeypatch, capsys):
    run = write_run(tmp_path / "runs/dpo")
    say(run, [[UNREAD], [UNREAD]], [[UNREAD], [UNREAD]])
    assert ask(monkeypatch, tmp_path / "runs", "--out", tmp_path / "out") == WRONG
    assert "--reward=judge can read none of the answers" in capsys.readouterr().err
    (run / "samples.jsonl").unlink()
    asked.clear()
    assert ask(monkeypatch, tmp_path / "runs", "--out", tmp_path / "out") == WRONG
    assert "none of these runs has sampled answers" in capsys.readouterr().err
    assert asked == []  # nothing was loaded for that
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), IndexError("out of range")])
def test_a_judge_that_breaks_is_one_line(tmp_path, asked, monkeypatch, capsys, error):
    def broken(*_: object) -> list[float]:
        raise error

    monkeypatch.setattr(judging, "judged", broken)
    write_run(tmp_path / "runs/dpo")
    assert ask(monkeypatch, tmp_path / "runs", "--out", tmp_path / "out") == FAILED
    assert capsys.readouterr().err.strip().endswith(f"failed: {type(error).__name__}: {error}")


def test_a_name_is_checked_at_once(tmp_path, monkeypatch, capsys):
    """Before anything heavy is imported: the typo of a folder, and a run that trained no reward model."""
    monkeypatch.delitem(sys.modules, "prefopt.jobs.judging", raising=False)
    run = write_run(tmp_path / "runs/dpo")
    (run / "model").mkdir()
    for name, said in ((run, "this run trained loss=dpo"), (tmp_path / "runs/dpoo", "no such folder")):
        monkeypatch.setattr(sys, "argv", ["compare", str(run), "--out", str(tmp_path / "out"), "--reward", str(name)])
        assert compare.main() == WRONG
        assert said in capsys.readouterr().err
    assert "prefopt.jobs.judging" not in sys.modules


def test_a_run_without_answers_stands_beside_those_that_have_some(tmp_path: Path, asked: list[str]):
    (write_run(tmp_path / "a") / "samples.jsonl").unlink()
    write_run(tmp_path / "b", loss="ipo")
    (first, second), _ = judging.judge_runs(read_runs([tmp_path]).runs, "judge")
    assert first.judged is None
    assert (second.judged.own, second.judged.base) == ([[4, 4], [4, 4]], [[2, 2], [2, 2]])
