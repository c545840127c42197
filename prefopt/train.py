"""`python -m prefopt.train loss=dpo data=jsonl data.train=pairs.jsonl`: train one method, leave a run folder."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from prefopt.config import build_request, command

if TYPE_CHECKING:
    from omegaconf import DictConfig


def task(cfg: DictConfig) -> int:
    if cfg.get("pipeline") is not None:
        from prefopt.config.pipelines import run_pipeline

        return run_pipeline(cfg)
    request = build_request(cfg)
    from prefopt.jobs.train import train  # the heavy libraries, once the request is known to be sound

    return train(request)


def main() -> int:
    return command("train", task)


if __name__ == "__main__":
    sys.exit(main())
