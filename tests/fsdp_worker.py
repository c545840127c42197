"""One rank of two: trains every objective of tests/test_sharding.py in shards and saves what rank 0 ended with."""

from __future__ import annotations

import sys

import torch

from tests.test_sharding import OBJECTIVES, outcome

if __name__ == "__main__":
    torch.set_num_threads(1)
    found = {name: outcome(name, sharded=True) for name in OBJECTIVES}
    if torch.distributed.get_rank() == 0:
        torch.save(found, sys.argv[1])
    torch.distributed.destroy_process_group()
