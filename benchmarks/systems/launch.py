"""Starting a system in a process of its own, and what a result must say of where it was measured."""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).resolve().parents[1]
RESULTS = BENCHMARKS / "results"
TRL = "trl==1.16.0"
PEERS = BENCHMARKS.parent / ".venv-peers"


def preference_data() -> Path:
    """The HH-RLHF pairs; exits where they are not."""
    folder = os.environ.get("PREFOPT_TEST_DATA")
    if not folder:
        raise SystemExit("PREFOPT_TEST_DATA must name the folder that holds hh-harmless/train.jsonl.gz")
    return Path(folder, "hh-harmless", "train.jsonl.gz")


def peers_python(folder: Path) -> Path:
    """The python of an environment with TRL, made where it is missing."""
    python = folder / "bin" / "python"
    if not python.exists():
        constraints, was_there = str(BENCHMARKS.parent / "constraints.txt"), folder.exists()
        try:
            subprocess.run([sys.executable, "-m", "venv", folder], check=True)
            for packages in (["torch"], [TRL, "peft"]):
                subprocess.run([python, "-m", "pip", "install", "--quiet", "-c", constraints, *packages], check=True)
        except (subprocess.CalledProcessError, OSError):
            if not was_there:
                shutil.rmtree(folder, ignore_errors=True)  # half an environment would pass for one
            raise
    return python


def launch(
    kind: str, folder: Path, arguments: Sequence[str], steps: int, threads: int, peers: Path | None = None
) -> dict[str, Any]:
    """The report of systems/KIND.py: seconds and loss of every step, peak bytes. Exits where it fails."""
    python = str(peers) if kind == "peer" else sys.executable
    report = folder / "report.json"
    report.unlink(missing_ok=True)
    system, *options = arguments
    command = [python, str(BENCHMARKS / "systems" / f"{kind}.py"), str(folder), system, str(steps)]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    paths = [str(BENCHMARKS.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(paths) if kind == "ours" else ""
    done = subprocess.run(
        [*command, str(threads), str(report), *options], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode or not report.exists():
        raise SystemExit(f"{kind} {system} failed:\n{done.stderr[-3000:]}")
    return json.loads(report.read_text())


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def where(threads: int, peers: Path | None = None) -> dict[str, Any]:
    """Hardware and versions."""
    found = {name: version(name) for name in ("prefopt", "torch", "transformers", "lightning")}
    if peers is not None:
        ask = "from importlib.metadata import version as v; print(v('trl'), v('transformers'), v('torch'))"
        told = subprocess.run([str(peers), "-c", ask], capture_output=True, text=True, check=True).stdout.split()
        found |= dict(zip(("trl", "trl's transformers", "trl's torch"), told, strict=True))
    versions = {"python": platform.python_version(), **found}
    return {"hardware": f"{processor()}, {threads} threads", "versions": versions}


def processor() -> str:
    """Its name, where the system tells; else its kind."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def save(name: str, report: dict[str, Any]) -> None:
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n", "utf-8")
