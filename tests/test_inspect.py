"""prefopt inspect: the audit and rows as a model will see them, in the terminal and as a page."""

from __future__ import annotations

import json
import re
import sys
from html import unescape
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from prefopt import inspect
from prefopt.data.examples import Encoded, Example
from prefopt.errors import OK, WRONG
from prefopt.models.tiny import fit_tokenizer
from prefopt.reports.rows import ENDS, WITH_LOSS, WITHOUT_LOSS, pieces, plain, row_view
from tests.conftest import SMALL
from tests.data.made import encode, pair

ROWS = [{"prompt": f"Say {i}:", "chosen": f"<b>{i}</b>\u001b[31m", "rejected": "x", "slice": "s"} for i in range(40)]
MODEL = [override for override in SMALL if override.startswith("model.")]


@pytest.fixture
def ask(tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> int:
        asked = ["data=jsonl", "data.train=rows.jsonl", *MODEL, f"cache_dir={cache_dir}", *arguments]
        monkeypatch.setattr(sys, "argv", ["inspect", *asked])
        return inspect.main()

    return run


def test_the_terminal_shows_the_audit_and_rows(ask, capsys: pytest.CaptureFixture, tmp_path: Path):
    assert ask("--rows", "2", "--split", "val") == OK
    shown = capsys.readouterr().out
    assert "40 rows read, 40 kept" in shown
    assert "warning: the longer answer wins 100% of the training pairs" in shown
    assert re.findall(r"row (\d+)  rows\.jsonl:\d+  slice s", shown) == ["0", "1"]
    assert shown.count("chosen, ") == shown.count("rejected, ") == 2
    assert "\u001b[31m" not in shown  # what a row says does not steer the terminal
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl"]


def test_a_page_holds_the_same_and_what_rows_say_stays_text(ask, capsys: pytest.CaptureFixture, tmp_path: Path):
    assert ask("--html", "page.html") == OK
    assert "page.html" in capsys.readouterr().out
    page = (tmp_path / "page.html").read_text("utf-8")
    assert "&lt;b&gt;" in re.sub(r"</?span[^>]*>", "", page)
    assert "<b>" not in page
    assert "40 rows read, 40 kept" in unescape(page)


def test_a_wrong_request_is_refused_like_any_other(ask, capsys: pytest.CaptureFixture):
    assert ask("data.max_lenght=3") == WRONG
    assert "did you mean 'max_length'?" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        ask("--split", "trian")
    assert stop.value.code == WRONG


def segments(row: Encoded, ends: tuple[int, ...]) -> list[tuple[str, str]]:
    console = Console(file=StringIO(), width=200, force_terminal=True)
    found = console.render(row_view(7, row, lambda ids: "".join(map(chr, ids)), ends))
    return [(segment.text, str(segment.style)) for segment in found if segment.text.strip()]


def test_the_loss_falls_on_the_completions_and_their_ends():
    row = encode(pair("pq", "yz", "n", weight=0.5, target=0.75, margin=1.0, annotator="ann"))
    shown = segments(row, (2,))
    texts = [text for text, _ in shown]
    assert any("weight 0.5, p 0.75, margin 1, annotator ann" in text for text in texts)
    styles = dict(shown)
    assert (styles["p"], styles["q"]) == (WITHOUT_LOSS[1], WITHOUT_LOSS[0])  # after the beginning, \x01
    assert (styles["y"], styles["z"], styles["n"]) == (*WITH_LOSS, WITH_LOSS[0])
    assert [style for text, style in shown if text == r"\x02"] == [ENDS, ENDS]


def test_of_a_ranking_the_best_and_the_worst_are_shown_and_labels_by_their_names():
    ids = tuple(np.array([ord(c), 2]) for c in "abc")
    ranking = Encoded(Example(prompt="p", completions=("a", "b", "c"), scores=(3.0, 2.0, 1.0)), np.array([112]), ids)
    texts = [text for text, _ in segments(ranking, (2,))]
    assert "chosen, 2 tokens" in texts
    assert "rejected, 2 tokens" in texts
    assert "b" not in texts
    for good, name in ((1.0, "good"), (0.0, "bad")):
        label = Encoded(Example(prompt="p", completions=("a",), scores=(good,)), np.array([112]), ids[:1])
        assert f"{name}, 2 tokens" in [text for text, _ in segments(label, (2,))]


def test_a_token_is_shown_as_it_reads_in_its_place():
    """Bytes of a letter are shown with its last one, and a space before a word stays where a word alone has none."""
    text = "né🙂 ja"
    tokenizer = fit_tokenizer(["nothing of it"], 300)
    ids = tokenizer(text, add_special_tokens=False).input_ids
    found = pieces(ids, tokenizer.decode)
    assert len(ids) > len(text)
    assert "".join(found) == text
    assert "🙂" in found
    words = ["▁so", "▁it", "s"]
    assert pieces([0, 1, 2], lambda ids: "".join(words[i] for i in ids).replace("▁", " ").lstrip()) == [
        "so",
        " it",
        "s",
    ]
    assert pieces(ids[:2], tokenizer.decode) == ["n", "\N{REPLACEMENT CHARACTER}"]  # a text that ends within a letter


def test_plain_text_steers_nothing():
    assert plain("a\u001b[31mb\r\n\u202ec ü🙂") == "a\\x1b[31mb\\r\\n\\u202ec ü🙂"


def test_several_requests_are_none(ask, capsys: pytest.CaptureFixture):
    """With -m Hydra would hand them to the sweep, which trains."""
    with pytest.raises(SystemExit) as ended:
        ask("-m", "seed=0,1")
    assert ended.value.code == WRONG
    assert "leave -m out" in capsys.readouterr().err
