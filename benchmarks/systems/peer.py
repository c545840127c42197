"""One training run of TRL, in an environment of its own: `python peer.py FOLDER SYSTEM STEPS THREADS REPORT [OPTION…]`.

Systems: dpo, ipo, kto, bradley_terry, sft. Options: compact (only completion positions reach the head, as TRL does by
itself where Triton is), precompute, sort (batches of similar length), judge (the reward model begins as the classifier
in judge/). Pairs come in the order in which prefopt's run meets them.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import resource
import sys
import time
import warnings
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
warnings.filterwarnings("ignore")


def main(folder: Path, system: str, steps: int, threads: int, report: Path, options: set[str]) -> None:
    import torch
    from datasets import Dataset, disable_progress_bars
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback

    torch.set_num_threads(threads)
    disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    order = json.loads((folder / "order.json").read_text())
    lines = (folder / "pairs.jsonl").read_text("utf-8").splitlines()
    pairs = [json.loads(lines[i]) for i in order][: steps * 8]
    if "sort" in options:
        pairs.sort(
            key=lambda row: max(
                len(tokenizer(row["prompt"] + row[side])["input_ids"]) for side in ("chosen", "rejected")
            )
        )
        batches = [pairs[i : i + 8] for i in range(0, len(pairs), 8)]
        random.Random(0).shuffle(batches)  # the shortest all at once would be the warm-up
        pairs = [row for batch in batches for row in batch]
    if "compact" in options:
        import trl.trainer.utils

        assert callable(trl.trainer.utils._use_triton), "TRL has renamed what chooses its head"
        trl.trainer.utils._use_triton = lambda device: True
    marks: list[float] = []
    losses: list[float] = []

    class Clock(TrainerCallback):
        def on_train_begin(self, *_: object, **__: object) -> None:
            marks.append(time.perf_counter())

        def on_step_end(self, *_: object, **__: object) -> None:
            marks.append(time.perf_counter())

        def on_log(self, args: object, state: object, control: object, logs: dict | None = None, **_: object) -> None:
            if logs and "loss" in logs:
                losses.append(logs["loss"])

    def causal() -> object:
        return AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)

    shared = {
        "output_dir": str(folder / "trl"),
        "per_device_train_batch_size": 8,
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
    given = {"processing_class": tokenizer, "callbacks": [Clock()]}
    if system in ("dpo", "ipo"):
        from trl import DPOConfig, DPOTrainer

        before = "precompute" in options
        kind = "sigmoid" if system == "dpo" else system
        config = DPOConfig(beta=0.1, loss_type=kind, precompute_ref_log_probs=before, **shared)
        reference = {} if before else {"ref_model": causal()}
        trainer = DPOTrainer(causal(), args=config, train_dataset=Dataset.from_list(pairs), **reference, **given)
    elif system == "kto":
        from trl import KTOConfig, KTOTrainer

        sides = (("chosen", True), ("rejected", False))
        rows = [{"prompt": r["prompt"], "completion": r[side], "label": good} for r in pairs for side, good in sides]
        config = KTOConfig(beta=0.1, **{**shared, "per_device_train_batch_size": 16})
        trainer = KTOTrainer(causal(), ref_model=causal(), args=config, train_dataset=Dataset.from_list(rows), **given)
    elif system == "bradley_terry":
        from trl import RewardConfig, RewardTrainer

        start = folder / ("judge" if "judge" in options else "model")
        model = AutoModelForSequenceClassification.from_pretrained(start, num_labels=1, dtype=torch.float32)
        trainer = RewardTrainer(model, args=RewardConfig(**shared), train_dataset=Dataset.from_list(pairs), **given)
    else:
        from trl import SFTConfig, SFTTrainer

        rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in pairs]
        trainer = SFTTrainer(causal(), args=SFTConfig(**shared), train_dataset=Dataset.from_list(rows), **given)
    began = time.perf_counter()
    trainer.train()
    found = {
        "seconds": [b - a for a, b in itertools.pairwise(marks)],
        "loss": losses,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "whole": time.perf_counter() - began,
    }
    report.write_text(json.dumps(found))


if __name__ == "__main__":
    place, name, count, cores, where, *chosen = sys.argv[1:]
    main(Path(place), name, int(count), int(cores), Path(where), set(chosen))
