"""prefopt compare and the known optimum: what is refused, and real runs from end to end."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from prefopt import compare
from prefopt.config import compose_request
from prefopt.errors import OK, WRONG
from prefopt.jobs.optimum import _read
from prefopt.jobs.train import train
from tests.test_pooling import world_run


def ask(monkeypatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["compare", *map(str, arguments)])
    return compare.main()


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("--optimum=of", "--optimum must be off, or a whole number of samples under each prompt from 100 on; got 'of'"),
        ("--optimum=99", "from 100 on; got '99'"),
        ("--optimum=1e3", "got '1e3'"),
        ("--cache-dir={}/file", "is a file; name a folder"),
    ],
)
def test_wrong_settings_are_refused(tmp_path: Path, monkeypatch, capsys, setting: str, said: str):
    (tmp_path / "file").touch()
    world_run(tmp_path / "run")
    assert ask(monkeypatch, tmp_path / "run", "--out", tmp_path / "out", setting.format(tmp_path)) == WRONG
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) <= 2
    assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_real_runs_are_held_against_it(cache_dir, small, tmp_path: Path, monkeypatch, capsys):
    """A policy far off, the base itself sampled again, and the cache of their training; off leaves no trace."""
    for rate, name in ((0.01, "far"), (1e-9, "still")):
        run = [s for s in small if not s.startswith("run_dir")]
        asked = [*run, f"optimizer.lr={rate}", "trainer.max_steps=12", f"run_dir={tmp_path / 'runs' / name}"]
        assert train(compose_request(asked)) == OK
    common = (tmp_path / "runs", "--out", tmp_path / "out", "--cache-dir", cache_dir)
    assert ask(monkeypatch, *common, "--optimum=300") == OK
    page, table = ((tmp_path / "out" / name).read_text() for name in ("index.html", "results.csv"))
    assert "Share of optimum: a setting" in page
    assert "share_of_optimum" in table.splitlines()[0]
    held = (tmp_path / "out/optimum.csv").read_text().splitlines()
    assert len(held) == 1 + 48 + 6
    # The base's mean reward, of 6 prompts with 100 samples each, is the one that its runs saw, with 24.
    summary = json.loads((tmp_path / "runs/still/summary.json").read_text())
    (file,) = (cache_dir / "optimum").glob("*/pools.npz")
    pools, _ = _read(file)
    base = [float(pool.rewards[pool.source == 0].mean()) for pool in pools]
    error = 3 * summary["samples_reference"]["gold_reward_stderr"] + 0.3
    assert np.mean(base) == pytest.approx(summary["samples_reference"]["gold_reward"], abs=error)
    # The run that stood still is the nearest one, so the first after the base, and says what the base says.
    assert max(np.abs(pool.logps[1] - pool.logps[0]).max() for pool in pools) < 1e-3
    assert ask(monkeypatch, *common, "--optimum=off") == OK
    assert "Share of optimum" not in (tmp_path / "out/index.html").read_text()
    assert not (tmp_path / "out/optimum.csv").exists()
    capsys.readouterr()
