"""Every step of a pipeline in a process of its own, one after another; the first that does not finish ends it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from prefopt.errors import FAILED, INTERRUPTED, OK
from prefopt.pipeline.ledger import Ledger
from prefopt.pipeline.steps import Step
from prefopt.progress import say
from prefopt.sweep.processes import clean_environment, hear, interrupt, python_command, started

TRAINS, SAMPLES = "prefopt.train", "prefopt.jobs.fresh"


@dataclass(frozen=True)
class Work:
    """words: the whole request of a step, as on the command line, but for its folder."""

    step: Step
    words: Sequence[str]


def run(works: Sequence[Work], ledger: Ledger) -> int:
    """What is not finished yet. Returns the exit code of the step that ended it, or OK."""
    hear()
    for number, work in enumerate(works, start=1):
        step = work.step
        where = f"stage {number} of {len(works)}, {step.folder.name}"
        if step.done:
            say(f"{where}: finished before, left alone")
            continue
        say(f"{where}: {step.folder}")
        try:
            code = _ended(work, ledger)
        except KeyboardInterrupt:
            code = INTERRUPTED
        if code == INTERRUPTED:
            say(f"interrupted in {step.folder.name}; the same command with pipeline_dir={ledger.folder} goes on")
        elif code != OK:
            say(f"pipeline: {step.folder.name} failed (exit {code}), in {step.folder}\nthe same command goes on there")
        if code != OK:
            return code
    return OK


def _ended(work: Work, ledger: Ledger) -> int:
    """The exit code of one step, which speaks for itself on the terminal."""
    step, began = work.step, time.monotonic()
    process = started(python_command(SAMPLES if step.samples else TRAINS, work.words, step.folder), clean_environment())
    status, code = "interrupted", INTERRUPTED
    try:
        ledger.note(step, "running")
        found = process.wait()
        code = found if found >= OK else FAILED  # by a signal
        status = {OK: step.status() or "failed", INTERRUPTED: "interrupted"}.get(code, "failed")
    except BaseException:  # asked to end, or no room for the ledger: nobody would be left to end it
        interrupt([process])
        raise
    finally:
        ledger.note(step, status, code, time.monotonic() - began)
    return code
