"""prefopt against TRL on the same pairs, tokens, weights and batches: seconds of a step, peak memory, ratios.

    PREFOPT_TEST_DATA=… python benchmarks/speed.py [--shape small|deep] [--rounds 3] [--steps 12] [--peers DIR]

Every system runs in a process of its own, all of them in turn, round after round; the first two steps of a process warm
it up and are not counted. A round's time is the mean of the others, which is what an epoch costs whatever the order of
lengths. Ratios are taken within a round, so that a machine that slows down slows both; reported are medians and ranges
over the rounds. «reference stored» is a step whose reference has been computed, as TRL's precomputed is. TRL is
installed into an environment of its own on the first run (--peers). The results go to
benchmarks/results/speed-SHAPE[-NAME].json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.systems.inputs import lengths, make
from benchmarks.systems.launch import PEERS, launch, peers_python, preference_data, save, spread, where
from prefopt.data.loader import Plan

WARM = 2
LIVE, STORED = "model.reference_store=false", "model.reference_store=true"
# In the order of the ladder: what each technique adds to the textbook's loop.
SYSTEMS: dict[str, tuple[str, ...]] = {
    "naive dpo": ("bare", "dpo"),
    "dpo, padded rows": ("ours", "dpo", LIVE, "padded"),
    "dpo, the library's norms": ("ours", "dpo", LIVE, "unfused"),
    "dpo": ("ours", "dpo", LIVE),
    "dpo, reference stored": ("ours", "dpo", STORED),
    "floor": ("bare", "floor"),
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
}
RATIOS = (
    ("TRL dpo", "dpo"),
    ("TRL dpo, compact", "dpo"),
    ("TRL dpo, compact, precomputed, sorted", "dpo, reference stored"),
    ("naive dpo", "dpo"),
    ("naive dpo", "dpo, padded rows"),
    ("dpo, padded rows", "dpo"),
    ("dpo, the library's norms", "dpo"),
    ("dpo", "dpo, reference stored"),
    ("TRL kto", "kto"),
    ("TRL reward", "bradley_terry"),
    ("TRL sft", "sft"),
    ("naive orpo", "orpo"),
    ("floor", "dpo, reference stored"),
)


def main() -> None:
    asked = _asked()
    source = preference_data()
    chosen = [name for name in SYSTEMS if not asked.systems or name in asked.systems.split(";")]
    if asked.heaviest and any(SYSTEMS[name][0] == "ours" for name in chosen):
        sys.exit("--heaviest: prefopt's own systems have the order of their seed; name others in --systems")
    peers = peers_python(asked.peers) if any(SYSTEMS[name][0] == "peer" for name in chosen) else None
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in chosen}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        pairs = make(folder, source, asked.shape, 8 * asked.steps, seed=0)  # passed over again where they are too few
        steps = [Plan(pairs, 8, asked.steps, 0).step(number) for number in range(asked.steps)]
        if asked.heaviest:
            longest = lengths(folder)
            steps = sorted(steps, key=lambda rows: -max(longest[row] for row in rows))[: asked.heaviest]
        (folder / "order.json").write_text(json.dumps([row for rows in steps for row in rows]))
        for number in range(asked.rounds):
            for name in chosen:
                kind, *arguments = SYSTEMS[name]
                found[name].append(launch(kind, folder, arguments, len(steps), asked.threads, peers))
                took = statistics.mean(found[name][-1]["seconds"][WARM:])
                print(f"round {number + 1}  {name:40} {took:.3f} s a step", flush=True)
    report = _report(found, asked) | where(asked.threads, peers)
    save("-".join(part for part in ("speed", asked.shape, asked.name) if part), report)
    _print(report)


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", default="small", choices=("small", "deep"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--heaviest",
        type=int,
        help="of the steps only so many with the longest rows: what they peak at, all of them reach at least (not for "
        "prefopt's systems, which have the order of their seed)",
    )
    parser.add_argument("--systems", default="", help="names, between semicolons")
    parser.add_argument("--name", default="", help="of the results, where not all systems are asked")
    parser.add_argument("--peers", type=Path, default=PEERS)
    return parser.parse_args()


def _report(found: dict[str, list[dict[str, Any]]], asked: argparse.Namespace) -> dict[str, Any]:
    means = {name: [statistics.mean(run["seconds"][WARM:]) for run in runs] for name, runs in found.items()}
    ratios = {}
    for slow, fast in RATIOS:
        if slow in means and fast in means:
            ratios[f"{slow} / {fast}"] = spread([a / b for a, b in zip(means[slow], means[fast], strict=True)])
    return {
        "shape": asked.shape,
        "rounds": asked.rounds,
        "measured_steps": asked.rounds * ((asked.heaviest or asked.steps) - WARM),
        "heaviest": asked.heaviest,
        "seconds_per_step": {name: spread(times) for name, times in means.items()},
        "pairs_per_second": {name: 8 / statistics.median(times) for name, times in means.items()},
        "peak_bytes": {name: max(run["peak"] for run in runs) for name, runs in found.items()},
        "ratios": ratios,
        "beside": {
            name: spread([statistics.median(run["beside"][WARM - 1 :]) for run in runs])
            for name, runs in found.items()
            if runs[0].get("beside")
        },
        "seconds": {name: [run["seconds"] for run in runs] for name, runs in found.items()},
        "loss": {name: runs[0]["loss"][:10] for name, runs in found.items() if runs[0]["loss"]},
    }


def _print(report: dict[str, Any]) -> None:
    print(f"{report['hardware']}; {report['versions']}; {report['measured_steps']} measured steps a system")
    for name, took in report["seconds_per_step"].items():
        rate, peak = report["pairs_per_second"][name], report["peak_bytes"][name] / 2**20
        spread_of = f"({took['least']:.3f} to {took['most']:.3f})"
        print(f"{name:40} {took['median']:7.3f} s {spread_of} {rate:6.2f} pairs/s {peak:6.0f} MiB")
    for name, share in report["beside"].items():
        print(f"{name:40} {share['median']:.1%} of a step is the loop's, the loading's, the logging's and the metrics'")
    for name, ratio in report["ratios"].items():
        print(f"{name:62} {ratio['median']:6.2f} ({ratio['least']:.2f} to {ratio['most']:.2f})")


if __name__ == "__main__":
    main()
