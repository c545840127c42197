"""RMSNorm and rotary positions in few passes: the model's own numbers, and nothing left behind."""

from __future__ import annotations

import sys
import types
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.models.llama import modeling_llama

from prefopt.models.policy import Policy
from prefopt.records import Batch
from prefopt.scoring import fused, score, sharing
from tests.toy import RMSNORMS, VOCAB, toy_gpt2, toy_model

pytestmark = pytest.mark.usefixtures("exact_rmsnorm")
ROTARY = modeling_llama.apply_rotary_pos_emb
SMALL = {"vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rows() -> Batch:
    return Batch.of("rollouts", [torch.tensor([3, 4, 5])], [torch.tensor([6, 7]), torch.tensor([8])], [0, 0])


# ---------------------------------------------------------------- the functions


def test_rms_norm_by_hand():
    """(3, 4): mean square 12.5, root 3.5355. x̂ = (0.8485, 1.1314); under weights (1, 2) the second is 2.2627. For a
    gradient of (1, 0) mean(h · x̂) is 0.42426: ((1 - 0.36)/3.5355, -0.48/3.5355), and the weights' is (0.8485, 0)."""
    x = torch.tensor([3.0, 4.0], dtype=torch.float64, requires_grad=True)
    weight = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    found = fused.rms_norm(x, weight, 0.0)
    root = 12.5**0.5
    torch.testing.assert_close(found, torch.tensor([3 / root, 8 / root], dtype=torch.float64), rtol=1e-15, atol=0)
    dx, dweight = torch.autograd.grad(found[0], [x, weight])
    torch.testing.assert_close(dx, torch.tensor([0.64 / root, -0.48 / root]).double(), rtol=1e-7, atol=0)
    torch.testing.assert_close(dweight, torch.tensor([3 / root, 0.0]).double(), rtol=1e-7, atol=0)


def test_frozen_weights():
    """Of a base under an adapter: the states' gradient alone."""
    x, weight = random(3, 4).requires_grad_(), random(4, seed=1)
    alone = torch.autograd.grad(fused.rms_norm(x, weight, 0.1).sin().sum(), x)[0]
    both = torch.autograd.grad(fused.rms_norm(x, weight.requires_grad_(), 0.1).sin().sum(), [x, weight])[0]
    assert torch.equal(alone, both)


@pytest.mark.parametrize("strip", [4, 8, 2**18])
@pytest.mark.parametrize("shape", [(7, 4), (2, 3, 4), (1, 2, 3, 4)])
def test_gradients_of_rms_norm(strip, shape, monkeypatch):
    """Of a strip of one row, of two with a rest, of all at once; ε counts."""
    monkeypatch.setattr(fused, "STRIP", strip)
    x, weight = random(*shape).requires_grad_(), random(4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, weight: fused.rms_norm(x, weight, 0.3), (x, weight))
    textbook = x / (x.pow(2).mean(-1, keepdim=True) + 0.3).sqrt() * weight
    torch.testing.assert_close(fused.rms_norm(x, weight, 0.3), textbook, rtol=0, atol=1e-14)


def test_states_that_do_not_lie_in_a_row():
    """Heads of queries are normed where they lie, [N, heads, T, D] of [N, T, heads, D]."""
    x, weight = random(1, 3, 2, 4).transpose(1, 2).requires_grad_(), random(4, seed=1)
    grad = random(1, 3, 2, 4, seed=2).transpose(1, 2)
    found = torch.autograd.grad(fused.rms_norm(x, weight, 0.1), x, grad)[0]
    straight = x.detach().contiguous().requires_grad_()
    alike = torch.autograd.grad(fused.rms_norm(straight, weight, 0.1), straight, grad.contiguous())[0]
    torch.testing.assert_close(found, alike, rtol=0, atol=0)


def test_turning_by_hand():
    """By a quarter (cos 0, sin 1) the halves (1, 2) and (3, 4) become (-3, -4) and (1, 2)."""
    x = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 1, 1, 4)
    found = fused.turn(x, torch.zeros(1, 1, 1, 4), torch.ones(1, 1, 1, 4))
    assert found.flatten().tolist() == [-3.0, -4.0, 1.0, 2.0]


def test_gradients_of_turning():
    """Of angles whose halves differ, too."""
    x, cos, sin = random(2, 3, 5, 4).requires_grad_(), random(2, 1, 5, 4, seed=1), random(2, 1, 5, 4, seed=2)
    assert torch.autograd.gradcheck(lambda x: fused.turn(x, cos, sin), (x,))
    textbook = ROTARY(x, x, cos[:, 0], sin[:, 0])[0]
    torch.testing.assert_close(fused.turn(x, cos, sin), textbook, rtol=0, atol=1e-14)


# ---------------------------------------------------------------- which parts of a model


def qwen3() -> nn.Module:
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6}
    return Qwen3ForCausalLM(Qwen3Config(**SMALL, **heads))


