"""prefopt compare: what is read, refused, computed and shown, on run folders written by hand."""

from __future__ import annotations

import csv
import json
import os
import re
import resource
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from plotly import graph_objects
from plotly.offline import get_plotlyjs

from prefopt import compare
from prefopt.errors import INTERRUPTED, OK, WRONG, RequestError
from prefopt.files import write_lines
from prefopt.reports.compare.differences import unit_values, win_rates
from prefopt.reports.compare.drawing import plotly_traces
from prefopt.reports.compare.measures import run_values
from prefopt.reports.compare.report import Report, build
from prefopt.reports.compare.runs import read_runs
from prefopt.reports.compare.same import check_comparable
from prefopt.reports.compare.settings import group
from tests.reports.fake import DEFAULTS, write_run

ROOT = Path(__file__).parents[2]


def report(*folders: Path) -> Report:
    found = read_runs(folders)
    check_comparable(found.runs)
    return build(found, DEFAULTS)


def ask(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["compare", *map(str, arguments)])
    return compare.main()


# ---------------------------------------------------------------- reading and refusing


def test_runs_are_found_below_and_unfinished_ones_are_named(tmp_path: Path):
    write_run(tmp_path / "sweep/0")
    (tmp_path / "sweep/0/model").mkdir()
    (tmp_path / "sweep/0/model/config.json").write_text("{}")
    write_run(tmp_path / "sweep/1", seed=1, summary={"status": "failed"})
    write_run(tmp_path / "again")  # the same request
    (tmp_path / "killed").mkdir()
    for name in ("config.json", ".lock"):
        (tmp_path / "killed" / name).touch()
    found = read_runs([tmp_path / "sweep", tmp_path])
    assert [run.path.name for run in found.runs] == ["0"]
    left_out = sorted(sentence.partition(": ")[2] for sentence in found.left_out)
    same = f"the same request as {tmp_path / 'sweep/0'}"
    assert left_out == ["failed, not finished", "interrupted before its first summary", same]


def test_folders_without_runs_are_refused(tmp_path: Path):
    write_run(tmp_path / "run", summary={"status": "interrupted"})
    (tmp_path / "empty").mkdir()
    for folder, said in (("rum", "did you mean 'run'?"), ("empty", "no run there"), ("run", "no finished run")):
        with pytest.raises(RequestError, match=re.escape(said)):
            read_runs([tmp_path / folder])


@pytest.mark.parametrize(
    ("doctored", "said"),
    [
        ({"summary": {"data_hash": "e" * 64}}, "data_hash"),
        ({"summary": {"base_hash": "e" * 64}}, "base_hash"),
        ({"summary": {"tokens_hash": "e" * 64}}, "tokens_hash"),
        ({"summary": {"comparable_hash": "other"}}, 'comparable_hash is "other"'),
        ({"summary": {"row_order_hash": "other"}}, "row_order_hash"),
        ({"steps": 19}, "steps is 19"),
        ({"config": {"data": {"batch_size": 8, "batch_tokens": None, "max_length": 64}}}, "data.batch_size is 8"),
        ({"config": {"evaluation": {"batch_size": 1, "prompts": 3, "temperature": 1.0}}}, "evaluation.prompts is 3"),
        ({"gaps": [1.0, 2.0]}, "the rows of val.jsonl"),
    ],
)
def test_a_doctored_run_is_refused_by_the_key(tmp_path, monkeypatch, capsys, doctored, said):
    for seed in (0, 1):
        write_run(tmp_path / f"runs/dpo{seed}", seed=seed)
    write_run(tmp_path / "runs/odd", loss="ipo", **doctored)
    assert ask(monkeypatch, tmp_path / "runs", "--out", tmp_path / "report") == WRONG
    error = capsys.readouterr().err
    assert said in error
    assert str(tmp_path / "runs/odd") in error
    assert str(tmp_path / "runs/dpo0") in error
    assert len(error.strip().splitlines()) <= 2
    assert not (tmp_path / "report").exists()


