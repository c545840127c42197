"""`python -m prefopt.sample run=RUN`: chat with what a run trained; with `prompts=FILE out=FILE`, answer a file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from prefopt.config import command, read_keys
from prefopt.data.prompts import read_prompts
from prefopt.errors import RequestError
from prefopt.files import at_home, check_can_be_made, check_can_be_named
from prefopt.models.files import check_local
from prefopt.run import finished_run, judging_run
from prefopt.settings import SampleSettings

if TYPE_CHECKING:
    from omegaconf import DictConfig


def task(cfg: DictConfig) -> int:
    asked = read_keys(cfg, SampleSettings)
    run = finished_run(asked.run) if asked.run else None
    if run is not None and run.judges:
        raise RequestError(f"run={asked.run} trained a reward model, which cannot answer; it judges with reward.name")
    if asked.reward.name and judging_run(asked.reward.name) is None:
        check_local(asked.reward.name, "reward.name")
    prompts = read_prompts(asked.prompts, "prompts") if asked.prompts else None
    if asked.out:
        check_out(at_home(asked.out, "out"), asked.out)
    from prefopt.jobs.sample import sample  # the heavy libraries, once the request is known to be sound

    return sample(asked, run, prompts)


def check_out(file: Path, named: str) -> None:
    check_can_be_named(file, f"out={named}")
    if file.exists():
        raise RequestError(f"out={named} exists; name a new file")
    check_can_be_made(file.parent, "out")


def main() -> int:
    return command("sample", task)


if __name__ == "__main__":
    sys.exit(main())