def gemma() -> nn.Module:
    """Its norms multiply by 1 + weight."""
    return Gemma2ForCausalLM(Gemma2Config(**SMALL, num_attention_heads=2, num_key_value_heads=2, head_dim=8))


def cohere() -> nn.Module:
    """It turns neighbours, not halves."""
    return CohereForCausalLM(CohereConfig(**SMALL, num_attention_heads=2, pad_token_id=0, eos_token_id=2))


@pytest.mark.parametrize(
    ("make", "norms", "rotary"),
    [
        (lambda: toy_model(dtype=torch.float32), 5, 1),
        (toy_model, 5, 1),
        (qwen3, 9, 1),  # its queries' and keys' too
        (gemma, 0, 1),
        (toy_gpt2, 0, 0),
        (cohere, 0, 0),
        (lambda: toy_model(dtype=torch.bfloat16), 0, 1),
    ],
)
def test_parts_are_told_by_what_they_do(make, norms, rotary):
    parts = fused._parts(make())
    assert (len(parts.norms), len(parts.rotary)) == (norms, rotary)


class AlmostNorm(modeling_llama.LlamaRMSNorm):
    """Has all the names."""

    def __init__(self, change):
        super().__init__(4)
        self.change = change

    def forward(self, states):
        return self.change(self, super().forward, states)


def no_mean(x):
    return x - x.mean(-1, keepdim=True)


@pytest.mark.parametrize(
    "change",
    [
        lambda self, own, x: own(x) + x,  # weights of 1 + w
        lambda self, own, x: own(no_mean(x)),
        lambda self, own, x: own(x)[None],
        lambda self, own, x: own(x.detach() + 0 * x),  # the gradient alone is another
        lambda self, own, x: own(x, x),  # fails
        lambda self, own, x: own(x).half(),
        lambda self, own, x: own(x) * (x.norm(dim=-1, keepdim=True) > 1),  # of small states ε is the most
    ],
)
def test_a_norm_of_the_same_names_is_left_alone(change):
    assert fused._parts(AlmostNorm(lambda self, own, x: own(x))).norms
    assert not fused._parts(AlmostNorm(change)).norms


def test_a_norm_that_rounds_to_float32_is_left_alone(monkeypatch):
    """As the library's does: a model in float64 says what it says without."""
    norm = modeling_llama.LlamaRMSNorm
    monkeypatch.setattr(norm, "forward", RMSNORMS[norm])
    assert not fused._parts(toy_model()).norms
    assert len(fused._parts(toy_model(dtype=torch.float32)).norms) == 5


def test_a_norm_with_more_weights_is_left_alone():
    norm = modeling_llama.LlamaRMSNorm(4)
    norm.bias = nn.Parameter(torch.zeros(4))
    assert not fused._parts(norm).norms


@pytest.mark.parametrize(
    "change",
    [
        lambda q, k, cos, sin: ROTARY(q, k, cos, -sin),
        lambda q, k, cos, sin: (ROTARY(q, k, cos, sin)[0], k),
        lambda q, k, cos, sin: (q, ROTARY(q, k, cos, sin)[1]),
        lambda q, k, cos, sin: ROTARY(q, k, cos, sin)[::-1],
        lambda q, k, cos, sin: tuple(t.to(q.dtype) for t in ROTARY(q.float(), k.float(), cos, sin)),  # rounds
        lambda q: q,
    ],
)
def test_positions_of_another_kind_are_left_alone(change, monkeypatch):
    monkeypatch.setattr(modeling_llama, fused.ROTARY, change)
    assert not fused._parts(toy_model()).rotary


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_whoever_asks_first(mode):
    """As a run that goes on, whose first look is a missed one, before any step."""
    model = toy_model()
    with mode():
        parts = fused._parts(model)
    assert (len(parts.norms), len(parts.rotary)) == (5, 1)


def test_telling_draws_no_random_numbers():
    model, before = toy_model(), torch.get_rng_state()
    fused._parts(model)
    assert torch.equal(torch.get_rng_state(), before)


# ---------------------------------------------------------------- while it lasts


@pytest.fixture
def calls(monkeypatch):
    """How often each function was called."""
    found = {"rms_norm": 0, "turn": 0}

    def counted(name, function):
        def call(*given):
            found[name] += 1
            return function(*given)

        return call

    for name in found:
        monkeypatch.setattr(fused, name, counted(name, getattr(fused, name)))
    return found


