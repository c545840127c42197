"""Killed at any moment, in one process or two, a run is continued by the same command and ends as if nothing had been.

The moments are drawn from the measured duration of the whole run: start-up, the reference's pass, steps, saves,
evaluation, sampling, writing the model. PREFOPT_KILL_SEED=7 draws others.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from prefopt.errors import INTERRUPTED, OK
from tests.test_resume import SPEAKING, STEPS, command, read

LOSSES = ("sft", "dpo", "kto", "bradley_terry", "ppo")
SEED = os.environ.get("PREFOPT_KILL_SEED", "0")
RANKS = {1: [], 2: ["strategy=ddp", "trainer.devices=2", "trainer.accelerator=cpu"]}
END = 180  # seconds in which a run that has lost a rank, or is asked to end, must have ended


@dataclass
class Whole:
    """An uninterrupted run: how to start another, how long it took, and what it says."""

    command: list[str]
    seconds: float
    says: tuple
    folder: Path = field(repr=False)


def started(asked: list[str], log: Path) -> subprocess.Popen:
    with log.open("ab") as output:
        return subprocess.Popen(asked, stdout=output, stderr=output, env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"})


def ended(asked: list[str], log: Path) -> None:
    assert started(asked, log).wait(timeout=600) == OK, log.read_text()[-3000:]


def others_of(process: subprocess.Popen) -> list[int]:
    """The ranks that it has started."""
    with_children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(pid) for pid in with_children.read_text().split()] if with_children.exists() else []


@pytest.fixture(scope="module")
def whole(cache_dir, tmp_path_factory):
    """By method and number of ranks, each run once."""
    known: dict[tuple[str, int], Whole] = {}

    def of(loss: str, ranks: int) -> Whole:
        if (loss, ranks) not in known:
            folder = tmp_path_factory.mktemp(f"{loss}-{ranks}")
            more = [word for word in SPEAKING if "scale" not in word] if loss == "ppo" else []
            asked = [*more, *RANKS[ranks]]
            began = time.monotonic()
            ended(command(loss, folder / "whole", cache_dir, *asked), folder / "whole.log")
            seconds, says = time.monotonic() - began, everything(folder / "whole")
            assert len(says[0][1]) == STEPS
            known[loss, ranks] = Whole(command(loss, folder / "run", cache_dir, *asked), seconds, says, folder)
        return known[loss, ranks]

    return of


def everything(run: Path) -> tuple:
    kept = sorted(path.name for path in run.iterdir() if path.is_file() and path.name != ".lock")
    return read(run), (run / "test.jsonl").read_text(), kept


def again(whole: Whole, name: str) -> tuple[list[str], Path]:
    """The command in a folder of its own, and that folder."""
    run = whole.folder / name
    return [word if not word.startswith("run_dir=") else f"run_dir={run}" for word in whole.command], run


@pytest.mark.long
@pytest.mark.parametrize("draw", [0, 1])
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("loss", LOSSES)
def test_killed_at_a_random_moment(loss, ranks, draw, whole):
    """The main process or, of two, the other one. It may be over by then, which is a moment like any other."""
    chance = random.Random(f"{SEED} {loss} {ranks} {draw}")
    expected = whole(loss, ranks)
    asked, run = again(expected, f"killed-{draw}")
    log = expected.folder / f"killed-{draw}.log"
    moment, other = chance.uniform(0, expected.seconds), ranks > 1 and chance.random() < 0.4
    running = started(asked, log)
    time.sleep(moment)
    victims = others_of(running) if other else []
    for pid in victims or [running.pid]:
        os.kill(pid, signal.SIGKILL)
    code = running.wait(timeout=END)
    ended(asked, log)
    told = (
        f"{'rank 1' if victims else 'the main process'} killed after {moment:.1f} s of {expected.seconds:.1f}: {code}"
    )
    assert everything(run) == expected.says, told
    assert not [path for path in run.rglob(".*") if path.name != ".lock"], told


@pytest.mark.long
@pytest.mark.parametrize("draw", range(4))
def test_asked_to_end_at_a_random_moment(draw, whole):
    """SIGTERM to the main process of two: never a rank that waits for another."""
    expected = whole("dpo", 2)
    asked, run = again(expected, f"asked-{draw}")
    log = expected.folder / f"asked-{draw}.log"
    running = started(asked, log)
    time.sleep(expected.seconds * random.Random(f"{SEED} asked {draw}").uniform(0.25 * draw, 0.25 * draw + 0.25))
    others = others_of(running)
    running.send_signal(signal.SIGTERM)
    assert running.wait(timeout=END) in (INTERRUPTED, OK, -signal.SIGTERM)  # the last before anything was loaded
    deadline = time.monotonic() + END
    while any(Path(f"/proc/{pid}").exists() for pid in others) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in others if Path(f"/proc/{pid}").exists()]
    ended(asked, log)
    assert everything(run) == expected.says


# ---------------------------------------------------------------- a full disk


def small_disk(folder: Path, size: int) -> bool:
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        return subprocess.run(mount, capture_output=True).returncode == 0
    except OSError:
        return False


def once_more_as_root() -> None:
    nowhere = "no tmpfs can be mounted here, as root of a name space of one's own neither"
    if os.environ.get("PREFOPT_OWN_MOUNTS") or shutil.which("unshare") is None:
        pytest.skip(nowhere)
    test = [sys.executable, "-m", "pytest", "-m", "", "-rs", f"{__file__}::test_a_full_disk"]
    own = {**os.environ, "PREFOPT_OWN_MOUNTS": "1"}
    found = subprocess.run(["unshare", "-rm", *test], env=own, capture_output=True, text=True)
    if "SKIPPED" in found.stdout or found.stderr.startswith("unshare"):
        pytest.skip(nowhere)
    assert found.returncode == 0, found.stdout[-3000:]


@pytest.mark.long
def test_a_full_disk(cache_dir, tmp_path):
    """Exit 1, the reason in two lines, and a sound checkpoint; with room, the same command ends as it would have.

    Where mounting is not allowed, everything happens in a name space of its own, as its root.
    """
    if not small_disk(tmp_path / "probe", 1 << 20):
        return once_more_as_root()
    subprocess.run(["umount", str(tmp_path / "probe")], check=True)
    ended(command("dpo", tmp_path / "whole", cache_dir), tmp_path / "log")
    checkpoint = (tmp_path / "whole/checkpoints/last.ckpt").stat().st_size
    disk = tmp_path / "disk"
    assert small_disk(disk, 200 * checkpoint)
    try:
        asked = command("dpo", disk / "run", cache_dir)
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(200 * checkpoint - int(2.5 * checkpoint)))  # the third does not fit
        failed = subprocess.run(asked, capture_output=True, text=True, env=os.environ)
        assert failed.returncode == 1, failed.stderr[-3000:]
        said = failed.stderr.splitlines()
        assert said[-2].startswith("the run failed: OSError: [Errno 28] No space left on device"), failed.stderr
        assert str(disk / "run") in said[-1]
        assert "Traceback" not in failed.stderr
        assert "Exception ignored" not in failed.stderr
        assert sorted(os.listdir(disk / "run/checkpoints")) in (["last.ckpt"], ["last.ckpt", "previous.ckpt"])
        from prefopt.run.checkpoints import sound

        assert sound(disk / "run/checkpoints/last.ckpt")
        ballast.unlink()
        ended(asked, tmp_path / "log")
        assert json.loads((disk / "run/summary.json").read_text())["resumed_at"] != []
        assert everything(disk / "run") == everything(tmp_path / "whole")
    finally:
        subprocess.run(["umount", str(disk)])
