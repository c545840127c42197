"""Scoring against the textbook: the model's own logits, one unpadded row at a time, in float64."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from prefopt.models.policy import Policy
from prefopt.records import Batch
from prefopt.scoring import forest, layout, logprobs, score, sharing, tokens_read
from tests.toy import VOCAB, textbook, toy_gpt2, toy_model

pytestmark = pytest.mark.usefixtures("exact_rmsnorm")
EXACT = {"rtol": 0, "atol": 1e-12}


MODELS = {"llama": toy_model, "llama untied": lambda: toy_model(tied=False), "gpt2": toy_gpt2}


def batch(seed: int = 0, prompts: int = 3, per_prompt: int = 3) -> Batch:
    """Ragged rows; token 2, the end of turn, also stands inside prompts and as padding could."""
    torch.manual_seed(seed)
    draw = lambda low, high: torch.randint(0, VOCAB, (int(torch.randint(low, high, ())),))  # noqa: E731
    asked = [torch.cat((torch.tensor([1, 2]), draw(1, 9))) for _ in range(prompts)]
    group = [g for g in range(prompts) for _ in range(per_prompt)]
    return Batch.of("rankings", asked, [torch.cat((draw(1, 8), torch.tensor([2]))) for _ in group], group)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("room", [8, 40, 100_000])
@pytest.mark.parametrize("name", MODELS)
def test_log_probs_are_the_models_own(name, room, shared, monkeypatch):
    monkeypatch.setattr(layout if not shared else forest, "ROOM", room)
    model = MODELS[name]()
    monkeypatch.setitem(sharing._known, model, {("cpu", None): "" if shared else "asked not to"})
    rows = batch()
    scores = score(Policy(model), rows, prompt=True)
    expected, asked = textbook(model, rows)
    for i, own in enumerate(expected):
        torch.testing.assert_close(scores.logps[i][scores.mask[i]], own, **EXACT)
        torch.testing.assert_close(scores.columns["prompt_logp"][i], asked[i].sum(), **EXACT)
        assert int(scores.columns["prompt_tokens"][i]) == len(asked[i])
        assert (scores.logps[i][~scores.mask[i]] == 0).all()
    assert scores.lengths.tolist() == rows.completion_lengths.tolist()
    assert scores.columns["group"].tolist() == rows.group.tolist()


@pytest.mark.parametrize("kept", [0, 2**26])
@pytest.mark.parametrize("chunk", [1, 7, 4096])
def test_gradients_do_not_depend_on_chunks(chunk, kept, monkeypatch):
    """Recomputed chunk by chunk or kept, the gradient is the one through whole logits."""
    rows, model = batch(), toy_model()
    sum(own.sum() for own in textbook(model, rows)[0]).backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    monkeypatch.setattr(logprobs, "CHUNK", chunk * VOCAB)
    monkeypatch.setattr(logprobs, "KEPT", kept)
    score(Policy(model), rows).logp.sum().backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], rtol=1e-10, atol=1e-11)


class Widest(TorchDispatchMode):
    """The most elements any tensor with a vocabulary axis had."""

    elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        found = function(*arguments, **(keywords or {}))
        for tensor in found if isinstance(found, (tuple, list)) else (found,):
            if isinstance(tensor, torch.Tensor) and tensor.dim() >= 2 and tensor.shape[-1] == 9973:
                self.elements = max(self.elements, tensor.numel() // 9973)
        return found


def test_logits_never_exist_for_a_whole_batch(monkeypatch):
    """Forward and backward hold at most a chunk of positions, the completion's alone."""
    monkeypatch.setattr(logprobs, "CHUNK", 20 * 9973)
    monkeypatch.setattr(logprobs, "KEPT", 0)
    torch.manual_seed(0)
    config = toy_model().config
    config.vocab_size = 9973
    policy = Policy(type(toy_model())(config))
    rows = batch(prompts=6, per_prompt=4)
    assert len(rows.completion_ids) > 4 * 20
    with Widest() as seen:
        score(policy, rows).logp.sum().backward()
    assert seen.elements == 20  # the head's weight itself has 16 rows


def test_entropy_of_the_same_pass():
    rows, model = batch(), toy_model()
    scores = score(Policy(model), rows, tokens=frozenset({"entropy"}))
    prompts, completion = rows.prompts(), rows.completions()[4]
    ids = torch.cat((prompts[1], completion))
    logs = model(input_ids=ids[None]).logits[0, len(prompts[1]) - 1 : -1].log_softmax(-1)
    own = scores.columns["entropy"][4][scores.mask[4]]
    torch.testing.assert_close(own, -(logs.exp() * logs).sum(-1), **EXACT)
    expected = torch.autograd.grad(-(logs.exp() * logs).sum(), model.parameters())
    for mine, theirs in zip(torch.autograd.grad(own.sum(), model.parameters()), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-11)
    with pytest.raises(ValueError, match=r"needs\.tokens asks for surprise; scoring knows entropy, top1"):
        score(Policy(model), rows, tokens=frozenset({"surprise"}))