def test_other_prompts_are_refused(tmp_path: Path):
    write_run(tmp_path / "a")
    odd = write_run(tmp_path / "b", loss="ipo")
    rows = (odd / "samples.jsonl").read_text()
    (odd / "samples.jsonl").write_text(rows.replace("prompt 1?", "prompt 9?"))
    with pytest.raises(RequestError, match=r"the prompts of samples\.jsonl"):
        report(tmp_path)


@pytest.mark.parametrize("name", ["summary.json", "config.json", "val.jsonl", "samples.jsonl", "metrics.csv"])
def test_a_broken_file_is_named(tmp_path: Path, name: str):
    run = write_run(tmp_path / "a")
    (run / name).write_bytes((run / name).read_bytes()[:-30] + b'{"\xff')
    with pytest.raises(RequestError, match=re.escape(f"its {name} cannot be read")):
        report(tmp_path)


def test_separators_in_an_answer_end_no_row(tmp_path: Path):
    """As a model writes them, and a run leaves them."""
    run = write_run(tmp_path / "run", text="a\u2028b\u2029c\x85d\x1ce")
    rows = [json.loads(line) for line in (run / "samples.jsonl").read_text().split("\n") if line]
    write_lines(run / "samples.jsonl", rows)
    assert "\u2028" in (run / "samples.jsonl").read_text("utf-8")
    (found,) = read_runs([run]).runs
    assert found.samples == rows


def test_what_changes_no_result_is_no_other_setting(tmp_path: Path):
    write_run(tmp_path / "a")
    data = {"batch_size": 16, "batch_tokens": None, "max_length": 64, "micro_batch_size": 4}
    evaluation = {"batch_size": 1, "prompts": 2, "temperature": 1.0}
    write_run(tmp_path / "b", seed=1, config={"data": data, "evaluation": evaluation})
    write_run(tmp_path / "c", seed=1)
    found = report(tmp_path)
    assert [line.setting.seeds for line in found.lines] == [(0, 1)]
    assert found.left_out == [f"{tmp_path / 'c'}: the same request as {tmp_path / 'b'}"]


# ---------------------------------------------------------------- settings and measures


def test_default_and_best_of_a_grid(tmp_path: Path):
    """β = 0.1 is the default; on val β = 0.5 has 4/4 right, twice."""
    for beta, gaps in ((0.1, [1, 1, 1, -1]), (0.5, [1, 1, 1, 1]), (2.0, [-1, -1, -1, 1])):
        for seed in (0, 1):
            write_run(tmp_path / f"{beta}-{seed}", beta=beta, seed=seed, gaps=gaps)
    write_run(tmp_path / "ipo", loss="ipo", beta=0.3)
    found = report(tmp_path)
    dpo, ipo = found.methods
    assert [setting.label for setting in dpo.settings] == ["beta=0.1", "beta=0.5", "beta=2"]
    assert (dpo.default.label, dpo.best.label, dpo.chosen_by) == ("beta=0.1", "beta=0.5", "accuracy_logratio")
    assert (ipo.default, ipo.best.label) == (None, "beta=0.3")
    assert [line.choice for line in found.shown] == ["default", "best of 3", "only setting"]
    notes = " ".join(found.notes)
    assert "Unequal trials (dpo 3, ipo 1 settings)" in notes
    assert "No run of the default setting: ipo." in notes
    assert "the highest mean accuracy by log-ratio on val (dpo, ipo)" in notes
    assert "Unequal numbers of seeds per setting: 1 to 2." in notes


def test_the_default_is_the_most_usual_one_among_several(tmp_path: Path):
    write_run(tmp_path / "slow", config={"optimizer": {"lr": 1e-5}})
    write_run(tmp_path / "usual")
    write_run(tmp_path / "ipo", loss="ipo")
    dpo, _ = report(tmp_path).methods
    assert dpo.default.label == "beta=0.1, optimizer.lr=0.001"


