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

    @property
    def folder(self) -> str:
        return str(self.config.sweep_dir)

    def check(self, job_overrides: Sequence[Sequence[str]]) -> None:
        """Refuse what `launch` would, and start nothing."""
        from prefopt.config.sweeps import sound_jobs

        sound_jobs(self._compose, job_overrides, self.folder, self.parallel)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """How the jobs end is in the ledger; their summaries are returned. Hydra is told that all is well, or it would
        stop at the first that failed."""
        from prefopt.config.sweeps import launch

        summaries = launch(self._compose, job_overrides, self.folder, self.parallel)
        returned = [JobReturn(overrides=list(o), status=JobStatus.COMPLETED) for o in job_overrides]
        for one, summary in zip(returned, summaries, strict=False):  # a named sweep's jobs are not those asked for
            one.return_value = summary
        return returned

    def _compose(self, overrides: Sequence[str]) -> DictConfig:
        return self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
