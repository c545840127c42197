"""One training run of prefopt through its own command: `python ours.py FOLDER LOSS STEPS THREADS REPORT OVERRIDE…`."""

from __future__ import annotations

import csv
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any


class Work:
    """Seconds of a step that any loop would spend: scoring, the objective, backward, clipping and the optimiser. What
    is left of the step is Lightning's, the loading's, the logging's and the metrics'."""

    def __init__(self) -> None:
        self.spent, self.began, self.shares = 0.0, 0.0, list[float]()

    def watch(self) -> None:
        import torch

        from prefopt.module import PreferenceModule
        from prefopt.objectives import Objective

        for owner, name in (
            (PreferenceModule, "score"),
            (Objective, "all_terms"),
            (torch.Tensor, "backward"),
            (torch.nn.utils, "clip_grad_norm_"),
        ):
            setattr(owner, name, self._timed(getattr(owner, name)))
        torch.optim.AdamW.step = self._stepped(torch.optim.AdamW.step)  # type: ignore[method-assign]

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self.spent += time.perf_counter() - began

        return timed

    def _stepped(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """Lightning hands the optimiser the whole step as a closure, whose time is not its own."""

        def stepped(optimizer: Any, closure: Callable[[], Any] | None = None) -> Any:
            inside = 0.0

            def closed() -> Any:
                nonlocal inside
                began = time.perf_counter()
                found = closure() if closure else None
                inside = time.perf_counter() - began
                return found

            began = time.perf_counter()
            found = step(optimizer, closed)
            ended = time.perf_counter()
            self.spent += ended - began - inside
            if self.began:
                self.shares.append(1 - self.spent / (ended - self.began))
            self.began, self.spent = ended, 0.0
            return found

        return stepped


def main(folder: Path, loss: str, steps: int, threads: int, report: Path, more: list[str]) -> None:
    import torch

    torch.set_num_threads(threads)
    from prefopt.scoring import sharing
    from prefopt.train import main as train

    work = Work()
    work.watch()
    assert callable(sharing.why_not)
    assert callable(sharing.fused)
    if "padded" in more:
        sharing.why_not = lambda policy: "the benchmark asks for padding"
    if "unfused" in more:
        sharing.fused = nullcontext
    more = [override for override in more if override not in ("padded", "unfused")]

    with tempfile.TemporaryDirectory() as place:
        run = Path(place, "run")
        model = [] if any(override.startswith("model=") for override in more) else ["model=hf"]
        sys.argv = ["prefopt.train", f"loss={loss}", *model, f"model.name={folder / 'model'}", "data=jsonl"]
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
        "beside": work.shares,  # of each step after the first, what is not work
    }
    report.write_text(json.dumps(found))


if __name__ == "__main__":
    place, name, count, cores, where, *overrides = sys.argv[1:]
    main(Path(place), name, int(count), int(cores), Path(where), overrides)