def test_the_measures_of_a_run_by_hand(tmp_path: Path):
    """Rewards of chosen 1, -1, 2, 3 against 0 everywhere: three of four; AUC 12 of 16 comparisons."""
    write_run(tmp_path / "run")
    (run,) = read_runs([tmp_path]).runs
    values = run_values(run)
    assert values["auc"] == 0.75
    assert values["accuracy"] == 0.75
    assert values["gap"] == 0  # training ends at 0.75 too
    assert values["peak_memory"] == 300
    p = 1 / (1 + np.exp([-1.0, 1.0, -2.0, -3.0]))
    assert values["brier"] == pytest.approx(float(np.mean((1 - p) ** 2)))


def test_only_log_odds_are_calibrated_and_old_runs_say_they_do_not_know(tmp_path: Path):
    write_run(tmp_path / "ipo", loss="ipo")
    write_run(tmp_path / "old", summary={"reward_is_log_odds": None})
    found = report(tmp_path)
    dpo, ipo = found.lines
    assert ipo.values["ece"] is None
    assert dpo.values["ece"].mean > 0
    assert any("not every run says whether its reward is a log-odds" in note for note in found.notes)


def test_slices_by_hand(tmp_path: Path):
    """Slice a holds gaps 1 and 2, slice b -1 and 3."""
    write_run(tmp_path / "run")
    a, b = report(tmp_path).slices
    assert (a.part, a.values["accuracy"].mean, a.values["margin"].mean) == ("a", 1.0, 1.5)
    assert (b.part, b.values["accuracy"].mean, b.values["auc"].mean) == ("b", 0.5, 0.5)


def test_a_reward_model_without_log_probs_stands_beside_the_others(tmp_path: Path):
    write_run(tmp_path / "dpo")
    judge = write_run(tmp_path / "judge", loss="bradley_terry", gaps=[1.0, 1.0, 1.0, 1.0])
    rows = [json.loads(line) for line in (judge / "val.jsonl").read_text().splitlines()]
    (judge / "val.jsonl").write_text("".join(json.dumps({**r, "logp": None, "ref_logp": None}) + "\n" for r in rows))
    (judge / "samples.jsonl").unlink()
    summary = json.loads((judge / "summary.json").read_text())
    for split in ("val", "test"):
        summary[split] |= dict.fromkeys(("accuracy_logratio", "accuracy_logp"))
    (judge / "summary.json").write_text(json.dumps({**summary, "samples": None, "samples_reference": None}))
    found = report(tmp_path)
    (difference,) = found.differences
    assert difference.measure == "accuracy"
    assert [method.chosen_by for method in found.methods] == ["accuracy", "accuracy_logratio"]
    assert len(found.samples.prompts) == 2


# ---------------------------------------------------------------- differences


def test_a_clear_difference_is_shown_and_an_unclear_one_is_not(tmp_path: Path):
    """200 pairs: dpo orders 180 rightly and ipo 100; orders of the same number in other places show nothing."""
    good, bad = [1.0] * 180 + [-1.0] * 20, [1.0] * 100 + [-1.0] * 100
    for seed in (0, 1, 2):
        write_run(tmp_path / f"clear/dpo{seed}", seed=seed, gaps=good)
        write_run(tmp_path / f"clear/ipo{seed}", seed=seed, loss="ipo", gaps=bad)
        write_run(tmp_path / f"unclear/dpo{seed}", seed=seed, gaps=bad)
        write_run(tmp_path / f"unclear/ipo{seed}", seed=seed, loss="ipo", gaps=[*bad[:2], *bad[::-1][2:]])
    clear = next(d for d in report(tmp_path / "clear").differences if d.measure == "accuracy_logratio")
    assert clear.sentence == "dpo (beta=0.1) is above ipo (beta=0.1) in accuracy by log-ratio by 0.400"
    assert clear.roles == "default, best"
    # d is 1 on 80 of 200 pairs, else 0: sd √(0.4·0.6/200) = 0.0346
    assert (clear.low, clear.high) == pytest.approx((0.4 - 1.96 * 0.0346, 0.4 + 1.96 * 0.0346), abs=0.006)
    unclear = next(d for d in report(tmp_path / "unclear").differences if d.measure == "accuracy_logratio")
    expected = "no difference shown between dpo (beta=0.1) and ipo (beta=0.1) in accuracy by log-ratio"
    assert unclear.sentence == expected
    assert unclear.seeds == 3


