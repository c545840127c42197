"""A forest against the textbook: every row alone, unpadded, through the model's own attention and whole logits."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from prefopt.models.build import load_base
from prefopt.models.policy import Policy
from prefopt.records import Batch
from prefopt.scoring import attention, forest, score, sharing
from prefopt.scoring.attention import attend, block_mask, tree_mask
from prefopt.scoring.forest import Forest, Tree, plant
from tests.models.saved import tokenizer
from tests.toy import VOCAB, textbook, toy_gpt2

pytestmark = pytest.mark.usefixtures("exact_rmsnorm")
EXACT = {"rtol": 0, "atol": 1e-12}
SMALL = {"vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 2, "initializer_range": 0.3}
ROTARY = {**SMALL, "intermediate_size": 24, "max_position_embeddings": 256}


def llama(**more) -> nn.Module:
    torch.manual_seed(0)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4}
    return LlamaForCausalLM(LlamaConfig(**{**ROTARY, **heads, **more})).double()


def lora() -> nn.Module:
    model = get_peft_model(llama(), LoraConfig(r=2, target_modules=["q_proj", "down_proj", "lm_head"])).double()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    return model


def qwen3() -> nn.Module:
    torch.manual_seed(0)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6}
    return Qwen3ForCausalLM(Qwen3Config(**ROTARY, **heads)).double()


MODELS = {
    "rotary": llama,
    "grouped heads": lambda: llama(num_key_value_heads=2),
    "one key head": lambda: llama(num_key_value_heads=1),
    "tied": lambda: llama(tie_word_embeddings=True),
    "learned positions": toy_gpt2,
    "heads of another size": qwen3,
    "lora": lora,
}
FORESTS = st.lists(
    st.tuples(st.integers(1, 9), st.lists(st.integers(1, 7), min_size=1, max_size=8), st.booleans()),
    min_size=1,
    max_size=4,
)


def batch_of(shape: list[tuple[int, list[int], bool]], seed: int = 0) -> Batch:
    """(prompt, completions, whether it is the prompt before again) to a batch whose rows lie in any order."""
    draw = torch.Generator().manual_seed(seed)
    ids = lambda n: torch.randint(0, VOCAB, (n,), generator=draw)  # noqa: E731
    prompts: list[torch.Tensor] = []
    rows = []
    for prompt, completions, again in shape:
        prompts.append(prompts[-1].clone() if again and prompts else ids(prompt))
        rows += [(len(prompts) - 1, ids(n)) for n in completions]
    order = torch.randperm(len(rows), generator=draw).tolist()
    return Batch.of("rollouts", prompts, [rows[i][1] for i in order], [rows[i][0] for i in order])


def gradients(model: nn.Module, rows: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Of a sum in which every token has a weight of its own."""
    total = sum((row * torch.arange(1, len(row) + 1).cos() * (i + 1)).sum() for i, row in enumerate(rows))
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(total, list(named.values()), allow_unused=True)
    return {name: grad for name, grad in zip(named, found, strict=True) if grad is not None}


@pytest.fixture(scope="module")
def models():
    return {name: make() for name, make in MODELS.items()}


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=12, deadline=None)
@given(
    shape=FORESTS,
    dense=st.sampled_from([0, 12, 640]),
    strip=st.sampled_from([3, 128]),
    room=st.sampled_from([16, 4096]),
)
def test_rows_are_what_they_are_alone(name, shape, dense, strip, room, models):
    """Log-probs and every gradient, by blocks, by merged flash attention, and where both stand in one forest."""
    model, rows = models[name], batch_of(shape)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "DENSE", dense)
        patch.setattr(attention, "STRIP", strip)
        patch.setattr(forest, "ROOM", room)
        policy = Policy(model)
        assert sharing.why_not(policy) == "", "its rows would be scored one by one"
        scores = score(policy, rows)
    expected = textbook(model, rows)[0]
    own = [scores.logps[i][scores.mask[i]] for i in range(len(rows))]
    for mine, theirs in zip(own, expected, strict=True):
        torch.testing.assert_close(mine, theirs, **EXACT)
    mine, theirs = gradients(model, own), gradients(model, expected)
    assert mine.keys() == theirs.keys()
    for parameter, grad in mine.items():
        torch.testing.assert_close(grad, theirs[parameter], rtol=1e-10, atol=1e-10, msg=parameter)


def test_single_precision():
    """5e-5 of each tensor's size: what is asked of float32."""
    model, rows = llama(num_key_value_heads=2).float(), batch_of([(9, [7, 4], False), (3, [2, 5, 1], False)])
    scores = score(Policy(model), rows)
    mine = gradients(model, [scores.logps[i][scores.mask[i]] for i in range(len(rows))])
    theirs = gradients(model, textbook(model, rows)[0])
    for name, grad in mine.items():
        assert float((grad - theirs[name]).norm() / theirs[name].norm()) < 5e-5, name


TREES = (Tree(0, 3, (2, 4)), Tree(9, 1, (1,)), Tree(11, 4, (3, 2, 5)), Tree(25, 7, ()))


