"""`python -m prefopt.inspect data=jsonl data.train=pairs.jsonl`: the audit, and rows as a model will see them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from prefopt.config import build_request, command
from prefopt.data.splits import SPLITS

if TYPE_CHECKING:
    from omegaconf import DictConfig


def arguments() -> argparse.Namespace:
    """The command's own options; what is left in sys.argv are the keys of a training request."""
    parser = argparse.ArgumentParser(prog="prefopt inspect", description=__doc__, allow_abbrev=False)
    parser.add_argument("--rows", type=int, default=3, help="how many rows are shown (3)")
    parser.add_argument("--split", choices=SPLITS, default="train", help="of which split (train)")
    parser.add_argument("--html", type=Path, help="write a page instead of the terminal's text")
    own, rest = parser.parse_known_args()
    if {"-m", "--multirun"} & set(rest):
        parser.error("one request at a time is looked at: leave -m out")
    sys.argv[1:] = rest
    return own


def main() -> int:
    own = arguments()

    def task(cfg: DictConfig) -> int:
        request = build_request(cfg)
        from prefopt.jobs.inspect import show  # the heavy libraries, once the request is known to be sound

        return show(request, own.split, own.rows, own.html)

    return command("train", task)


if __name__ == "__main__":
    sys.exit(main())
