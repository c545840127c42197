"""The processes of one run end together, also when its main process is killed."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from prefopt.errors import FAILED
from prefopt.sweep.processes import die_with_parent

MAIN = "PREFOPT_MAIN"  # the main process, in the environment of those that it starts


@contextmanager
def together(main_process: bool) -> Iterator[None]:
    """Without this a rank whose main process was killed waits for it in a collective, half an hour long."""
    if main_process:
        os.environ[MAIN] = str(os.getpid())
    else:
        if (ends_with_parent := die_with_parent()) is not None:
            ends_with_parent()
        if os.environ.get(MAIN) not in (None, str(os.getppid())):  # killed before this could be asked for
            sys.exit(FAILED)
    try:
        yield
    finally:
        if main_process:
            del os.environ[MAIN]


def part_at_exit() -> None:
    """Of a process whose run ended well: gloo's threads, left to the interpreter's end, may outlive what they stand on.
    The rank aborts then, and Lightning kills a main process that is still writing. After a failure something may be
    under way that leaving would wait for."""
    atexit.register(_part)


def _part() -> None:
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
