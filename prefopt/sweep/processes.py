"""Every job of a sweep in a process of its own, several at a time where asked; a job dies with its sweep."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefopt.errors import FAILED as EXIT_FAILED
from prefopt.errors import INTERRUPTED as EXIT_INTERRUPTED
from prefopt.errors import OK
from prefopt.files import replacing
from prefopt.progress import Meter, say
from prefopt.run import ENDED
from prefopt.scrub import scrubbed
from prefopt.sweep.ledger import FAILED, FINISHED, INTERRUPTED, RUNNING, Job, Ledger

# What would make a job believe that it is a rank of somebody else's run.
DISTRIBUTED = (
    *("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
    *("MASTER_ADDR", "MASTER_PORT", "PREFOPT_RUN_DIR", "PREFOPT_MAIN"),
    *("SLURM_NTASKS", "SLURM_NTASKS_PER_NODE", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID"),
)
POLL = 0.1  # seconds


@dataclass
class _Running:
    job: Job
    process: subprocess.Popen[bytes]
    began: float
    gpus: list[str]


class Sweep:
    """Runs what the ledger does not hold as finished.

    flags: Hydra's own, of every job. parallel: jobs at a time. gpus: names of the GPUs there are; a job is given as
    many as it has devices, alone.
    """

    def __init__(self, ledger: Ledger, flags: Sequence[str], parallel: int, gpus: Sequence[str]) -> None:
        self.ledger, self.flags, self.parallel = ledger, list(flags), parallel
        self._free = list(gpus)
        self._running: list[_Running] = []

    def run(self, jobs: Sequence[Job]) -> int:
        """The sweep's exit code. Jobs that fail are shown as they fail, and the others go on."""
        waiting = [job for job in jobs if job.status != FINISHED]
        known = len(jobs) - len(waiting)
        before = f", {known} of them done before" if known else ""
        say(f"sweep: {len(jobs)} job{'s' * (len(jobs) > 1)} in {self.ledger.folder}{before}")
        meter = Meter("sweep", len(waiting))
        hear()
        try:
            while waiting or self._running:
                while waiting and len(self._running) < self.parallel and self._has_room(waiting[0]):
                    self._start(waiting.pop(0))
                self._collect(meter)
                time.sleep(POLL)
        except KeyboardInterrupt:
            self._stop()
            say(f"interrupted; the same command with sweep_dir={self.ledger.folder} goes on")
            return EXIT_INTERRUPTED
        except BaseException:  # a disk without room for the ledger; nobody would be left to end the jobs
            with suppress(OSError):
                self._stop()
            raise
        finally:
            meter.close()
        failed = [job for job in jobs if job.status != FINISHED]
        say(f"sweep: {len(jobs) - len(failed)} of {len(jobs)} jobs finished, in {self.ledger.folder}")
        return EXIT_FAILED if failed else OK

    # ------------------------------------------------------------ one job

    def _start(self, job: Job) -> None:
        gpus, self._free = (self._free[: job.gpus], self._free[job.gpus :]) if self._free else ([], [])
        command = python_command("prefopt.train", [*self.flags, *job.overrides], self.ledger.run_dir(job))
        log = self.ledger.log(job)
        log.parent.mkdir(exist_ok=True)
        with log.open("ab") as output:
            process = started(command, self._environment(gpus), stdout=output, stderr=subprocess.STDOUT)
        job.status = RUNNING
        self._running.append(_Running(job, process, time.monotonic(), gpus))
        self.ledger.write()

    def _environment(self, gpus: list[str]) -> dict[str, str]:
        found = clean_environment()
        if gpus:
            found["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        found.setdefault("OMP_NUM_THREADS", str(max(1, _cores() // self.parallel)))
        return found

    def _collect(self, meter: Meter) -> None:
        for running in [r for r in self._running if r.process.poll() is not None]:
            self._running.remove(running)
            self._free += running.gpus
            self._ended(running)
            meter.advance(1)
        meter.note = f"running {', '.join(r.job.name for r in self._running)}" if self._running else ""
        meter.advance(0, meter.note)

    def _ended(self, running: _Running) -> None:
        job, code = running.job, running.process.returncode
        job.seconds += time.monotonic() - running.began
        job.exit_code = code
        _scrub(self.ledger.log(job))
        finished = self.ledger.summary(job).get("status") in ENDED
        job.status = FINISHED if code == OK and finished else INTERRUPTED if code == EXIT_INTERRUPTED else FAILED
        self.ledger.write()
        if job.status != FINISHED:
            said = _last_line(self.ledger.log(job))
            say(f"{job.status} (exit {code}): {' '.join(job.overrides)}\n  {said}\n  log {self.ledger.log(job)}")

    def _stop(self) -> None:
        """Let every job save what it has."""
        interrupt([running.process for running in self._running])
        for running in self._running:
            _scrub(self.ledger.log(running.job))
            running.job.status = INTERRUPTED
            running.job.seconds += time.monotonic() - running.began
        self.ledger.write()

    # ------------------------------------------------------------ GPUs

    def _has_room(self, job: Job) -> bool:
        return not (self._free or any(r.gpus for r in self._running)) or len(self._free) >= job.gpus


def _cores() -> int:
    """That this process may use, where the system says so."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def python_command(module: str, words: Sequence[str], run_dir: Path) -> list[str]:
    return [sys.executable, "-m", module, *words, f"run_dir={quoted(str(run_dir))}"]


def started(command: Sequence[str], environment: dict[str, str], **outputs: Any) -> subprocess.Popen[bytes]:
    """A process that ends with this one, and to which an interrupt in the terminal is ours to hand on."""
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,
        preexec_fn=die_with_parent(),
        **outputs,
    )


def clean_environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key not in DISTRIBUTED}


def hear() -> None:
    """What ends a run ends a process of several too, as Ctrl-C does; under Slurm the warning before its time is up."""
    for number in (signal.SIGTERM, *([signal.SIGUSR1] if "SLURM_JOB_ID" in os.environ else [])):
        signal.signal(number, signal.default_int_handler)


def interrupt(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Let them save what they have, as long as it takes; a second signal ends them at once."""
    for process in processes:
        process.send_signal(signal.SIGINT)
    try:
        for process in processes:
            process.wait()
    except KeyboardInterrupt:
        for process in processes:
            process.kill()
            process.wait()


def die_with_parent() -> Callable[[], None] | None:
    """What a new process does first, so that the system kills it when this one is gone (Linux)."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl
    kill_on_death = 1  # PR_SET_PDEATHSIG

    def do() -> None:
        prctl(kill_on_death, signal.SIGKILL)

    return do


def quoted(text: str) -> str:
    """A text that Hydra reads as it is, whatever stands in it."""
    return "'" + re.sub(r"(\\*)'", r"\1\1\'", text) + "'"


def _scrub(log: Path) -> None:
    """Of a job that has ended: what it and its libraries said names folders and perhaps more."""
    with suppress(OSError):  # on a full disk it stays as it is
        said = log.read_text("utf-8", "replace")
        with replacing(log) as temporary:
            temporary.write_text(scrubbed(said), "utf-8")


def _last_line(path: Path) -> str:
    lines = [line.strip() for line in path.read_text("utf-8", "replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
