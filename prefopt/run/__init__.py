"""A run's folder: while it trains, and when it has ended. Neither needs torch to be read."""

from prefopt.run.checkpoints import exhausted
from prefopt.run.finished import Finished, finished_run, judging_run, run_of_model
from prefopt.run.folder import (
    ENDED,
    KEYS,
    PLACES,
    RunFolder,
    check_run_folder,
    comparable_hash,
    comparable_settings,
    config_hash,
    git_revision,
    peak_memory_bytes,
    versions,
    without_places,
)

__all__ = [
    "ENDED",
    "KEYS",
    "PLACES",
    "Finished",
    "RunFolder",
    "check_run_folder",
    "comparable_hash",
    "comparable_settings",
    "config_hash",
    "exhausted",
    "finished_run",
    "git_revision",
    "judging_run",
    "peak_memory_bytes",
    "run_of_model",
    "versions",
    "without_places",
]
