"""One rank of two: trains every objective of tests/test_invariance.py and saves what rank 0 ended with."""

from __future__ import annotations

import sys

import torch

from tests.test_invariance import OBJECTIVES, outcome

if __name__ == "__main__":
    torch.set_num_threads(1)
    found = {name: outcome(name, micro_batch_size=int(sys.argv[2]), world=2) for name in OBJECTIVES}
    if torch.distributed.get_rank() == 0:
        torch.save(found, sys.argv[1])
    torch.distributed.destroy_process_group()
