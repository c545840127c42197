"""benchmarks/devices.py, its runs replaced: what it holds against what, and what its exit code says."""

from __future__ import annotations

import sys

import pytest

from benchmarks import devices


@pytest.fixture
def ask(monkeypatch):
    """The command with these arguments and runs whose losses are a function of their precision."""
    asked: list[tuple[str, ...]] = []
    kept: dict[str, dict] = {}

    def run(losses, *arguments: str) -> int:
        def launch(kind, folder, words, steps, threads):
            asked.append(tuple(words))
            precision = next(word.partition("=")[2] for word in words if word.startswith("trainer.precision="))
            return {"loss": losses[precision], "seconds": [9.0, 1.0, 3.0, 2.0], "peak": 2**20}

        monkeypatch.setattr(devices, "launch", launch)
        monkeypatch.setattr(devices, "make", lambda *_, **__: None)
        monkeypatch.setattr(devices, "preference_data", lambda: None)
        monkeypatch.setattr(devices, "save", lambda name, report: kept.update({name: report}))
        monkeypatch.setattr(sys, "argv", ["devices.py", *arguments])
        return devices.main()

    run.asked, run.kept = asked, kept  # type: ignore[attr-defined]
    return run


@pytest.mark.parametrize(("last", "code"), [(0.61, 0), (0.62, 1)])
def test_curves_are_held_against_each_other(ask, last, code, capsys):
    """0.60 beside 0.61 is within 2^-6 = 0.0156 nats, beside 0.62 it is not. The first step warms up: 1, 3 and 2 s."""
    assert ask({"32": [0.69, 0.60], "bf16-mixed": [0.69, last]}, "--device", "cpu") == code
    models = [word for words in ask.asked for word in words if word.startswith("model=")]
    assert models == ["model=hf_lora"] * 2 + ["model=hf_4bit"] * 2
    found = ask.kept["devices"]["hf_4bit"]
    assert found["largest difference"] == pytest.approx(last - 0.60)
    assert found["range of the loss"] == pytest.approx(0.09)
    assert {run["seconds_per_step"] for run in found["runs"].values()} == {2.0}
    assert "cpu, bf16-mixed" in capsys.readouterr().out


def test_it_needs_a_gpu(ask, monkeypatch, capsys):
    monkeypatch.setattr(devices, "device_name", lambda device: "")
    assert ask({}) == 2
    assert "needs a CUDA device" in capsys.readouterr().err
