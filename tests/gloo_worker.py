"""One rank of two: `python -m tests.gloo_worker FILE MODULE FUNCTION [NUMBER …]` saves what the function found.

`two_ranks` starts both; rank 0 saves.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]


def run_ranks(module: str, *arguments: Any, timeout: float = 300) -> None:
    """A module in two gloo processes of one thread each, which both must end well. timeout: seconds."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    shared |= {"PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", module, *map(str, arguments)],
            cwd=ROOT,
            env={**shared, "LOCAL_RANK": str(r), "RANK": str(r), "NODE_RANK": "0"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for r in range(2)
    ]
    errors = [rank.communicate(timeout=timeout)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(errors)[-3000:]


def two_ranks(folder: Path, function: Callable[..., Any], *numbers: int) -> Any:
    """What `function(*numbers)` returns on rank 0 of two gloo processes of one thread each."""
    file = folder / "found.pt"
    run_ranks("tests.gloo_worker", file, function.__module__, function.__name__, *numbers)
    return torch.load(file)


if __name__ == "__main__":
    torch.set_num_threads(1)
    file, module, function, *numbers = sys.argv[1:]
    found = getattr(import_module(module), function)(*map(int, numbers))
    if torch.distributed.get_rank() == 0:
        torch.save(found, file)
    torch.distributed.destroy_process_group()