def test_only_seeds_that_both_have_are_compared(tmp_path: Path):
    for seed, gaps in ((0, [1.0, 1.0]), (1, [-1.0, -1.0])):
        write_run(tmp_path / f"dpo{seed}", seed=seed, gaps=gaps)
    write_run(tmp_path / "ipo", seed=1, loss="ipo", gaps=[1.0, -1.0])
    difference = report(tmp_path).differences[0]
    assert (difference.seeds, difference.mean) == (1, -0.5)


def test_pairs_of_one_prompt_are_one_piece_of_news(tmp_path: Path):
    """Eight pairs that fall alike: eight coins would in 2 of 256 throws, those of two prompts in 2 of 4."""
    for loss, gap in (("dpo", 1.0), ("ipo", -1.0)):
        write_run(tmp_path / loss, loss=loss, gaps=[gap] * 8)
    assert report(tmp_path).differences[0].p == 2 / 2**8
    for file in tmp_path.glob("*/val.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        asked = [{**row, "prompt": int(row["row"].split(".")[0]) % 2} for row in rows]
        file.write_text("".join(json.dumps(row) + "\n" for row in asked))
    assert report(tmp_path).differences[0].p == 2 / 2**2


def test_a_loss_on_own_answers_is_a_method_of_its_own(tmp_path: Path):
    write_run(tmp_path / "recorded", config={"source": {"kind": "auto"}})
    write_run(tmp_path / "own", config={"source": {"kind": "rollouts"}})
    assert [method.name for method in group(read_runs([tmp_path]).runs, DEFAULTS)] == ["dpo", "online dpo"]


def test_units_are_paired_by_the_name_of_the_row_not_by_place(tmp_path: Path):
    run = write_run(tmp_path / "run")
    lines = (run / "val.jsonl").read_text().splitlines(keepends=True)
    (run / "val.jsonl").write_text("".join(lines[::-1]))
    (method,) = group(read_runs([run]).runs, DEFAULTS)
    assert unit_values(method.best, "accuracy").tolist() == [[1, 0, 1, 1]]


def test_test_rows_are_preferred_where_every_run_has_them(tmp_path: Path):
    write_run(tmp_path / "a", held_out="test.jsonl")
    assert read_runs([tmp_path]).runs[0].rows_file == "test.jsonl"
    write_run(tmp_path / "b", loss="ipo")
    assert read_runs([tmp_path]).runs[0].rows_file == "val.jsonl"


def test_win_rates_by_hand(tmp_path: Path):
    """dpo's gold is 0.75 ± i, ipo's 0.5 ± i: prompt 0 is won; of prompt 1's four meetings three are."""
    write_run(tmp_path / "dpo")
    write_run(tmp_path / "ipo", loss="ipo", gaps=[1.0, -1.0, 1.0, -1.0])
    wins = win_rates(group(read_runs([tmp_path]).runs, DEFAULTS))
    assert wins == [[None, pytest.approx(7 / 8)], [pytest.approx(1 / 8), None]]


# ---------------------------------------------------------------- health


def health(tmp_path: Path, **doctored: object) -> str:
    write_run(tmp_path / "run", **doctored)
    return " ".join(sentence for _, sentence in report(tmp_path).flags)


def test_a_healthy_run_has_no_flags(tmp_path: Path):
    assert health(tmp_path) == ""


def test_falling_log_probs_are_said(tmp_path: Path):
    deltas = {"chosen_logp_delta": -4.0, "rejected_logp_delta": -9.0, "accuracy": 0.7}
    assert "both log-probs fall: chosen by 4.0 nats, rejected by 9.0" in health(tmp_path, summary={"test": deltas})


def test_odd_answers_are_said(tmp_path: Path):
    samples = {"length": 20.0, "distinct_2": 0.2, "repetition": 0.4}
    said = health(tmp_path, summary={"samples": samples})
    assert "answers grow: 20.0 tokens, the base's have 10.0" in said
    assert "diversity collapses: distinct-2 is 0.200, the base's 0.500" in said
    assert "answers repeat themselves: 40% of trigrams, the base's 0%" in said


def test_what_the_guards_of_a_run_said(tmp_path: Path):
    alarms = [{"guard": "kl", "step": 7, "action": "warn", "sentence": "too far"}]
    assert health(tmp_path, summary={"health": alarms}) == "every seed, step 7: too far"


@pytest.mark.parametrize(
    ("norm", "rate", "why"),
    [
        (0.0, 0.001, "no gradient reaches the weights"),
        (1.0, 1e-6, "a learning rate of 1e-06 moves a weight by 5e-06 at most in 5 steps"),
        (1.0, 0.001, "the labels look like noise to it"),
    ],
)
def test_stuck_at_log_2_and_why(tmp_path: Path, norm: float, rate: float, why: str):
    run = write_run(tmp_path / "run", config={"optimizer": {"lr": rate}})
    rows = "".join(f"{i},{np.log(2)},{norm}\n" for i in range(5))
    (run / "metrics.csv").write_text(f"step,loss,grad_norm\n{rows}")
    ((_, said),) = report(tmp_path).flags
    assert said.startswith("every seed: stuck at log 2 (the loss ends at 0.6931)")
    assert why in said


def test_kl_paid_for_nothing_is_said(tmp_path: Path):
    for beta, worth in ((1.0, 0.9), (3.0, 0.4)):
        samples = {"kl": beta, "kl_stderr": 0.1, "gold_reward": worth, "gold_reward_stderr": 0.01}
        write_run(tmp_path / str(beta), beta=beta, summary={"samples": samples})
    said = [sentence for _, sentence in report(tmp_path).flags]
    expected = "KL rises and reward falls: dpo (beta=3) has 0.40 at 3.00 nats, dpo (beta=1) has 0.90 at 1.00"
    assert said == [expected]


# ---------------------------------------------------------------- what is written


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.outside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.outside += [v for k, v in attrs if k in ("src", "href") and v and not v.startswith("#")]


def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    assert ask(monkeypatch, tmp_path / "runs", "--out", tmp_path / "report") == OK
    return tmp_path / "report"


def test_the_frame_is_of_places_not_of_intervals(tmp_path: Path):
    """Two seeds at KL 0.1 with gold 0 and 1: an interval of ±6.4. β = 9 has gone astray, to a KL of 9."""
    for seed in (0, 1):
        measured = {"kl": 0.1, "kl_stderr": 0.01, "gold_reward": float(seed), "gold_reward_stderr": 0.01}
        write_run(tmp_path / f"dpo{seed}", seed=seed, summary={"samples": measured})
        write_run(tmp_path / f"astray{seed}", seed=seed, beta=9.0, gaps=[-1, -1, -1, -1])
    figure = report(tmp_path).figures[0]
    (points,) = [series for series in figure.series if series.style == "points"]
    assert (points.x, points.y) == ([0.1], [0.5])
    assert points.y_error[0] > 6
    x, y = figure.frame  # the base lies at 0, 0
    assert x == pytest.approx((-0.006, 0.106))
    assert y == pytest.approx((-0.03, 0.53))
    assert figure.outside == ["dpo (beta=9)"]
    assert figure.caption.endswith("Beyond the frame: dpo (beta=9).")
    assert next(f for f in report(tmp_path).figures if f.name == "learning_loss").frame is None


def test_what_runs_and_models_say_stays_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
    write_run(tmp_path / "runs/a", text=evil, config={"model": {"name": evil}})
    write_run(tmp_path / "runs/b", text=evil, config={"model": {"name": "tame"}})
    write_run(tmp_path / "runs/c", loss="ipo", summary={"loss": evil})
    out = written(tmp_path, monkeypatch)
    page = (out / "index.html").read_text("utf-8").replace(get_plotlyjs(), "")
    tags = Tags()
    tags.feed(page)
    assert "img" not in tags.seen
    assert tags.seen.count("script") == 2
    assert tags.outside == []
    assert "alert(1)" in page
    assert "<script>alert" not in (out / "results.md").read_text()


def test_the_tables_agree_with_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for seed, gaps in ((0, [1.0, 2.0, 3.0, -1.0]), (1, [1.0, 2.0, -3.0, -1.0])):
        write_run(tmp_path / f"runs/dpo{seed}", seed=seed, gaps=gaps)
        write_run(tmp_path / f"runs/ipo{seed}", seed=seed, loss="ipo")
    out = written(tmp_path, monkeypatch)
    page, text = ((out / name).read_text("utf-8") for name in ("index.html", "results.md"))
    rows = list(csv.DictReader((out / "results.csv").open()))
    assert [(row["method"], row["slice"]) for row in rows[:2]] == [("dpo", ""), ("ipo", "")]
    assert len(rows) == 2 + 2 * 2  # two slices
    assert float(rows[0]["accuracy"]) == pytest.approx((0.75 + 0.5) / 2)
    for row in rows:
        mean, low, high = (float(row[f"accuracy{end}"]) for end in ("", "_low", "_high"))
        assert f"| {mean:.3f} ({low:.3f} to {high:.3f}) |" in text
        assert f'<td class="number">{mean:.3f}<small>{low:.3f} to {high:.3f}</small></td>' in page
    for line in re.findall(r"^- (.*no difference shown.*)$", text, re.M):
        assert f"<li>{line}</li>" in page
    names = {"frontier", "learning_loss", "learning_accuracy", "logprobs", "length", "cost"}
    assert {file.stem for file in (out / "figures").glob("*.png")} == names
    assert all(file.read_bytes()[:4] == b"\x89PNG" for file in (out / "figures").iterdir())


# ---------------------------------------------------------------- where it is written


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def put(folder: Path, content: dict[str, str]) -> None:
    for name, text in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def test_an_earlier_report_is_replaced_and_nothing_else_is_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for seed in (0, 1):
        write_run(tmp_path / f"runs/{seed}", seed=seed)
    out = written(tmp_path, monkeypatch)
    new = files(out)
    told = json.loads(new["report.json"])
    assert {*told["files"], "report.json"} == set(new)
    earlier = ["figures/gone.png", "optimum.csv"]
    own = {"figures/mine.png": "mine", "notes.txt": "mine"}
    put(out, {**dict.fromkeys(earlier, "old"), **own})
    put(out, {"index.html": "old", "report.json": json.dumps({**told, "files": [*told["files"], *earlier]})})
    assert files(written(tmp_path, monkeypatch)) == {**new, **{name: text.encode() for name, text in own.items()}}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"thesis.tex": ""}, "holds other files and no report; name a new or empty folder"),
        ({"results.csv": "mine"}, "holds other files and no report"),
        ({"figures/frontier.png": "mine"}, "holds other files and no report"),
        ({"index.html": "", "results.md": "", "optimum.csv": ""}, "holds other files and no report"),
        ({"report.json": "{}"}, "its report.json is no report's\nname a new or empty folder"),
        ({"report.json": '{"files": ["../index.html"]}'}, "its report.json is no report's"),
        ({"report.json": '{"files": ["figures/../../a.png"]}'}, "its report.json is no report's"),
        ({"report.json": '{"files": ["index.html", 5]}'}, "its report.json is no report's"),
        ({"report.json": '{"files": [], "schema": 2}'}, "has schema 2"),
        ({"report.json": "{"}, "its report.json cannot be read"),
    ],
)
def test_a_folder_of_something_else_is_refused_before_anything_is_done(tmp_path, monkeypatch, capsys, content, said):
    out = tmp_path / "paper"
    put(out, content)
    before = files(out)
    assert ask(monkeypatch, tmp_path / "no runs", "--out", out) == WRONG
    error = capsys.readouterr().err
    assert f"--out={out}" in error
    assert said in error
    assert len(error.strip().splitlines()) <= 2
    write_run(tmp_path / "run")
    assert ask(monkeypatch, tmp_path / "run", "--out", out) == WRONG
    assert files(out) == before


