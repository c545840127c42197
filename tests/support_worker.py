"""One rank of two: a run for every case that prefopt.settings.support says runs under a strategy."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from prefopt.config import compose_request
from prefopt.errors import OK
from prefopt.jobs.train import train
from tests.test_support import asked, running


def run_all(strategy: str, folder: Path) -> None:
    fixed = [f"data.train={folder / 'pairs.jsonl'}", "data=jsonl", "trainer.max_steps=2", "data.batch_size=8"]
    fixed += ["evaluation.prompts=2", "evaluation.samples_per_prompt=2", "evaluation.max_new_tokens=4"]
    for number, case in enumerate(running(strategy)):
        places = [f"run_dir={folder / f'run-{number}'}", f"cache_dir={folder / 'cache'}", "debug=true"]
        assert train(compose_request([*fixed, *places, *asked(case, str(folder / "model"))])) == OK, case


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_all(sys.argv[1], Path(sys.argv[2]))
    torch.distributed.destroy_process_group()
