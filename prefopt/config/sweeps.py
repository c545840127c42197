"""A sweep's jobs: what `-m` and a named sweep ask for, every one checked before the first begins."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser
from omegaconf import DictConfig, OmegaConf

from prefopt.config.explain import points
from prefopt.config.request import build_request
from prefopt.config.typed import without_hydra
from prefopt.errors import OK, RequestError
from prefopt.files import at_home, check_can_be_made
from prefopt.run import ENDED
from prefopt.sweep.ledger import FAILED, Job, Ledger
from prefopt.sweep.processes import Sweep

Compose = Callable[[Sequence[str]], DictConfig]
exit_code = OK  # of the sweeps of this process; Hydra hands none through


def launch(compose: Compose, asked: Iterable[Sequence[str]], folder: str, parallel: int) -> list[dict[str, Any]]:
    """Run the jobs in `folder`, and keep the worst exit code. Returns the summary of each that was asked for: its
    status alone of one that failed before it had any, {} of one that has not ended. Equal ones run once and have the
    same.
    """
    jobs = sound_jobs(compose, asked, folder, parallel)
    with Ledger(Path(folder).expanduser()) as ledger:
        keep_worst(Sweep(ledger, hydra_flags(), parallel, _gpus()).run(ledger.add(jobs)))
        return [_summary(ledger, ledger.jobs[job.key]) for job in jobs]


def _summary(ledger: Ledger, job: Job) -> dict[str, Any]:
    found = ledger.summary(job)
    # One that was killed could not say so: its folder calls it interrupted.
    return {**found, "status": FAILED} if job.status == FAILED and found.get("status") not in ENDED else found


def keep_worst(code: int) -> None:
    global exit_code
    exit_code = max(exit_code, code)


def sound_jobs(compose: Compose, asked: Iterable[Sequence[str]], folder: str, parallel: int) -> list[Job]:
    """The jobs that are asked for. Raises RequestError where one of them, or the sweep, cannot run."""
    if parallel < 1:
        raise RequestError(f"hydra.launcher.parallel must be at least 1; got {parallel}")
    check_can_be_made(at_home(folder, "sweep_dir"), "sweep_dir")
    typed = set(_arguments().overrides)
    jobs = [_job(compose, o, [word for word in o if word not in typed]) for o in _expanded(compose, asked)]
    gpus, most = _gpus(), max(job.gpus for job in jobs)
    if gpus and most > len(gpus):
        raise RequestError(f"trainer.devices={most}: this machine has {len(gpus)} GPUs")
    return jobs


def _expanded(compose: Compose, asked: Iterable[Sequence[str]]) -> Iterator[list[str]]:
    """The overrides of every job: a named sweep stands for each point of each of its grids."""
    for overrides in asked:
        cfg = compose(overrides)
        grids = OmegaConf.select(cfg, "sweep.grids")
        if grids is None:
            yield list(overrides)
            continue
        outer = [o for o in overrides if not o.lstrip("+~").startswith("sweep=")]
        for grid in grids:
            for point in points([f"{key}={value}" for key, value in grid.items()]):
                yield [*point, *outer]  # what the command line says holds


def _job(compose: Compose, overrides: Sequence[str], own: Sequence[str]) -> Job:
    cfg = compose(overrides)
    choices = without_hydra(cfg)
    if cfg.get("run_dir"):
        raise RequestError("run_dir is each job's own in a sweep; name sweep_dir instead")
    if cfg.get("save_by"):
        raise RequestError(
            f"save_by={cfg.save_by} counts from the start of one run; a sweep saves on SIGTERM or SIGINT"
        )
    cfg.sweep = None
    try:
        request = build_request(cfg, choices)
    except RequestError as error:
        first, *more = str(error).splitlines()
        raise RequestError("\n".join([f"{first} (job: {' '.join(overrides)})", *more])) from error
    trainer = request.settings.trainer
    return Job.of(overrides, own, request.plain, trainer.devices, trainer.accelerator == "cpu")


def hydra_flags() -> list[str]:
    """Hydra's flags that every job needs too."""
    asked = _arguments()
    found = {"--config-dir": asked.config_dir, "--config-path": asked.config_path, "--config-name": asked.config_name}
    return [part for flag, value in found.items() if value for part in (flag, value)]


def _arguments() -> Any:
    return get_args_parser().parse_args(sys.argv[1:])


def _gpus() -> list[str]:
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name not in ("", "-1")]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]
