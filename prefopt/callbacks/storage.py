"""How a checkpoint reaches the disk: streamed beside its place, then under its name, the one before it kept."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO

from prefopt.files import replacing
from prefopt.run.checkpoints import PREVIOUS


class Storage(TorchCheckpointIO):
    """Lightning's own collects a checkpoint in memory, writes it to the system's temporary folder and copies it from
    there: a kill in between leaves half of it under the name of the last sound one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """OSError where it cannot be written; what lay there is then as it was."""
        with replacing(Path(path)) as temporary:
            try:
                with temporary.open("wb") as file:
                    torch.save(checkpoint, file)
                    file.flush()
                    os.fsync(file.fileno())  # before the one that is there loses its name
            except RuntimeError as error:  # torch's words for a full disk are about its archive
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from error
                raise
            if os.path.exists(path):
                os.replace(path, Path(path).with_name(PREVIOUS))
