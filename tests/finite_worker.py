"""One rank of two: what `one_rank` of tests/test_finite.py stops at and leaves out. Each saves what it found."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from tests.test_finite import one_rank

if __name__ == "__main__":
    torch.set_num_threads(1)
    one_rank(Path(sys.argv[1]), int(os.environ["RANK"]))
    torch.distributed.destroy_process_group()
