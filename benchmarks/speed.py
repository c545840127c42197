"""prefopt against TRL on the same pairs, tokens, weights and batches: seconds of a step, peak memory, ratios.

    PREFOPT_TEST_DATA=… python benchmarks/speed.py [--shape small|deep|wide] [--rounds 3] [--steps 12] [--peers DIR]

Every system runs in a process of its own, all of them in turn, round after round; the first two steps of a process warm
it up and are not counted. A ratio is taken within a round, so that a machine that slows down slows both; reported are
its median and range over the rounds. TRL is installed into an environment of its own on the first run (--peers). The
results go to benchmarks/results/speed-SHAPE.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
WARM = 2
LIVE, STORED = "model.reference_store=false", "model.reference_store=true"
SYSTEMS: dict[str, tuple[str, ...]] = {
    "dpo": ("ours", "dpo", LIVE),
    "dpo, reference stored": ("ours", "dpo", STORED),
    "dpo, padded rows": ("ours", "dpo", LIVE, "padded"),
    "kto": ("ours", "kto", LIVE),
    "bradley_terry": ("ours", "bradley_terry"),
    "sft": ("ours", "sft"),
    "orpo": ("ours", "orpo"),
    "TRL dpo": ("peer", "dpo"),
    "TRL dpo, compact": ("peer", "dpo", "compact"),
    "TRL dpo, compact, precomputed, sorted": ("peer", "dpo", "compact", "precompute", "sort"),
    "TRL kto": ("peer", "kto"),
    "TRL reward": ("peer", "bradley_terry"),
    "TRL sft": ("peer", "sft"),
    "naive orpo": ("bare", "orpo"),
    "floor": ("bare", "floor"),
}
RATIOS = (
    ("TRL dpo", "dpo"),
    ("TRL dpo, compact", "dpo"),
    ("TRL dpo, compact, precomputed, sorted", "dpo, reference stored"),
    ("dpo, padded rows", "dpo"),
    ("TRL kto", "kto"),
    ("TRL reward", "bradley_terry"),
    ("TRL sft", "sft"),
    ("naive orpo", "orpo"),
    ("floor", "dpo, reference stored"),
)


def main() -> None:
    asked = _asked()
    source = Path(os.environ["PREFOPT_TEST_DATA"], "hh-harmless", "train.jsonl.gz")
    if str(HERE.parent) not in sys.path:
        sys.path.insert(0, str(HERE.parent))
    from benchmarks.systems.inputs import make
    from prefopt.data.loader import Plan

    chosen = [name for name in SYSTEMS if not asked.systems or name in asked.systems.split(",")]
    peers = _peers(asked.peers) if any(SYSTEMS[name][0] == "peer" for name in chosen) else None
    pairs = 8 * asked.steps
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in chosen}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make(folder, source, asked.shape, pairs, seed=0)
        order = [row for number in range(asked.steps) for row in Plan(pairs, 8, asked.steps, 0).step(number)]
        (folder / "order.json").write_text(json.dumps(order))
        for number in range(asked.rounds):
            for name in chosen:
                found[name].append(_run(name, folder, asked, peers))
                took = statistics.median(found[name][-1]["seconds"][WARM:])
                print(f"round {number + 1}  {name:40} {took:.3f} s a step", flush=True)
    report = _report(found, asked, peers)
    where = HERE / "results" / f"speed-{asked.shape}.json"
    where.parent.mkdir(exist_ok=True)
    where.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    _print(report)


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", default="small", choices=("small", "deep", "wide"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--systems", default="")
    parser.add_argument("--peers", type=Path, default=HERE.parent / ".venv-peers")
    return parser.parse_args()


def _peers(folder: Path) -> Path:
    """The python of an environment with TRL, made where it is missing."""
    python = folder / "bin" / "python"
    if not python.exists():
        constraints = str(HERE.parent / "constraints.txt")
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        for packages in (["torch"], ["trl", "peft"]):
            install = [python, "-m", "pip", "install", "--quiet", "-c", constraints, *packages]
            subprocess.run(install, check=True)
    return python


def _run(name: str, folder: Path, asked: argparse.Namespace, peers: Path | None) -> dict[str, Any]:
    kind, *rest = SYSTEMS[name]
    python = str(peers) if kind == "peer" else sys.executable
    report = folder / "report.json"
    report.unlink(missing_ok=True)
    command = [python, str(HERE / "systems" / f"{kind}.py"), str(folder), rest[0], str(asked.steps)]
    command += [str(asked.threads), str(report), *rest[1:]]
    environment = {**os.environ, "OMP_NUM_THREADS": str(asked.threads), "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = str(HERE.parent) if kind == "ours" else ""
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode or not report.exists():
        raise SystemExit(f"{name} failed:\n{done.stderr[-3000:]}")
    return json.loads(report.read_text())


def _report(found: dict[str, list[dict[str, Any]]], asked: argparse.Namespace, peers: Path | None) -> dict[str, Any]:
    medians = {name: [statistics.median(run["seconds"][WARM:]) for run in runs] for name, runs in found.items()}
    ratios = {}
    for slow, fast in RATIOS:
        if slow in medians and fast in medians:
            ratios[f"{slow} / {fast}"] = _spread([a / b for a, b in zip(medians[slow], medians[fast], strict=True)])
    return {
        "hardware": f"{_processor()}, {asked.threads} threads",
        "versions": _versions(peers),
        "shape": asked.shape,
        "rounds": asked.rounds,
        "measured_steps": asked.rounds * (asked.steps - WARM),
        "seconds_per_step": {name: _spread(times) for name, times in medians.items()},
        "peak_bytes": {name: max(run["peak"] for run in runs) for name, runs in found.items()},
        "ratios": ratios,
        "loss": {name: runs[0]["loss"][:10] for name, runs in found.items() if runs[0]["loss"]},
    }


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def _versions(peers: Path | None) -> dict[str, str]:
    own = {name: version(name) for name in ("prefopt", "torch", "transformers", "lightning")}
    if peers is not None:
        ask = "from importlib.metadata import version as v; print(v('trl'), v('transformers'), v('torch'))"
        told = subprocess.run([str(peers), "-c", ask], capture_output=True, text=True, check=True).stdout.split()
        own |= dict(zip(("trl", "trl's transformers", "trl's torch"), told, strict=True))
    return {"python": platform.python_version(), **own}


def _processor() -> str:
    names = [line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def _print(report: dict[str, Any]) -> None:
    print(f"{report['hardware']}; {report['versions']}; {report['measured_steps']} measured steps a system")
    for name, took in report["seconds_per_step"].items():
        peak = report["peak_bytes"][name] / 2**20
        print(f"{name:40} {took['median']:7.3f} s ({took['least']:.3f} to {took['most']:.3f}) {peak:7.0f} MiB")
    for name, ratio in report["ratios"].items():
        print(f"{name:62} {ratio['median']:6.2f} ({ratio['least']:.2f} to {ratio['most']:.2f})")


if __name__ == "__main__":
    main()
