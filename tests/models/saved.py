"""Models on disk as a person has them: a folder with weights and a tokenizer. And settings, with conf/'s defaults."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from prefopt.config import compose_request
from prefopt.errors import OK
from prefopt.jobs.train import train
from prefopt.settings import ModelSettings
from tests.toy import VOCAB, toy_model

SPECIAL = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}


def tokenizer(size: int = VOCAB, **special: str) -> PreTrainedTokenizerFast:
    """One word is one token; the first three are special."""
    words = [*SPECIAL.values(), *(f"w{i}" for i in range(size - 3))]
    whole = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="w0"))
    whole.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=whole, **{**SPECIAL, **special})


def saved_model(folder: Path, size: int = VOCAB, special: dict[str, str] | None = None, **options) -> str:
    """The toy Llama in float32 with its tokenizer; options as of `toy_model`."""
    toy_model(**{"dtype": torch.float32, **options}).save_pretrained(folder)
    tokenizer(size, **(special or {})).save_pretrained(folder)
    return str(folder)


def settings(option: str, name: str | None = None, *more: str) -> ModelSettings:
    """The section `model` of a request."""
    named = [f"model.name={name}"] if name else []
    return compose_request([f"model={option}", *named, *more]).settings.model


def pairs_file(folder: Path, rows: int = 24) -> Path:
    """Pairs in the words of `tokenizer`, a prompt each."""
    rng = random.Random(0)

    def text(low: int, high: int) -> str:
        return " ".join(f"w{rng.randrange(1, VOCAB - 3)}" for _ in range(rng.randint(low, high)))

    lines = [{"prompt": text(3, 6), "chosen": " " + text(2, 5), "rejected": " " + text(2, 5)} for _ in range(rows)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "pairs.jsonl"


def trained(folder: Path, *overrides: str) -> Path:
    """A finished run of a few steps on `pairs_file`."""
    fixed = [f"data.train={pairs_file(folder)}", "data=jsonl", "trainer.max_steps=4", "data.batch_size=8"]
    small = ["evaluation.prompts=2", "evaluation.samples_per_prompt=2", "evaluation.max_new_tokens=4"]
    run = [f"run_dir={folder / 'run'}", f"cache_dir={folder / 'cache'}", "debug=true", "trainer.accelerator=cpu"]
    assert train(compose_request([*fixed, *small, *run, *overrides])) == OK
    return folder / "run"
