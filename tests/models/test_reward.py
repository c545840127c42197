"""Reward models go out as Hugging Face sequence classifiers and come in as such, with the same rewards."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaForSequenceClassification,
    OPTConfig,
    OPTForCausalLM,
)

from prefopt.data.examples import Example
from prefopt.data.render import Renderer
from prefopt.errors import RequestError
from prefopt.models.build import build_policy, load_base, with_settings
from prefopt.models.policy import Policy
from prefopt.models.reward import (
    SCALAR,
    RewardModel,
    load_reward,
    savable_as_classifier,
    save_classifier,
    set_padding,
)
from prefopt.scoring import score
from tests.models.saved import saved_model, settings, tokenizer, trained
from tests.scoring.test_score import batch
from tests.toy import VOCAB, toy_model

PROMPTS = [[1, 5, 6, 7], [1, 8], [1, 2, 9, 4]]  # the last one holds an end-of-turn token in its prompt
ANSWERS = [[10, 2], [11, 12, 13, 14, 2], [15, 2]]


def tensors(rows: list[list[int]]) -> list[torch.Tensor]:
    return [torch.tensor(row) for row in rows]


def hugging_face_rewards(folder, left: bool = False) -> torch.Tensor:
    """As its documentation says: padded ids and a mask through the model's own forward."""
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert model.config.num_labels == 1
    words = AutoTokenizer.from_pretrained(folder)
    words.padding_side = "left" if left else "right"
    rows = [prompt + answer for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)]
    assert words.pad_token_id == model.config.pad_token_id
    padded = words.pad({"input_ids": rows}, return_tensors="pt")
    with torch.no_grad():
        return model(**padded).logits[:, 0]


