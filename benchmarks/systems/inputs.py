"""What every system is given: the same pairs, tokenizer and first weights."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

MAX_LENGTH = 512
VOCABULARY = 8192
SHAPES = {
    "small": {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 6},
    "deep": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 14,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    },
}
TURN = "\n\nAssistant:"


def make(folder: Path, source: Path, shape: str, pairs: int, seed: int) -> int:
    """folder/{tokenizer and model in model/, pairs.jsonl, held-out.jsonl}. Rows that are longer than MAX_LENGTH are
    left out, so that nobody truncates. Returns how many pairs there are, at most as many as were asked for."""
    import torch

    with gzip.open(source, "rt", encoding="utf-8") as lines:
        rows = [_pair(json.loads(line)) for line in lines]
    rows = [row for row in rows if row is not None]
    tokenizer = _tokenizer([row["prompt"] + row["chosen"] + "\n" + row["rejected"] for row in rows])
    random.Random(seed).shuffle(rows)
    fitting = [row for row in rows if _length(tokenizer, row) <= MAX_LENGTH]
    torch.manual_seed(seed)
    ends = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    config = LlamaConfig(
        **SHAPES[shape], **ends, vocab_size=VOCABULARY, tie_word_embeddings=True, initializer_range=0.04
    )
    model = LlamaForCausalLM(config)
    model.generation_config.pad_token_id = 0
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    held_out = 16
    trained = fitting[: -2 * held_out][:pairs]
    _write(folder / "pairs.jsonl", trained)
    _write(folder / "held-out.jsonl", fitting[-held_out:])
    _write(folder / "held-out-2.jsonl", fitting[-2 * held_out : -held_out])
    return len(trained)


def lengths(folder: Path) -> list[int]:
    """Of every pair in folder/pairs.jsonl the longer side's tokens."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "model")
    return [_length(tokenizer, json.loads(line)) for line in (folder / "pairs.jsonl").read_text("utf-8").splitlines()]


def make_judge(folder: Path, seed: int) -> None:
    """folder/judge/: the model of folder/model/ as a sequence classifier, its head near 0."""
    import torch
    from transformers import LlamaForSequenceClassification

    judge = LlamaForSequenceClassification.from_pretrained(folder / "model", num_labels=1)
    torch.manual_seed(seed)
    torch.nn.init.normal_(judge.score.weight, std=1 / (judge.config.hidden_size + 1))
    judge.save_pretrained(folder / "judge")
    for file in (folder / "model").glob("*token*"):
        (folder / "judge" / file.name).write_bytes(file.read_bytes())


def _pair(row: dict[str, str]) -> dict[str, str] | None:
    chosen, rejected = row["chosen"], row["rejected"]
    shared = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), 0)
    turn = chosen[:shared].rfind(TURN)
    end = turn + len(TURN)
    if turn < 0 or not chosen[end:].strip() or not rejected[end:].strip():
        return None
    return {"prompt": chosen[:end], "chosen": chosen[end:], "rejected": rejected[end:]}


def _tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<pad>", "<eos>", "<bos>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>")


def _length(tokenizer: PreTrainedTokenizerFast, row: dict[str, str]) -> int:
    sides = (row["prompt"] + row["chosen"], row["prompt"] + row["rejected"])
    return max(len(tokenizer(side)["input_ids"]) + 1 for side in sides)


def _write(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
