"""The curves for TensorBoard, which are never worth a run."""

from __future__ import annotations

import glob
import socket
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from lightning.pytorch.loggers import TensorBoardLogger


class TensorBoard(TensorBoardLogger):
    """Leaves out what it cannot write: a full disk ends the run in metrics.csv or in a checkpoint, in words."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, name=None, version="tensorboard")
        threading.excepthook = _quiet
        self._forget_machine()  # of an attempt that was killed

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        with suppress(OSError, ValueError):  # Lightning's ValueError hides whatever went wrong
            super().log_metrics(metrics, step)

    def save(self) -> None:
        with suppress(OSError):
            super().save()

    def finalize(self, status: str) -> None:
        with suppress(OSError):
            super().finalize(status)
        self._forget_machine()

    def _forget_machine(self) -> None:
        """TensorBoard puts the machine's name into those of its files, which may be handed on with the run."""
        host = f".{socket.gethostname()}."
        for file in Path(self.log_dir).glob(f"*tfevents*{glob.escape(host)}*"):
            with suppress(OSError):
                file.rename(file.with_name(file.name.replace(host, ".run.", 1)))


def _quiet(failed: threading.ExceptHookArgs) -> None:
    """TensorBoard writes in a thread, whose traceback nobody needs: the error is raised again in the next write."""
    if not (isinstance(failed.exc_value, OSError) and type(failed.thread).__name__ == "_AsyncWriterThread"):
        threading.__excepthook__(failed)
