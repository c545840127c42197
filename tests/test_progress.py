"""What a person sees of a long pass: a bar on a terminal, a line now and then in a file; nothing of what is short."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from prefopt import progress
from prefopt.callbacks.progress import Progress
from prefopt.progress import Meter, track


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""
    found = SimpleNamespace(now=100.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: found.now))
    return found


def test_a_file_gets_a_line_now_and_then(clock, capsys):
    """A thousand steps of half a second: a line every 21 of them, the first that is more than ten seconds later."""
    meter = Meter("training dpo", 1000)
    for _ in range(1000):
        clock.now += 0.5
        meter.advance()
    meter.close()
    out, said = capsys.readouterr()
    lines = said.splitlines()
    assert out == ""
    assert len(lines) == 1000 // 21
    assert lines[0] == "training dpo: 21/1000, 2.0/s, 490 s left"
    assert lines[-1].startswith("training dpo: 987/1000, ")
    assert all(character.isprintable() for line in lines for character in line)


def test_slow_steps_are_told_by_their_seconds(clock, capsys):
    meter = Meter("reference log-probs", 4)
    clock.now += 20
    meter.advance(note="of two models")
    assert capsys.readouterr().err == "reference log-probs: 1/4, 20.0 s each, 60 s left of two models\n"


def test_a_fit_is_one_task_whatever_happens_inside(clock, capsys):
    """Steps, not micro-batches, and no second task for looks at the held-out rows; by itself a look is one."""
    shown = Progress("training dpo")
    trainer = SimpleNamespace(is_global_zero=True, max_steps=1000, global_step=0, num_val_batches=[30])

    def look():
        shown.on_validation_start(trainer, None)
        for _ in range(30):
            clock.now += 1
            shown.on_validation_batch_end()
        shown.on_validation_end(trainer, None)

    shown.on_train_start(trainer, None)
    for step in range(1, 1001):
        for micro in range(4):
            clock.now += 0.125
            trainer.global_step = step if micro == 3 else step - 1
            shown.on_train_batch_end(trainer, None, None)
        if step % 500 == 0:
            look()
    shown.on_train_end(trainer, None)
    lines = capsys.readouterr().err.splitlines()
    assert 40 < len(lines) < 60
    assert all(line.startswith("training dpo: ") for line in lines)
    assert lines[0].startswith("training dpo: 21/1000, 2.0/s")
    look()
    assert [line.split(",")[0] for line in capsys.readouterr().err.splitlines()] == [
        "held-out rows: 11/30",
        "held-out rows: 22/30",
    ]


def test_ranks_beside_the_first_say_nothing(clock, capsys):
    shown = Progress("training dpo")
    trainer = SimpleNamespace(is_global_zero=False, max_steps=9, global_step=0, num_val_batches=[9])
    shown.on_train_start(trainer, None)
    shown.on_validation_start(trainer, None)
    clock.now += 100
    trainer.global_step = 1
    shown.on_train_batch_end(trainer, None, None)
    shown.on_validation_batch_end()
    assert capsys.readouterr().err == ""


class Bar:
    """Stands in for rich's live bar."""

    def __init__(self, log: list) -> None:
        self.log = log
        self.start, self.stop = (lambda name=name: log.append(name) for name in ("start", "stop"))

    def add_task(self, label: str, **_) -> int:
        self.log.append(label)
        return 0

    def update(self, task: int, completed: int, **_) -> None:
        self.log.append(completed)


def test_a_terminal_gets_a_bar(clock, monkeypatch, capsys):
    """After a second, and no lines; taken down whatever happens, so that the next one can stand."""
    log: list = []
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(progress, "_bars", lambda: Bar(log))
    for _ in range(2):
        items = track(range(9), "tokenising", 9)
        for item in items:
            clock.now += 0.6
            if item == 3:
                items.close()
        assert log == ["tokenising", "start", 2, 3, "stop"]
        log.clear()
    list(track(range(9), "soon over", 9))
    assert log == []
    assert capsys.readouterr().err == ""