def test_whether_the_target_is_the_likeliest_token():
    rows, model = batch(), toy_model()
    rows = replace(rows, completion_ids=rows.completion_ids.clone())
    prompts = rows.prompts()
    likeliest = model(input_ids=prompts[0][None]).logits[0, -1].argmax()
    rows.completion_ids[0] = likeliest
    found = score(Policy(model), rows, tokens=frozenset({"top1", "entropy"})).columns["top1"]
    assert found[0, 0] == 1
    ids = torch.cat((prompts[0], rows.completions()[0]))
    own = model(input_ids=ids[None]).logits[0, len(prompts[0]) - 1 : -1].argmax(-1)
    assert found[0][: len(own)].tolist() == (own == rows.completions()[0]).float().tolist()


def test_dropout_in_the_head_is_drawn_once(monkeypatch):
    """A head that draws: chunks that are computed again must draw the same (LoRA's dropout on lm_head)."""
    hidden, targets = torch.randn(6, 4, dtype=torch.float64), torch.randint(0, 9, (6,))
    weight = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)

    def grad(kept: int) -> torch.Tensor:
        monkeypatch.setattr(logprobs, "KEPT", kept)
        torch.manual_seed(3)
        head = lambda states: torch.nn.functional.dropout(states, 0.5) @ weight.t()  # noqa: E731
        logps = logprobs.token_quantities(head, hidden, targets, 9)["logps"]
        return torch.autograd.grad(logps.sum(), weight)[0]

    torch.testing.assert_close(grad(0), grad(10**9), **EXACT)


def test_heads_read_the_right_state():
    """A reward on the last token, by length; a value before each token. Padding and other end tokens change nothing."""
    rows = batch()
    policy = Policy(toy_model(), frozenset({"scalar", "value"})).double()
    scores = score(policy, rows, heads=frozenset({"scalar", "value"}))
    assert scores.logps is None
    prompts = rows.prompts()
    for i, completion in enumerate(rows.completions()):
        prompt = prompts[int(rows.group[i])]
        ids = torch.cat((prompt, completion))[None]
        states = policy.causal.base_model(input_ids=ids).last_hidden_state[0]
        torch.testing.assert_close(scores.rewards[i], policy.heads["scalar"](states[-1])[0], **EXACT)
        before = policy.heads["value"](states[len(prompt) - 1 : -1])[:, 0]
        torch.testing.assert_close(scores.values[i][scores.mask[i]], before, **EXACT)


@pytest.mark.parametrize(
    ("setting", "value"), [("final_logit_softcapping", 2.0), ("logit_scale", 0.5), ("logits_scaling", 4.0)]
)
def test_what_some_models_do_to_their_logits(setting, value):
    model, rows = toy_model(), batch()
    setattr(model.config, setting, value)
    hidden = torch.randn(5, 16, dtype=torch.float64)
    plain = model.lm_head(hidden)
    expected = {
        "final_logit_softcapping": torch.tanh(plain / 2) * 2,
        "logit_scale": plain / 2,
        "logits_scaling": plain / 4,
    }
    torch.testing.assert_close(Policy(model).lm_head(hidden), expected[setting], **EXACT)
    assert torch.isfinite(score(Policy(model), rows).logp).all()


@torch.no_grad()
def test_low_precision_is_summed_in_float32():
    """bfloat16 weights: log-probs come out float32 and agree with float64 to the weights' own rounding."""
    rows = batch()
    low = toy_model().to(torch.bfloat16)
    scores = score(Policy(low), rows)
    assert scores.logps.dtype == torch.float32
    high = score(Policy(toy_model()), rows)
    assert float((scores.logp - high.logp).abs().max()) < 0.5
    with torch.autocast("cpu", torch.bfloat16):
        mixed = score(Policy(toy_model().float()), rows)
    assert mixed.logps.dtype == torch.float32


def test_tokens_read(monkeypatch):
    """Prompts of 4 and 2, completions of 3, 5 and 6: rows of 7, 9 and 8 tokens. Padded 3 · 9; shared 12 + 8; in layouts
    of at most 15 tokens each stands alone, in those of 18 the longest two lie together."""
    texts = [torch.arange(n) for n in (4, 2, 3, 5, 6)]
    rows = Batch.of("rollouts", texts[:2], texts[2:], [0, 0, 1])
    policy = Policy(toy_model())
    monkeypatch.setattr(forest, "ROUND", 1)
    assert tokens_read(policy, rows) == (20, 27)
    monkeypatch.setattr(forest, "ROUND", 16)
    assert tokens_read(policy, rows) == (32, 27)
    monkeypatch.setattr(forest, "ROOM", 12)
    assert tokens_read(policy, rows) == (32, 27)
    assert sum(len(found) for found in forest.plant(rows).forests) == 32
    monkeypatch.setattr(import_module("prefopt.scoring.score"), "shares_prompts", lambda policy, longest: False)
    for room, read in ((15, 24), (18, 25)):
        monkeypatch.setattr(layout, "ROOM", room)
        assert tokens_read(policy, rows) == (read, 27)
        assert sum(found.ids.numel() for found in layout.layouts(rows)) == read
