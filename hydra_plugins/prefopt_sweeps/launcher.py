"""`-m`: every job of a sweep in a clean process of its own, with a ledger."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class SweepLauncher(Launcher):
    """parallel: jobs at a time."""

    def __init__(self, parallel: int = 1) -> None:
        self.parallel = parallel
        self.config: Any = None
        self.hydra_context: Any = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config, self.hydra_context = config, hydra_context

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from prefopt.config.sweeps import launch

        def compose(overrides: Sequence[str]) -> DictConfig:
            return self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))

        launch(compose, job_overrides, str(self.config.sweep_dir), self.parallel)
        # How jobs end is in the ledger; Hydra is told that all is well, or it would stop at the first that failed.
        return [JobReturn(overrides=list(o), status=JobStatus.COMPLETED) for o in job_overrides]