def test_mask_of_a_tree():
    """By hand: prompt of one token, branches of two and one."""
    may = tree_mask(1, (2, 1), torch.float32) == 0
    assert may.int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 1]]


def test_flex_attention_sees_the_same():
    """The mask that a GPU is given, run by FlexAttention's own reference on a CPU."""
    torch.manual_seed(0)
    rows = Forest(torch.zeros(1, 32, dtype=torch.long), torch.zeros(1, 32, dtype=torch.long), TREES)
    q, k, v = torch.randn(1, 4, 32, 16), torch.randn(1, 2, 32, 16), torch.randn(1, 2, 32, 16)
    mine = attend(nn.Module(), q, k, v, None, forest=rows)[0].transpose(1, 2)
    theirs = attention._flex(q, k, v, 0.25, rows)
    torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-6)
    assert block_mask(rows, q.device) is block_mask(rows, q.device)


def test_how_trees_are_packed(monkeypatch):
    """Small ones first, in as few forests as the room allows; the last tree fills up to the multiple."""
    monkeypatch.setattr(forest, "ROOM", 12)
    monkeypatch.setattr(forest, "ROUND", 4)
    rows = batch_of([(3, [2, 2], False), (1, [1], False), (2, [9, 9], False), (2, [3], False)])
    planted = plant(rows)
    sizes = [[tree.size for tree in one.trees] for one in planted.forests]
    assert sizes == [[2, 5, 1], [7, 1], [20]]
    flat = torch.cat([one.ids[0] for one in planted.forests])
    for group, prompt in enumerate(rows.prompts()):
        at = int(planted.prompt_at[group])
        assert flat[at : at + len(prompt)].tolist() == prompt.tolist()
    positions = torch.cat([one.positions[0] for one in planted.forests])
    for row, completion in enumerate(rows.completions()):
        at, size = int(planted.completion_at[row]), int(rows.prompt_lengths[rows.group[row]])
        assert flat[at : at + len(completion)].tolist() == completion.tolist()
        assert positions[at : at + len(completion)].tolist() == list(range(size, size + len(completion)))


class TestFallback:
    """A model that cannot share prompts is scored row by row, and says so once."""

    def scored(self, model: nn.Module) -> None:
        rows = batch_of([(5, [3, 2], False), (2, [6], False)])
        scores = score(Policy(model), rows)
        for i, own in enumerate(textbook(model, rows)[0]):
            torch.testing.assert_close(scores.logps[i][scores.mask[i]], own, **EXACT)

    def test_said_once(self, capsys):
        model = llama(attention_dropout=0.1).eval()
        self.scored(model)
        self.scored(deepcopy(model))
        assert capsys.readouterr().err.count("padded: the model drops attention out in training") == 1

    @pytest.mark.parametrize("asked", [{"dropout": 0.1}, {"softcap": 30.0}, {"s_aux": torch.zeros(2)}])
    def test_what_attention_does_not_do(self, asked):
        rows = Forest(torch.zeros(1, 32, dtype=torch.long), torch.zeros(1, 32, dtype=torch.long), TREES)
        q = torch.randn(1, 2, 32, 8)
        with pytest.raises(attention.Unsupported, match="dropout, a soft cap, sinks"):
            attend(nn.Module(), q, q, q, None, forest=rows, **asked)

    def test_layers_that_are_no_attention(self):
        model = llama()
        model.config.layer_types = ["linear_attention", "full_attention"]
        assert "layers of the kind linear_attention" in sharing.why_not(Policy(model))

    def test_layers_that_swallow_what_they_are_given(self, monkeypatch):
        model = llama()
        attention_module = model.model.layers[0].self_attn
        monkeypatch.setattr(attention_module, "forward", _forgetful(attention_module.forward))
        assert "do not pass on" in sharing.why_not(Policy(model))

    def test_positions_that_are_not_read(self, monkeypatch):
        model = llama()
        rotary = model.model.rotary_emb
        forward = rotary.forward
        monkeypatch.setattr(
            rotary, "forward", lambda x, position_ids: forward(x, torch.arange(x.shape[1])[None].expand(len(x), -1))
        )
        assert "differ from those of its rows" in sharing.why_not(Policy(model))

    def test_short_windows(self):
        model = llama()
        model.config.sliding_window = 6
        policy = Policy(model)
        assert sharing.shares_prompts(policy, 6)
        assert not sharing.shares_prompts(policy, 7)
        model.config.use_sliding_window = False
        assert sharing.shares_prompts(policy, 7)


def _forgetful(forward):
    def inner(*arguments, forest=None, **keywords):
        return forward(*arguments, **keywords)

    return inner


def test_a_bases_dropout_is_off_whatever_its_configuration_says(tmp_path):
    """GPT-2's default drops attention out; a base is loaded without, and shares its prompts."""
    torch.manual_seed(0)
    shape = {"vocab_size": VOCAB, "n_positions": 64, "n_embd": 16, "n_layer": 1, "n_head": 2}
    model = GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=1, eos_token_id=2))
    assert model.config.attn_pdrop == 0.1
    assert sharing.why_not(Policy(model)) == "the model drops attention out in training"
    model.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    assert sharing.why_not(load_base(str(tmp_path), "float32").policy()) == ""
