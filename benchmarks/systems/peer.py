"""One training run of TRL, in an environment of its own: `python peer.py FOLDER SYSTEM STEPS THREADS REPORT [OPTION…]`.

Systems: dpo, ipo, kto, bradley_terry, sft. Options: compact (only completion positions reach the head, as TRL does by
itself where Triton is), precompute, sort (batches of similar length), judge (the reward model begins as the classifier
in judge/). Pairs come in the order in which prefopt's run meets them.
"""

from __future__ import annotations

import itertools
import json
import random
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import trl
from datasets import Dataset, disable_progress_bars
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback

PAIRS = 8  # a step
Row = dict[str, Any]


class Clock(TrainerCallback):
    """When training began and every step ended, and the losses."""

    def __init__(self) -> None:
        self.marks: list[float] = []
        self.losses: list[float] = []

    def on_train_begin(self, *_: object, **__: object) -> None:
        self.marks.append(time.perf_counter())

    def on_step_end(self, *_: object, **__: object) -> None:
        self.marks.append(time.perf_counter())

    def on_log(self, args: object, state: object, control: object, logs: Row | None = None, **_: object) -> None:
        if logs and "loss" in logs:
            self.losses.append(logs["loss"])


def settings(folder: Path, rows: int = PAIRS) -> Row:
    """rows: of a step."""
    return {
        "output_dir": str(folder / "trl"),
        "per_device_train_batch_size": rows,
        "num_train_epochs": 1,
        "max_length": 512,
        "bf16": False,
        "fp16": False,
        "gradient_checkpointing": False,
        "learning_rate": 1e-5,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "train_sampling_strategy": "sequential",
        "seed": 0,
    }


def causal(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)


def dpo(folder: Path, pairs: list[Row], options: set[str], loss_type: str = "sigmoid", **given: Any) -> Any:
    before = "precompute" in options
    config = trl.DPOConfig(beta=0.1, loss_type=loss_type, precompute_ref_log_probs=before, **settings(folder))
    reference = {} if before else {"ref_model": causal(folder)}
    return trl.DPOTrainer(causal(folder), args=config, train_dataset=Dataset.from_list(pairs), **reference, **given)


def ipo(folder: Path, pairs: list[Row], options: set[str], **given: Any) -> Any:
    return dpo(folder, pairs, options, "ipo", **given)


def kto(folder: Path, pairs: list[Row], options: set[str], **given: Any) -> Any:
    sides = (("chosen", True), ("rejected", False))
    rows = [{"prompt": r["prompt"], "completion": r[side], "label": good} for r in pairs for side, good in sides]
    config = trl.KTOConfig(beta=0.1, **settings(folder, 2 * PAIRS))
    models = {"model": causal(folder), "ref_model": causal(folder)}
    return trl.KTOTrainer(**models, args=config, train_dataset=Dataset.from_list(rows), **given)


def bradley_terry(folder: Path, pairs: list[Row], options: set[str], **given: Any) -> Any:
    start = folder / ("judge" if "judge" in options else "model")
    model = AutoModelForSequenceClassification.from_pretrained(start, num_labels=1, dtype=torch.float32)
    config = trl.RewardConfig(**settings(folder))
    return trl.RewardTrainer(model, args=config, train_dataset=Dataset.from_list(pairs), **given)


def sft(folder: Path, pairs: list[Row], options: set[str], **given: Any) -> Any:
    rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in pairs]
    config = trl.SFTConfig(**settings(folder))
    return trl.SFTTrainer(causal(folder), args=config, train_dataset=Dataset.from_list(rows), **given)


SYSTEMS: dict[str, Callable[..., Any]] = {f.__name__: f for f in (dpo, ipo, kto, bradley_terry, sft)}


def met(folder: Path, pairs: int) -> list[Row]:
    """The first pairs that prefopt's run meets, in its order."""
    order = json.loads((folder / "order.json").read_text())
    lines = (folder / "pairs.jsonl").read_text("utf-8").splitlines()
    return [json.loads(lines[i]) for i in order][:pairs]


def by_length(pairs: list[Row], tokenizer: Any) -> list[Row]:
    """Steps of similar length, themselves in a random order: the shortest all at once would be the warm-up."""

    def longest(row: Row) -> int:
        return max(len(tokenizer(row["prompt"] + row[side])["input_ids"]) for side in ("chosen", "rejected"))

    ordered = sorted(pairs, key=longest)
    steps = [ordered[i : i + PAIRS] for i in range(0, len(ordered), PAIRS)]
    random.Random(0).shuffle(steps)
    return [row for step in steps for row in step]


def use_compact_head() -> None:
    """What TRL does by itself where Triton is."""
    import trl.trainer.utils as utils

    assert callable(utils._use_triton), "TRL has renamed what chooses its head"
    utils._use_triton = lambda device: True


def main(folder: Path, system: str, steps: int, threads: int, report: Path, options: set[str]) -> None:
    torch.set_num_threads(threads)
    disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    pairs = met(folder, steps * PAIRS)
    if "sort" in options:
        pairs = by_length(pairs, tokenizer)
    if "compact" in options:
        use_compact_head()
    clock = Clock()
    trainer = SYSTEMS[system](folder, pairs, options, processing_class=tokenizer, callbacks=[clock])
    began = time.perf_counter()
    trainer.train()
    found = {
        "seconds": [b - a for a, b in itertools.pairwise(clock.marks)],
        "loss": clock.losses,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "whole": time.perf_counter() - began,
    }
    report.write_text(json.dumps(found))


if __name__ == "__main__":
    place, name, count, cores, where, *chosen = sys.argv[1:]
    main(Path(place), name, int(count), int(cores), Path(where), set(chosen))
