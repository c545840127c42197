"""One training run of prefopt through its own command: `python ours.py FOLDER LOSS STEPS THREADS REPORT OVERRIDE…`."""

from __future__ import annotations

import csv
import itertools
import json
import sys
import tempfile
from pathlib import Path


def main(folder: Path, loss: str, steps: int, threads: int, report: Path, more: list[str]) -> None:
    import torch

    torch.set_num_threads(threads)
    from prefopt.scoring import sharing
    from prefopt.train import main as train

    if "padded" in more:
        more = [override for override in more if override != "padded"]
        assert callable(sharing.why_not)
        sharing.why_not = lambda policy: "the benchmark asks for padding"

    with tempfile.TemporaryDirectory() as place:
        run = Path(place, "run")
        sys.argv = ["prefopt.train", f"loss={loss}", "model=hf", f"model.name={folder / 'model'}", "data=jsonl"]
        sys.argv += [f"data.train={folder / 'pairs.jsonl'}", f"data.val={folder / 'held-out.jsonl'}"]
        sys.argv += [f"data.test={folder / 'held-out-2.jsonl'}", "data.prompts=text", "data.max_length=512"]
        sys.argv += ["data.batch_size=8", f"trainer.max_steps={steps}", "trainer.checkpoint_every=null"]
        sys.argv += ["evaluation.prompts=1", "evaluation.samples_per_prompt=1", "evaluation.max_new_tokens=1"]
        sys.argv += ["schedule=constant", "optimizer.lr=1e-5", f"cache_dir={place}/cache", f"run_dir={run}", *more]
        try:
            train()
        except SystemExit as end:
            if end.code:
                raise
        rows = list(csv.DictReader((run / "metrics.csv").open()))
        summary = json.loads((run / "summary.json").read_text())
    clock = [0.0] + [float(row["seconds"]) for row in rows]
    found = {
        "seconds": [after - before for before, after in itertools.pairwise(clock)],
        "loss": [float(row["loss"]) for row in rows],
        "peak": summary["peak_memory_bytes"],
    }
    report.write_text(json.dumps(found))


if __name__ == "__main__":
    place, name, count, cores, where, *overrides = sys.argv[1:]
    main(Path(place), name, int(count), int(cores), Path(where), overrides)
