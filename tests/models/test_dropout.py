"""A base draws nothing, wherever its family keeps its dropout, and so is the same network in training."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2ForSequenceClassification
from transformers.models.biogpt import BioGptConfig
from transformers.models.falcon import FalconConfig
from transformers.models.gpt_bigcode import GPTBigCodeConfig
from transformers.models.opt import OPTConfig
from transformers.models.starcoder2 import Starcoder2Config

from prefopt.models.build import load_base
from prefopt.models.dropout import dropouts
from prefopt.models.policy import Policy
from prefopt.models.reward import load_reward
from prefopt.scoring import sharing
from tests.models.saved import tokenizer
from tests.toy import VOCAB

SIZE = {"vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
LONG = {"max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
BIG_CODE = {"vocab_size": VOCAB, "n_positions": 64, "n_embd": 16, "n_layer": 2, "n_head": 2}
CONFIGS = {
    "numbers of a layer": OPTConfig(**SIZE, **LONG, ffn_dim=32, word_embed_proj_dim=16, attention_dropout=0.3),
    "layers left out": OPTConfig(**SIZE, **LONG, ffn_dim=32, word_embed_proj_dim=16, dropout=0.0, layerdrop=0.5),
    "numbers of attention": GPTBigCodeConfig(**BIG_CODE, attn_pdrop=0.3, resid_pdrop=0.0, embd_pdrop=0.0),
    "numbers by other names": Starcoder2Config(
        **SIZE, **LONG, intermediate_size=32, num_key_value_heads=1, residual_dropout=0.3, embedding_dropout=0.3
    ),
    "of a family's own": BioGptConfig(**SIZE, **LONG, intermediate_size=32),
    "some of each": FalconConfig(**SIZE, bos_token_id=1, eos_token_id=2, hidden_dropout=0.3, attention_dropout=0.3),
}
IDS = torch.arange(12)[None] % VOCAB


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_base_says_the_same_in_training(kind: str, tmp_path):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[kind]).train()
    said = [model(IDS, use_cache=False).logits for _ in range(8)]
    assert any(not torch.equal(said[0], other) for other in said), "it drops nothing: nothing is tested"
    model.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    policy = load_base(str(tmp_path), "float32").policy()
    with torch.no_grad():
        expected = policy.eval().causal(IDS, use_cache=False).logits
        policy.train()
        for _ in range(8):
            torch.testing.assert_close(policy.causal(IDS, use_cache=False).logits, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["numbers of a layer", "numbers of attention"])
def test_attention_that_drops_is_seen_before_training(kind: str):
    """In evaluation it passes for attention without: its first step would end in an error."""
    model = AutoModelForCausalLM.from_config(CONFIGS[kind])
    assert sharing.why_not(Policy(model)) == "the model drops attention out in training"


def test_a_judge_never_trains(tmp_path):
    torch.manual_seed(0)
    shape = {"vocab_size": VOCAB, "n_positions": 64, "n_embd": 16, "n_layer": 1, "n_head": 2}
    config = GPT2Config(**shape, bos_token_id=1, eos_token_id=2, pad_token_id=0, num_labels=1)
    GPT2ForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    assert sharing.why_not(load_reward(str(tmp_path)).policy) == ""


def test_what_is_no_probability_stays():
    """A flag, a name and a count that speak of dropping."""
    module = nn.Module()
    module.drop_last, module.drop_how, module.dropped, module.hidden_dropout = True, "all", 3, 0.5
    assert dropouts(module) == {"hidden_dropout": 0.5}
    assert dropouts(nn.Dropout(0.25)) == {"p": 0.25}
