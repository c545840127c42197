"""The curves for TensorBoard: they are there, and tell nobody whose machine they come from."""

from __future__ import annotations

import socket

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from prefopt.callbacks.tensorboard import TensorBoard


def test_curves_do_not_name_the_machine(tmp_path, monkeypatch):
    """Those of an attempt that was killed neither, once the run goes on."""
    monkeypatch.setattr(socket, "gethostname", lambda: "adas-[1].laptop")
    killed = TensorBoard(tmp_path)
    killed.log_metrics({"train/loss": 0.5}, 1)
    killed.experiment.flush()
    again = TensorBoard(tmp_path)
    again.log_metrics({"train/loss": 0.25}, 2)
    again.finalize("success")
    names = [file.name for file in (tmp_path / "tensorboard").glob("events*")]
    assert len(names) == 2
    assert not any("laptop" in name for name in names)
    curves = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.value for event in curves.Scalars("train/loss")] == [0.5, 0.25]