def reward_policy(name: str, option: str, *more: str):
    made = settings(option, name, *more)
    base = with_settings(load_base(name, "float32"), made)
    policy = build_policy(base, made.adapter, SCALAR, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return base, policy.eval()


SAVED = {
    "whole": ("hf",),
    "lora": ("hf_lora",),
    "dora": ("hf_lora", "model.adapter.dora=true", "model.adapter.layers=[1]"),
    "biases and norms": ("hf_lora", "model.adapter.bias=all", "model.adapter.modules_to_save=[norm]"),
    "4-bit": ("hf_4bit", "model.quant.compute_dtype=float32"),
}


@pytest.mark.parametrize("padding", ["<pad>", "<eos>"])
@pytest.mark.parametrize("how", SAVED)
def test_saved_rewards_are_ours(tmp_path, how, padding):
    """To 1e-5, by transformers' own forward and by ours, an adapter merged; also where padding is what ends answers."""
    if "4bit" in SAVED[how][0]:
        pytest.importorskip("bitsandbytes")
    name = saved_model(tmp_path / "base", special={"pad_token": padding}, attention_bias=True, mlp_bias=True)
    base, policy = reward_policy(name, *SAVED[how])
    expected = RewardModel(policy, base.tokenizer)(tensors(PROMPTS), tensors(ANSWERS))
    assert expected.std() > 0.01
    assert savable_as_classifier(policy)
    save_classifier(tmp_path / "model", policy, base)
    for found in (
        hugging_face_rewards(tmp_path / "model"),
        load_reward(str(tmp_path / "model"))(tensors(PROMPTS), tensors(ANSWERS)),
    ):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    if padding == "<pad>":
        torch.testing.assert_close(hugging_face_rewards(tmp_path / "model", left=True), expected, rtol=0, atol=1e-5)


def test_rewards_are_read_by_length_whatever_stands_beside(tmp_path):
    """One by one, in one batch, and in batches of two."""
    name = saved_model(tmp_path / "base", special={"pad_token": "<eos>"})
    base, policy = reward_policy(name, "hf")
    model = RewardModel(policy, base.tokenizer)
    together = model(tensors(PROMPTS), tensors(ANSWERS))
    torch.testing.assert_close(model(tensors(PROMPTS), tensors(ANSWERS), batch_size=2), together, rtol=0, atol=1e-5)
    alone = [model(tensors([p]), tensors([a])) for p, a in zip(PROMPTS, ANSWERS, strict=True)]
    torch.testing.assert_close(torch.cat(alone), together, rtol=0, atol=1e-5)
    assert model([], []).shape == (0,)
    assert not together.requires_grad


def test_a_run_is_a_reward_model(tmp_path):
    """The rewards of held-out rows in val.jsonl, again from RUN/model; and a run that starts from that model."""
    name = saved_model(tmp_path / "base")
    (tmp_path / "first").mkdir()
    held_out = [f"data.{split}={tmp_path / split}.jsonl" for split in ("val", "test")]
    more = ("loss=bradley_terry", "model=hf_lora", "optimizer.lr=0.05", *held_out)
    row = {"prompt": "w3 w4", "chosen": " w5 w6", "rejected": " w7"}
    (tmp_path / "val.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({**row, "prompt": "w9"}) + "\n")
    (tmp_path / "test.jsonl").write_text(json.dumps({**row, "prompt": "w8"}) + "\n")
    run = trained(tmp_path / "first", f"model.name={name}", "trainer.max_steps=2", "data.batch_size=8", *more)
    rows = [json.loads(line) for line in (run / "val.jsonl").open()]
    expected = torch.tensor([row["reward"] for row in rows])
    model = load_reward(str(run / "model"))
    asked = [("w3 w4", "w9")[int(row["row"][0])] for row in rows]
    encode = Renderer(model.tokenizer).encode
    shown = [encode(Example(prompt=prompt, completions=(" w5 w6", " w7"), scores=(1.0, 0.0))) for prompt in asked]
    said = [row.completions[0 if rows[i]["chosen"] else 1] for i, row in enumerate(shown)]
    found = model([torch.tensor(row.prompt) for row in shown], [torch.tensor(answer) for answer in said])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert not (run / "model" / "heads.safetensors").exists()

    start = load_base(str(run / "model"), "float32")
    policy = build_policy(start, None, SCALAR, seed=5)
    torch.testing.assert_close(score(policy, batch(), SCALAR).rewards, score(model.policy, batch(), SCALAR).rewards)
    assert policy.heads["scalar"].weight.requires_grad


def test_a_classifier_from_elsewhere_starts_a_run(tmp_path):
    """Its head is the run's first head, whatever the seed; a seed of its own would draw another."""
    source = LlamaForSequenceClassification(_classifier(tmp_path, labels=1))
    source.save_pretrained(tmp_path / "rm")
    tokenizer().save_pretrained(tmp_path / "rm")
    base = load_base(str(tmp_path / "rm"), "float32")
    for adapter in (None, settings("hf_lora", str(tmp_path / "rm")).adapter):
        policy = build_policy(base, adapter, SCALAR, seed=1)
        stored = load_file(tmp_path / "rm" / "model.safetensors")["score.weight"]
        assert torch.equal(policy.heads["scalar"].weight, stored)
    found = RewardModel(policy, base.tokenizer)(tensors(PROMPTS), tensors(ANSWERS))
    torch.testing.assert_close(found, hugging_face_rewards(tmp_path / "rm"), rtol=0, atol=1e-5)
    with pytest.raises(RequestError, match="is a reward model without a language head, which this loss needs"):
        build_policy(base, None, frozenset({"lm"}), seed=0)


def _classifier(folder, labels: int):
    config = toy_model(dtype=torch.float32).config
    config.num_labels = labels
    return config


def test_what_is_no_reward_model(tmp_path):
    name = saved_model(tmp_path / "speaker")
    with pytest.raises(RequestError, match=r"reward.name=\S+ is no reward model"):
        load_reward(name)
    LlamaForSequenceClassification(_classifier(tmp_path, labels=2)).save_pretrained(tmp_path / "two")
    with pytest.raises(RequestError, match=r"reward.name=\S+ has 2 labels; a reward model has one"):
        load_reward(str(tmp_path / "two"))
    with pytest.raises(RequestError, match=r"no such folder; did you mean 'speaker'"):
        load_reward(str(tmp_path / "speakr"))


def test_what_is_saved_as_it_trained():
    """A critic, and a policy that speaks, are no classifiers."""
    assert not savable_as_classifier(Policy(toy_model(), frozenset({"lm", "scalar"})))
    assert not savable_as_classifier(Policy(toy_model(), frozenset({"value"})))
    assert savable_as_classifier(Policy(toy_model(), SCALAR))


def test_padding_never_ends_an_answer():
    """The tokenizer's own token; without one that may serve, another special one; else a new one, and never a word."""
    assert _padded(tokenizer(), (2,)) == 0
    assert _padded(tokenizer(pad_token="<eos>"), (2,)) == 1
    only_end = tokenizer(pad_token="<eos>", bos_token="<eos>")
    special = sorted(number for number, token in only_end.added_tokens_decoder.items() if token.special)
    assert _padded(only_end, tuple(special)) == 23 == len(only_end) - 1
    assert only_end.pad_token not in tokenizer().get_vocab()
    more = tokenizer(pad_token="<eos>", bos_token="<eos>")
    more.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    assert _padded(more, tuple(special)) == more.convert_tokens_to_ids("<turn>") == 23


def _padded(tokenizer, end_ids: tuple[int, ...]) -> int:
    set_padding(tokenizer, end_ids)
    return tokenizer.pad_token_id


def test_the_head_stays_in_float32(tmp_path):
    name = saved_model(tmp_path / "base", dtype=torch.bfloat16)
    base = load_base(name, "bfloat16")
    policy = build_policy(base, None, SCALAR, seed=0)
    save_classifier(tmp_path / "model", policy, base)
    model = load_reward(str(tmp_path / "model"), dtype="bfloat16")
    assert model.policy.heads["scalar"].weight.dtype == torch.float32
    assert torch.equal(model.policy.heads["scalar"].weight, policy.heads["scalar"].weight)
    assert torch.equal(
        model(tensors(PROMPTS), tensors(ANSWERS)),
        RewardModel(policy, base.tokenizer)(tensors(PROMPTS), tensors(ANSWERS)),
    )


def test_a_head_as_wide_as_the_states_that_it_reads():
    """OPT-350m's shape projects its last states to the width of the embeddings."""
    shape = {"vocab_size": VOCAB, "hidden_size": 16, "word_embed_proj_dim": 8, "ffn_dim": 32, "num_hidden_layers": 1}
    model = OPTForCausalLM(OPTConfig(**shape, num_attention_heads=2, max_position_embeddings=64, dropout=0.0))
    policy = Policy(model.eval(), SCALAR)
    assert policy.heads["scalar"].weight.shape == (1, 8)
    rows = batch()
    rewards = score(policy, rows, SCALAR).rewards
    ids = torch.cat((rows.prompts()[0], rows.completions()[0]))
    own = model.model(ids[None]).last_hidden_state[0, -1] @ policy.heads["scalar"].weight[0]
    torch.testing.assert_close(rewards[0], own, rtol=1e-4, atol=1e-6)