def test_of_a_report_that_does_not_say_what_it_wrote_nothing_is_removed(tmp_path: Path, monkeypatch):
    """As versions before left it."""
    write_run(tmp_path / "runs/0")
    put(tmp_path / "report", dict.fromkeys(("index.html", "results.csv", "results.md", "optimum.csv"), "old"))
    put(tmp_path / "report", {"figures/old.png": "old", "figures/frontier.png": "old"})
    found = files(written(tmp_path, monkeypatch))
    assert {name for name, content in found.items() if content == b"old"} == {"optimum.csv", "figures/old.png"}
    assert "optimum.csv" not in json.loads(found["report.json"])["files"]


def test_a_report_that_was_not_finished_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_run(tmp_path / "runs/0")

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("prefopt.jobs.compare.page", stopped)
        assert ask(patch, tmp_path / "runs", "--out", tmp_path / "report") == INTERRUPTED
        patch.undo()
        patch.setattr("prefopt.jobs.compare.replacing", stopped)
        assert ask(patch, tmp_path / "runs", "--out", tmp_path / "report") == INTERRUPTED
    put(tmp_path / "report", dict.fromkeys((".index.html.x.prefopt", "figures/.cost.png.x.prefopt"), "killed"))
    found = files(written(tmp_path, monkeypatch))
    assert {*json.loads(found["report.json"])["files"], "report.json"} == set(found)