def test_scoring_uses_them(calls):
    """Five norms and two layers' queries and keys."""
    policy = Policy(toy_model())
    assert sharing.shares_prompts(policy, 8)
    calls.update(rms_norm=0, turn=0)
    score(policy, rows())
    assert calls == {"rms_norm": 5, "turn": 4}


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_behind(fails):
    policy, own = Policy(toy_model()), ROTARY
    with pytest.raises(ZeroDivisionError) if fails else nullcontext(), fused.fused(policy):
        assert modeling_llama.apply_rotary_pos_emb is not own
        assert policy.causal.model.norm.forward(torch.ones(1, 16).double()).shape == (1, 16)
        1 / (0 if fails else 1)
    assert modeling_llama.apply_rotary_pos_emb is own
    assert not [name for name, module in policy.causal.named_modules() if "forward" in vars(module)]


def test_one_inside_the_other():
    """As a layer that is computed again inside of backward may be."""
    policy = Policy(toy_model())
    norm, own = policy.causal.model.norm, ROTARY
    with fused.fused(policy):
        outer = norm.forward, modeling_llama.apply_rotary_pos_emb
        with fused.fused(policy):
            pass
        assert (norm.forward, modeling_llama.apply_rotary_pos_emb) == outer
    assert "forward" not in vars(norm)
    assert modeling_llama.apply_rotary_pos_emb is own


def test_a_norm_that_is_called_otherwise():
    """With more than the states, as gated ones are: the model's own forward."""
    policy = Policy(toy_model())
    with fused.fused(policy), pytest.raises(TypeError, match="unexpected keyword argument 'gate'"):
        policy.causal.model.norm(random(2, 16), gate=None)


def test_another_type_than_was_tried(calls):
    """A model that was made a float64 one since: its norms round."""
    policy = Policy(toy_model(dtype=torch.float32))
    fused._parts(policy.causal)
    policy.double()
    calls.update(rms_norm=0)
    with fused.fused(policy):
        policy.causal.model.norm(random(2, 16))
    assert not calls["rms_norm"]


def test_what_somebody_else_puts_there_stays(monkeypatch):
    """As of hooks and kernels that other libraries put around a module, before or after its trial."""
    policy = Policy(toy_model())
    norm = policy.causal.model.norm
    assert norm in fused._parts(policy.causal).norms
    theirs, other = types.MethodType(type(norm).forward, norm), lambda *given: ROTARY(*given)
    norm.forward = theirs
    monkeypatch.setattr(modeling_llama, fused.ROTARY, other)
    with fused.fused(policy):
        assert norm.forward is theirs
        assert modeling_llama.apply_rotary_pos_emb is other
    assert norm.forward is theirs
    assert modeling_llama.apply_rotary_pos_emb is other


@pytest.mark.parametrize("mixed", [False, True])
def test_fewer_bits_are_the_models_own(mixed, calls):
    """In bfloat16, and inside autocast, a model rounds where it rounds: to the bit what it is without."""
    model = toy_model(dtype=torch.float32)
    policy = Policy(model)
    fused._parts(model)
    calls.update(rms_norm=0, turn=0)
    norm, states = model.model.norm, random(2, 16)
    states = states.float() if mixed else states.bfloat16()
    q = (random(1, 2, 3, 8).float() if mixed else random(1, 2, 3, 8).bfloat16()).clone()
    cos, sin = random(1, 3, 8, seed=1).to(q.dtype), random(1, 3, 8, seed=2).to(q.dtype)

    def results():
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            return norm(states), *modeling_llama.apply_rotary_pos_emb(q, q, cos, sin)

    own = results()
    with fused.fused(policy):
        found = results()
    assert all(torch.equal(a, b) for a, b in zip(own, found, strict=True))
    assert calls == {"rms_norm": 0, "turn": 0}


def test_positions_of_a_part_of_the_head_are_the_models_own(calls):
    """As other models turn only the first numbers of a head, or are told which dimension the heads are."""
    policy = Policy(toy_model())
    fused._parts(policy.causal)
    calls.update(rms_norm=0, turn=0)
    q, cos, sin = random(1, 3, 2, 8), random(1, 3, 8, seed=1), random(1, 3, 8, seed=2)
    with fused.fused(policy):
        found = modeling_llama.apply_rotary_pos_emb(q, q, cos, sin, 2)
        again = modeling_llama.apply_rotary_pos_emb(q, q, cos, sin, unsqueeze_dim=2)
        with pytest.raises(RuntimeError, match="must match the size"):
            modeling_llama.apply_rotary_pos_emb(q, q, cos[..., :4], sin[..., :4])
        learned = modeling_llama.apply_rotary_pos_emb(q, q, cos[:, :2].requires_grad_(), sin[:, :2])[0]
    assert torch.equal(found[0], ROTARY(q, q, cos, sin, unsqueeze_dim=2)[0])
    assert torch.equal(found[0], again[0])
    assert learned.requires_grad
    assert calls["turn"] == 0


def test_another_familys_functions_stay():
    """A policy of one family leaves another family's functions alone."""
    other = sys.modules[Qwen3ForCausalLM.__module__]
    own = other.apply_rotary_pos_emb
    with fused.fused(Policy(toy_model())):
        assert other.apply_rotary_pos_emb is own
