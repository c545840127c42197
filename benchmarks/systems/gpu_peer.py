"""TRL's DPO at its best, in an environment of its own: `python gpu_peer.py FOLDER REPORT MODE STEPS…`.

Its reference is precomputed, its steps are of similar length, its head reads completion positions only (which it does
by itself on a GPU), nothing is recomputed in backward, and an adapter is in the base's precision. Attention is
flash_attn's where that can be imported, else torch's. Ids are given: its tokenizer has nothing to do.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import transformers
import trl
from datasets import Dataset, disable_progress_bars
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, TrainerCallback

from benchmarks.systems.gpu_common import (
    ENDS,
    Settings,
    Step,
    answer,
    causal,
    forget_peak,
    hardware,
    lora,
    low_precision_adapter,
    now,
    peak_bytes,
    read_steps,
)


class Clock(TrainerCallback):
    """When training began and every step was done, and the logged losses."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.marks: list[float] = []
        self.losses: list[float] = []

    def on_train_begin(self, *_: object, **__: object) -> None:
        forget_peak(self.device)
        self.marks.append(now(self.device))

    def on_step_end(self, *_: object, **__: object) -> None:
        self.marks.append(now(self.device))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.losses.append(logs["loss"])


class Given(trl.DPOTrainer):
    """What TRL would make of text is given."""

    def _prepare_dataset(self, dataset: Dataset, *_: object, **__: object) -> Dataset:
        return dataset


def arguments(settings: Settings, folder: Path, steps: list[Step]) -> Any:
    """Weights are in the settings' precision, so autocast has nothing to gain. The loss is logged once, at the end."""
    on_cpu, passes = settings.device == "cpu", 1 + settings.passes
    return trl.DPOConfig(
        beta=settings.beta,
        output_dir=str(folder),
        per_device_train_batch_size=len(steps[0]),
        num_train_epochs=passes,
        max_length=None,
        precompute_ref_log_probs=True,
        bf16=False,
        fp16=False,
        use_cpu=on_cpu,
        optim="adamw_torch" if on_cpu else "adamw_torch_fused",
        gradient_checkpointing=False,
        learning_rate=settings.lr,
        lr_scheduler_type="constant",
        logging_steps=passes * len(steps),
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        train_sampling_strategy="sequential",
        seed=settings.seed,
    )


def silent_tokenizer() -> PreTrainedTokenizerFast:
    """It knows how to pad and to end, which is all that is asked of it."""
    words = {"<pad>": ENDS["pad_token_id"], "<eos>": ENDS["eos_token_id"], "<bos>": ENDS["bos_token_id"]}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>")


def attention() -> str:
    return "flash_attention_2" if find_spec("flash_attn") else "sdpa"


def train(settings: Settings, mode: str, steps: list[Step]) -> dict[str, Any]:
    """seconds: of every step of every pass. loss: the mean over all of them, one number."""
    clock = Clock(settings.device)
    rows = [dict(zip(("prompt_ids", "chosen_ids", "rejected_ids"), pair, strict=True)) for s in steps for pair in s]
    more = {"peft_config": lora(settings)} if mode == "lora" else {}
    with tempfile.TemporaryDirectory() as place:
        trainer = Given(
            causal(settings, attention()),
            args=arguments(settings, Path(place), steps),
            train_dataset=Dataset.from_list(rows),
            processing_class=silent_tokenizer(),
            callbacks=[clock],
            **more,
        )
        low_precision_adapter(trainer.model, settings)
        trainer.train()
    took = [after - before for before, after in itertools.pairwise(clock.marks)]
    return {"seconds": took, "loss": clock.losses, "peak": peak_bytes(settings.device), "attention": attention()}


def main(folder: Path, mode: str, *names: str) -> dict[str, Any]:
    disable_progress_bars()
    settings = Settings.read(folder)
    found: dict[str, Any] = {name: train(settings, mode, read_steps(folder, name)) for name in names}
    return found | {
        "versions": {m.__name__: m.__version__ for m in (trl, transformers, torch)},
        "hardware": hardware(settings.device),
    }


if __name__ == "__main__":
    answer(main)
