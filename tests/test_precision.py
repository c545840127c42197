"""trainer.precision=auto: what it chooses, that it measures errors truly, and that a run keeps it."""

from __future__ import annotations

import csv
import json
import math

import pytest
import torch

from prefopt.config import compose_request
from prefopt.errors import RequestError
from prefopt.jobs import precision
from prefopt.jobs.precision import BOUNDS, GAIN, Mode, best, device_for, device_type, measured, settle
from prefopt.settings import TrainerSettings
from prefopt.settings.training import PRECISIONS
from tests.models.saved import saved_model, trained


def trainer(name="auto") -> TrainerSettings:
    return TrainerSettings(
        max_steps=1,
        max_epochs=1,
        devices=1,
        accelerator="cpu",
        precision=name,
        clip=None,
        non_finite="stop",
        checkpoint_every=None,
        val_every=None,
    )


@pytest.fixture(autouse=True)
def as_it_was():
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def found(medium: tuple[float, float], half: tuple[float, float]) -> list[Mode]:
    return [Mode("32", "highest", 1.0, 1e-7), Mode("32", "medium", *medium), Mode("bf16-mixed", "highest", *half)]


def test_the_fastest_that_is_right():
    assert best(found((0.5, 1e-7), (0.4, 3e-3))).name == "bf16-mixed, highest"
    assert best(found((0.5, 1e-7), (0.4, 3e-2))).name == "32, medium"
    assert best(found((0.5, 1e-3), (2.0, 3e-3))).name == "32, highest"


def test_what_is_hardly_faster_is_not_worth_it():
    assert best(found((1.01 / GAIN, 1e-7), (3.0, 3e-3))).name == "32, highest"
    assert best(found((0.99 / GAIN, 1e-7), (3.0, 3e-3))).name == "32, medium"


def test_errors_are_those_of_the_formats():
    """float32 keeps 24 bits, bfloat16 8: rounding the operands of a long product costs about 2^-9 · √(2 / 3)."""
    plain, _, half = measured(torch.device("cpu"))
    assert 1e-8 < plain.error < BOUNDS["32"]
    assert 1e-3 < half.error < BOUNDS["bf16-mixed"]
    assert min(plain.seconds, half.seconds) > 0


def test_a_run_keeps_what_it_began_with(monkeypatch):
    monkeypatch.setattr(precision, "measured", lambda device: found((0.5, 1e-7), (2.0, 3e-3)))
    first, again = trainer(), trainer()
    assert settle(first, None) == "32, medium"
    assert (first.precision, torch.get_float32_matmul_precision()) == ("32", "medium")
    monkeypatch.setattr(precision, "measured", lambda device: found((2.0, 1e-7), (0.5, 3e-3)))
    assert settle(again, "32, medium") == "32, medium"
    assert settle(trainer(), None) == "bf16-mixed, highest"


def test_a_name_is_left_alone():
    named = trainer("bf16-mixed")
    assert settle(named, None) == "bf16-mixed"
    assert torch.get_float32_matmul_precision() == "highest"


def test_several_devices_might_disagree():
    with pytest.raises(RequestError, match=r"trainer.precision=auto with several devices"):
        compose_request(["trainer.precision=auto", "strategy=ddp", "trainer.devices=2", "trainer.accelerator=cpu"])


def test_where_a_command_works(monkeypatch):
    """A run's accelerator has been held against the machine already."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [device_for(asked) for asked in ("auto", "cuda", "cpu")] == ["cuda", "cuda", "cpu"]
    assert device_type(trainer()) == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert [device_for(asked) for asked in ("auto", "cpu")] == ["cpu", "cpu"]
    with pytest.raises(RequestError, match=r"^device=cuda: no GPU is seen here; take device=cpu$"):
        device_for("cuda")


@pytest.mark.parametrize("name", PRECISIONS)
def test_every_precision_trains(name, tmp_path):
    """With the default optimizer and clipping; the first loss is log 2 in all of them."""
    run = trained(
        tmp_path,
        "model=hf",
        f"model.name={saved_model(tmp_path / 'model')}",
        f"trainer.precision={name}",
        "optimizer.lr=0.001",
        "optimizer.eps=1e-4",  # 1e-8 is 0 in float16
    )
    with (run / "metrics.csv").open() as stream:
        losses = [float(row["loss"]) for row in csv.DictReader(stream)]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-2)
    assert losses[-1] < losses[0]
    said = json.loads((run / "summary.json").read_text())["precision"]
    assert torch.get_float32_matmul_precision() == "highest"  # the next run's products are its own
    assert said == name or (name == "auto" and said in [mode.name for mode in precision.MODES])