def test_a_report_that_was_killed_at_its_first_file_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_run(tmp_path / "runs/0")
    put(tmp_path / "report", {".report.json.x.prefopt": ""})
    assert "index.html" in files(written(tmp_path, monkeypatch))


def test_the_plotting_library_accepts_every_trace(tmp_path: Path):
    for seed in (0, 1):
        for beta in (0.1, 0.5, 1.0):
            write_run(tmp_path / f"dpo{beta}-{seed}", beta=beta, seed=seed)
    write_run(tmp_path / "ipo", loss="ipo")
    drawn = report(tmp_path).figures
    assert len(drawn) == 6
    for figure in drawn:
        graph_objects.Figure(data=plotly_traces(figure))
    assert [series.name for series in drawn[0].series].count("Pareto front") == 1


def test_a_hundred_runs_in_ten_seconds_and_three_megabytes(tmp_path: Path):
    rng = np.random.default_rng(0)
    for number in range(100):
        loss, beta, seed = ("dpo", "ipo")[number % 2], 0.1 * (1 + number // 10), number // 2 % 5
        gaps = rng.normal(0.5, 1, 500).tolist()
        write_run(tmp_path / f"runs/{number}", loss, beta, seed, gaps, text="word " * 100, steps=1000)
    started = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime  # what others do on the machine does not count
    done = subprocess.run(
        [sys.executable, "-m", "prefopt.compare", "runs", "--out", "report"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == OK, done.stderr
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - started < 10
    assert "100 runs" in done.stdout
    page = (tmp_path / "report/index.html").read_bytes()
    assert len(page) - len(get_plotlyjs().encode()) < 3e6


def test_it_starts_without_torch():
    code = "import sys, prefopt.compare, prefopt.jobs.compare; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert found.stdout.strip() == "False", found.stderr
