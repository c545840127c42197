"""Ten steps of prefopt and of TRL from the same weights on the same rows: do their losses agree?

    PREFOPT_TEST_DATA=… python benchmarks/curves.py [--peers DIR]

DPO, IPO (TRL's is normalised by length: preset=ipo_trl) and Bradley-Terry, whose head both take from one classifier.
Prints the largest difference of any step's loss, beside how far the loss itself moved. The results go to
benchmarks/results/curves.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.systems.inputs import make, make_judge
from benchmarks.systems.launch import PEERS, launch, peers_python, preference_data, save, where
from prefopt.data.loader import Plan

STEPS = 10
OURS = {
    "dpo": ("dpo",),
    "ipo": ("ipo", "preset=ipo_trl"),
    "bradley_terry": ("bradley_terry", "model.name={judge}"),
}
THEIRS = {"dpo": ("dpo",), "ipo": ("ipo",), "bradley_terry": ("bradley_terry", "judge")}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--peers", type=Path, default=PEERS)
    asked = parser.parse_args()
    peers = peers_python(asked.peers)
    source = preference_data()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make(folder, source, "small", 8 * STEPS, seed=0)
        make_judge(folder, seed=0)
        order = [row for number in range(STEPS) for row in Plan(8 * STEPS, 8, STEPS, 0).step(number)]
        (folder / "order.json").write_text(json.dumps(order))
        for loss in OURS:
            arguments = [argument.format(judge=folder / "judge") for argument in OURS[loss]]
            own = launch("ours", folder, arguments, STEPS, asked.threads)["loss"]
            other = launch("peer", folder, THEIRS[loss], STEPS, asked.threads, peers)["loss"]
            worst = max(abs(a - b) for a, b in zip(own, other, strict=True))
            moved = max(own) - min(own)
            found[loss] = {"prefopt": own, "TRL": other, "largest difference": worst, "range of the loss": moved}
            print(f"{loss:14} largest difference {worst:.2g}; the loss moved by {moved:.2g}", flush=True)
    save("curves", found | where(asked.threads, peers))


if __name__ == "__main__":
    main()
