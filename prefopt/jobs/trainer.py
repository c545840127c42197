"""Lightning's trainer, told to leave everything to us that is ours: files, output, the order of rows, signals."""

from __future__ import annotations

from typing import Any

import lightning as L


def quiet_trainer(**asked: Any) -> L.Trainer:
    """asked: what L.Trainer takes."""
    trainer = L.Trainer(
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **asked,
    )
    trainer._signal_connector.register_signal_handlers = _no_handlers  # type: ignore[method-assign]
    return trainer


def _no_handlers() -> None:
    """Lightning's call a collective from wherever a signal finds a rank, and so wait for ever, or end a process with 0;
    see `Stop`."""
