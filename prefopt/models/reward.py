"""Reward models as Hugging Face sequence classifiers, in and out."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

from prefopt.errors import RequestError
from prefopt.models.base import Base, explained
from prefopt.models.dropout import without_dropout
from prefopt.models.files import check_folder, check_weights, expanded, is_classifier, stored_tensor
from prefopt.models.policy import Policy
from prefopt.records import Batch
from prefopt.scoring.score import score

HEAD = "score.weight"  # [1, H]; what transformers calls the head of its decoders' classifiers
SCALAR = frozenset({"scalar"})


@dataclass(frozen=True)
class RewardModel:
    """`model(prompts, completions)`: one float32 reward per completion, read on its last token by length."""

    policy: Policy
    tokenizer: PreTrainedTokenizerBase

    @torch.no_grad()
    def __call__(self, prompts: list[Tensor], completions: list[Tensor], batch_size: int = 64) -> Tensor:
        """prompts, completions: n of each, ids of this model's tokenizer, the end of turn included. Returns [n]."""
        found = [torch.zeros(0, device=self.policy.device)]
        for i in range(0, len(prompts), batch_size):
            some, said = prompts[i : i + batch_size], completions[i : i + batch_size]
            batch = Batch.of("rollouts", some, said, list(range(len(some)))).to(self.policy.device)
            found.append(score(self.policy, batch, SCALAR).rewards)
        return torch.cat(found)


def load_reward(
    name: str, dtype: str = "float32", trust_remote_code: bool = False, key: str = "reward.name"
) -> RewardModel:
    """A sequence classifier with one label: a hub name or a folder."""
    name = expanded(name)
    check_folder(name, key)
    with explained(key, name):
        AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    check_weights(name, key)
    if not is_classifier(name, key):
        raise RequestError(f"{key}={name} is no reward model: its config names no …ForSequenceClassification")
    weight = score_weight(name, key)
    with explained(key, name):
        model = AutoModelForSequenceClassification.from_pretrained(
            name, dtype=getattr(torch, dtype), use_safetensors=True, trust_remote_code=trust_remote_code
        )
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    policy = Policy(without_dropout(model).requires_grad_(False), SCALAR).eval()
    _set_head(policy, weight)
    return RewardModel(policy.requires_grad_(False), tokenizer)


def score_weight(name: str, key: str) -> Tensor:
    """[1, H] the head of a stored classifier."""
    weight = stored_tensor(name, key, HEAD)
    if weight is None:
        raise RequestError(f"{key}={name}: no {HEAD} among its weights; only classifiers on decoders are read")
    if len(weight) != 1:
        raise RequestError(f"{key}={name} has {len(weight)} labels; a reward model has one")
    return weight


def init_from_classifier(policy: Policy, name: str, key: str) -> None:
    """A run that starts from a reward model goes on with its head."""
    if "scalar" in policy.heads and is_classifier(name, key):
        _set_head(policy, score_weight(name, key))


# ---------------------------------------------------------------- out


def savable_as_classifier(policy: Policy) -> bool:
    """Whether a policy is a reward model and nothing else, and transformers has a classifier for its architecture."""
    if set(policy.heads) != {"scalar"} or policy.speaks:
        return False
    return type(policy.causal.config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING


def save_classifier(folder: Path, policy: Policy, base: Base) -> None:
    """What AutoModelForSequenceClassification.from_pretrained loads with the same rewards, and its tokenizer.

    Self-contained: an adapter is merged, into what 4-bit weights stand for where the base was in 4 bits.
    """
    causal: Any = merged(policy, base) if policy.adapted else policy.causal
    tokenizer = copy.deepcopy(base.tokenizer)
    set_padding(tokenizer, policy.end_ids)
    config = copy.deepcopy(causal.config)
    config.num_labels = 1
    config.get_text_config().pad_token_id = config.pad_token_id = tokenizer.pad_token_id
    with torch.device("meta"):
        model: Any = AutoModelForSequenceClassification.from_config(config)
    model.base_model.load_state_dict(causal.base_model.state_dict(), assign=True)
    model.load_state_dict({HEAD: policy.heads["scalar"].state_dict()["weight"]}, strict=False, assign=True)
    if tokenizer.pad_token_id >= model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(tokenizer.pad_token_id + 1, mean_resizing=False)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def set_padding(tokenizer: PreTrainedTokenizerBase, end_ids: tuple[int, ...]) -> None:
    """transformers' classifiers read the last token that is no padding, so padding must not be what ends an answer: the
    tokenizer's own, else another special token, else a new one. Never a word: a text may end in it."""
    usual = (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id)
    added = (number for number, token in sorted(tokenizer.added_tokens_decoder.items()) if token.special)
    for candidate in (*usual, *added):
        if candidate is not None and candidate not in end_ids:
            tokenizer.pad_token_id = candidate
            return
    known = tokenizer.get_vocab()
    tokenizer.add_special_tokens({"pad_token": next(n for n in ("<pad>", "<|padding|>", "<|pad|>") if n not in known)})


def merged(policy: Policy, base: Base) -> PreTrainedModel:
    """The policy as one model in full precision: its adapter merged into a fresh copy of the base it trained on."""
    plain: Any = base.causal(quantised=False)
    with torch.no_grad():
        for name, weight in dequantised(policy.causal):
            plain.get_submodule(name).weight.copy_(weight)
    adapter = policy.model.active_adapter
    again = get_peft_model(plain, copy.deepcopy(policy.model.peft_config[adapter]))
    state = get_peft_model_state_dict(policy.model, save_embedding_layers=False)
    loaded: Any = set_peft_model_state_dict(again, state)
    unexpected = loaded.unexpected_keys
    if unexpected:
        raise RuntimeError(f"the merged model has no place for {unexpected[0]}")
    return again.merge_and_unload(safe_merge=True)


def dequantised(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Every 4-bit weight as the numbers it stands for, by the name of its module without an adapter."""
    found = []
    for name, parameter in model.named_parameters():
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            from bitsandbytes.functional import dequantize_4bit

            place = name.removesuffix(".weight").removesuffix(".base_layer")
            found.append((place, dequantize_4bit(parameter.data, state).cpu()))
    return found


def _set_head(policy: Policy, weight: Tensor) -> None:
    head: Any = policy.heads["scalar"]
    with torch.no_grad():
        head.weight.copy_(weight)
