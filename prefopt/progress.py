"""Progress with rate and time left: a live bar on a terminal, a line now and then in a log file."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from prefopt.errors import plain

Item = TypeVar("Item")
console = Console(stderr=True, soft_wrap=True, emoji=False)
LINE_EVERY = 10.0  # seconds between lines when nobody watches live


class Meter:
    """One task's progress. Shows nothing for what is over within a second."""

    def __init__(self, label: str, total: int) -> None:
        self.label, self.total, self.done, self.note = label, total, 0, ""
        self._started = self._shown = time.monotonic()
        self._bars: Bars | None = None

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.done, self.note = self.done + steps, note
        now = time.monotonic()
        if sys.stderr.isatty():
            if self._bars is None and now - self._started > 1:
                self._bars = _bars()
                self._task = self._bars.add_task(self.label, total=self.total, note="", speed="")
                self._bars.start()
            if self._bars is not None:
                self._bars.update(self._task, completed=self.done, note=note, speed=self.speed)
        elif now - self._shown > LINE_EVERY:
            self._shown = now
            print(self.line(), file=sys.stderr, flush=True)

    @property
    def rate(self) -> float:
        """Steps per second."""
        return self.done / max(time.monotonic() - self._started, 1e-9)

    @property
    def speed(self) -> str:
        if not self.done:
            return ""
        return f"{self.rate:.1f}/s" if self.rate >= 1 else f"{1 / self.rate:.1f} s each"

    def line(self) -> str:
        left = f", {self.speed}, {(self.total - self.done) / self.rate:.0f} s left" if self.done else ""
        return f"{self.label}: {self.done}/{self.total}{left} {self.note}".rstrip()

    def close(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None


def track(items: Iterable[Item], label: str, total: int) -> Iterator[Item]:
    """Iterate under a meter."""
    meter = Meter(label, total)
    try:
        for item in items:
            yield item
            meter.advance()
    finally:
        meter.close()


def _bars() -> Bars:
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    extra = [TimeRemainingColumn(), TextColumn("{task.fields[speed]} {task.fields[note]}")]
    return Bars(*columns, *extra, console=console, transient=True)


def is_main_process() -> bool:
    """Whether this is the one that a person started; a distributed run, torchrun or srun starts the others.

    torchrun's rank is that of the run. What Lightning starts has a LOCAL_RANK in a NODE_RANK, also inside of a Slurm
    step, whose own number is then the same for all.
    """
    names = ("RANK",) if "RANK" in os.environ else ("LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
    return all(os.environ.get(name, "0") == "0" for name in names)


def say(sentence: str) -> None:
    """One line about what is going on, from the main process, on stderr. A log's last line or a file's name, which it
    may hold, steers no terminal."""
    if is_main_process():
        console.print(plain(sentence, keep="\n"), highlight=False, markup=False)
