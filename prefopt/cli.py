"""The console script: `prefopt train loss=dpo` is `python -m prefopt.train loss=dpo`."""

from __future__ import annotations

import os
import sys
from importlib.metadata import version

from prefopt.errors import nearest

COMMANDS = {
    "train": "train one method, leave a run folder",
    "evaluate": "measure a run or any model on held-out rows, as at the end of training",
    "compare": "runs side by side, with statistics, on one page",
    "export": "write a run's model for use elsewhere, checked against the run",
    "sample": "chat with a model, or answer a file of prompts",
    "inspect": "audit a dataset and show rows as a model will see them",
}


def main() -> int:
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print("usage: prefopt COMMAND [key=value …]\n")
        print("\n".join(f"  {command:10} {what}" for command, what in COMMANDS.items()))
        return 0
    if name == "--version":
        print(f"prefopt {version('prefopt')}")
        return 0
    if name not in COMMANDS:
        print(
            f"prefopt {name}: no such command{nearest(name, COMMANDS)}\naccepted: {', '.join(COMMANDS)}",
            file=sys.stderr,
        )
        return 2
    # A distributed run starts its other processes by the module's name, so this one must be running it by that name.
    sys.stdout.flush()
    return os.execv(sys.executable, [sys.executable, "-m", f"prefopt.{name}", *sys.argv[2:]])
