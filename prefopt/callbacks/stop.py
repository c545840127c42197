"""When a run is asked to end before it is done: by a signal, or by the clock of a queue."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import time
from types import FrameType
from typing import Any

from prefopt.progress import say

SLURM_JOB = ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_JOB_ID")


class Stop:
    """`with Stop(main_process, limit) as stop:` answers SIGINT and SIGTERM for as long as the block lasts, and under
    Slurm SIGUSR1, which also asks to be queued again.

    While `waits`, which is training, a signal is remembered: training looks between two optimiser steps, saves and
    ends. At any other time, and when another SIGINT or SIGTERM comes, the main process ends at once, by
    KeyboardInterrupt. The other ranks only remember: one that left by itself would leave the main process waiting in
    a collective, and they end with it. For the same reason Lightning's handlers, which talk to the other ranks from
    inside whatever a rank was doing, are never installed.

    limit: seconds from now by which everything must be saved; None: as long as it takes.
    """

    def __init__(self, main_process: bool, limit: float | None = None) -> None:
        self.main_process, self.limit = main_process, limit
        self.asked = self.requeue = self.waits = False
        self._began = time.monotonic()
        self._before: dict[int, Any] = {}

    @property
    def left(self) -> float:
        """Seconds until the limit."""
        return math.inf if self.limit is None else self._began + self.limit - time.monotonic()

    def __enter__(self) -> Stop:
        heard = [signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if "SLURM_JOB_ID" in os.environ else [])]
        self._before = {number: signal.signal(number, self._hear) for number in heard}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        warning = number == signal.SIGUSR1  # some time before the end; SIGTERM may follow it
        self.requeue = self.requeue or warning
        again = self.asked and not warning
        self.asked = True
        if self.main_process and (again or not self.waits):
            raise KeyboardInterrupt


def requeue() -> None:
    """Put this Slurm job back into its queue, where its command goes on with what the run folder holds."""
    array, task, job = (os.environ.get(name) for name in SLURM_JOB)
    name = f"{array}_{task}" if array and task else str(job)
    try:
        done = subprocess.run(["scontrol", "requeue", name], capture_output=True, text=True)
        failed = done.stderr.strip() if done.returncode else ""
    except OSError as error:
        failed = error.strerror or str(error)
    say(f"warning: scontrol requeue {name}: {failed}" if failed else f"Slurm job {name} is queued again")
