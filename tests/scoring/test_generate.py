"""Sampling: greedy tokens are generate()'s, sampled ones follow the policy's distribution."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch

from prefopt.models.policy import Policy
from prefopt.scoring import few_rows, forest, generate
from prefopt.scoring.generate import _nucleus
from prefopt.scoring.kv_cache import SharedPrompts
from tests.scoring.test_score import batch
from tests.toy import VOCAB, toy_gpt2, toy_model

generating = import_module("prefopt.scoring.generate")  # the function hides its module


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("make", [lambda: toy_model(dtype=torch.float32), lambda: toy_gpt2().float()])
@pytest.mark.parametrize("batch_size", [2, 512])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("shrink", [0.0, 0.75, 1.0])
def test_greedy_is_the_librarys(make, batch_size, shared, shrink, monkeypatch):
    """Prompts packed or padded; rows that have ended are never, sometimes or at once let go."""
    monkeypatch.setattr(generating, "SHRINK", shrink)
    monkeypatch.setattr(few_rows, "SMALL", 0)
    if not shared:
        monkeypatch.setattr(generating, "shares_prompts", lambda policy, longest: False)
    model = make().eval()
    prompts = batch(prompts=7, per_prompt=1).prompts()
    prompts += prompts[2:4]
    found = generate(Policy(model, end_ids=(2,)), prompts, max_new_tokens=12, temperature=0.0, batch_size=batch_size)
    for prompt, answer in zip(prompts, found, strict=True):
        settings = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": 2, "pad_token_id": 0}
        expected = model.generate(prompt[None], attention_mask=torch.ones_like(prompt)[None], **settings)
        assert answer.tolist() == expected[0, len(prompt) :].tolist()


@pytest.mark.usefixtures("exact_rmsnorm")
def test_packed_states_are_the_models_own(monkeypatch):
    """To rounding in float64, step after step, with prompts in several forests, equal ones, grouped heads, and rows
    let go in between."""
    monkeypatch.setattr(forest, "ROOM", 12)
    model = toy_model(num_key_value_heads=1).eval()
    prompts = [torch.tensor(ids) for ids in ([1, 5, 9, 4], [1, 7], [1, 5, 9, 4], [3, 3, 3, 3, 3, 3, 8], [6])]
    rows, texts = SharedPrompts(Policy(model), prompts, room=4), prompts

    def check(states):
        for own, text in zip(states, texts, strict=True):
            torch.testing.assert_close(own, model.model(text[None]).last_hidden_state[0, -1], rtol=0, atol=1e-12)

    check(rows.start())
    for step in range(4):
        if step == 2:
            kept = torch.tensor([0, 3, 4])
            rows.keep(kept)
            texts = [texts[i] for i in kept]
        drawn = torch.arange(len(texts)) + step + 2
        texts = [torch.cat((text, token[None])) for text, token in zip(texts, drawn, strict=True)]
        check(rows.step(drawn))


def test_equal_prompts_are_read_once(monkeypatch):
    read = []
    states = Policy.hidden_states

    def counted(self, ids, *arguments, **more):
        read.append(ids.numel())
        return states(self, ids, *arguments, **more)

    policy = Policy(toy_model(dtype=torch.float32).eval(), end_ids=(2,))
    generate(policy, [torch.tensor([1, 5])], max_new_tokens=1)  # tries the model out
    monkeypatch.setattr(Policy, "hidden_states", counted)
    generate(policy, [torch.tensor([1, 5, 9, 4])] * 100 + [torch.tensor([1, 7])] * 50, max_new_tokens=1)
    assert read == [forest.ROUND]


def test_samples_follow_the_policy():
    """40,000 first tokens against the exact probabilities: chi-squared with 22 degrees of freedom, 99.99 % under 54."""
    policy = Policy(toy_model(dtype=torch.float32).eval(), end_ids=(2,))
    prompt = torch.tensor([1, 5, 9, 4])
    exact = policy.causal(prompt[None]).logits[0, -1].softmax(-1).double()
    drawn = generate(policy, [prompt] * 40_000, max_new_tokens=1, generator=torch.Generator().manual_seed(0))
    counts = torch.bincount(torch.cat(drawn), minlength=VOCAB)
    expected = 40_000 * exact
    assert expected.min() > 20
    assert float(((counts - expected) ** 2 / expected).sum()) < 54


@pytest.mark.parametrize("shared", [True, False])
def test_later_tokens_follow_the_policy_too(shared, monkeypatch):
    """The second token given the first, through either cache: under prompts of two lengths, packed or padded."""
    if not shared:
        monkeypatch.setattr(generating, "shares_prompts", lambda policy, longest: False)
    policy = Policy(toy_gpt2().float(), end_ids=(2,))
    prompts = [torch.tensor([1, 5, 9, 4]), torch.tensor([1, 7])] * 20_000
    drawn = generate(policy, prompts, max_new_tokens=2, generator=torch.Generator().manual_seed(0), batch_size=40_000)
    short = [answer for answer in drawn[1::2] if len(answer) == 2]
    first = int(torch.mode(torch.stack([answer[0] for answer in short])).values)
    seconds = torch.stack([answer[1] for answer in short if int(answer[0]) == first])
    exact = policy.causal(torch.tensor([[1, 7, first]])).logits[0, -1].softmax(-1).double()
    expected = len(seconds) * exact
    counts = torch.bincount(seconds, minlength=VOCAB)
    kept = expected > 5
    assert float(((counts - expected) ** 2 / expected)[kept].sum()) < 60


def test_ends_once_and_repeats_by_seed():
    policy = Policy(toy_model(dtype=torch.float32), end_ids=(2, 3))
    policy.train()
    prompts = batch(prompts=40, per_prompt=1).prompts()
    runs = [
        generate(policy, prompts, max_new_tokens=30, generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    ]
    assert [a.tolist() for a in runs[0]] == [a.tolist() for a in runs[1]]
    assert [a.tolist() for a in runs[0]] != [a.tolist() for a in runs[2]]
    ended = [a for a in runs[0] if int(a[-1]) in (2, 3)]
    assert len(ended) > 20
    assert all(not set(a[:-1].tolist()) & {2, 3} for a in runs[0])
    assert all(len(a) == 30 for a in runs[0] if int(a[-1]) not in (2, 3))
    assert policy.training


def test_temperature_sharpens():
    policy = Policy(toy_model(dtype=torch.float32).eval(), end_ids=(2,))
    prompt = torch.tensor([1, 5, 9, 4])
    exact = (policy.causal(prompt[None]).logits[0, -1] / 0.5).softmax(-1).double()
    drawn = generate(
        policy, [prompt] * 20_000, max_new_tokens=1, temperature=0.5, generator=torch.Generator().manual_seed(0)
    )
    counts = torch.bincount(torch.cat(drawn), minlength=VOCAB)
    assert float((counts / 20_000 - exact).abs().max()) < 0.015


def test_a_nucleus_by_hand():
    """0.5 + 0.3 reach 0.8 and 0.81 needs 0.15 too; one token is always left; equal ones count in their order."""
    rows = torch.tensor([[0.05, 0.5, 0.15, 0.3], [0.25, 0.25, 0.25, 0.25]], dtype=torch.float64)
    assert _nucleus(rows, 0.79).gt(0).tolist() == [[False, True, False, True], [True, True, True, True]]
    assert _nucleus(rows, 0.81).gt(0).tolist() == [[False, True, True, True], [True, True, True, True]]
    assert _nucleus(rows, 0.01).gt(0).sum(1).tolist() == [1, 1]
    assert torch.equal(_nucleus(rows, 0.81)[0, 1:], rows[0, 1:])


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_top_p_draws_from_the_nucleus(temperature):
    """40,000 first tokens against the exact probabilities within the nucleus, and no other token. 99.99 % of
    chi-squared with at most 20 degrees of freedom lies under 53."""
    policy = Policy(toy_model(dtype=torch.float32).eval(), end_ids=(2,))
    prompt = torch.tensor([1, 5, 9, 4])
    exact = (policy.causal(prompt[None]).logits[0, -1].double() / temperature).softmax(-1)
    falling, order = exact.sort(descending=True)
    size = int((falling.cumsum(0) < 0.7).sum()) + 1
    assert 3 < size < VOCAB - 3
    kept = order[:size]
    options = {"temperature": temperature, "top_p": 0.7, "generator": torch.Generator().manual_seed(0)}
    drawn = generate(policy, [prompt] * 40_000, max_new_tokens=1, **options)
    counts = torch.bincount(torch.cat(drawn), minlength=VOCAB)
    assert int(counts[kept].sum()) == 40_000
    expected = 40_000 * exact[kept] / exact[kept].sum()
    assert float(((counts[kept] - expected) ** 2 / expected).sum()) < 53


def test_every_step_can_be_watched():
    policy = Policy(toy_model(dtype=torch.float32).eval(), end_ids=(2,))
    seen: list[int] = []
    (answer,) = generate(
        policy, [torch.tensor([1, 5])], max_new_tokens=9, temperature=0.0, watch=lambda ids: seen.append(int(ids[0]))
    )
    assert seen == answer.tolist()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_is_no_number_is_not_drawn_from(temperature):
    model = toy_model(dtype=torch.float32).eval()
    model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="the model's logits are no numbers"):
        generate(Policy(model, end_ids=(2,)), [torch.tensor([1, 5])], max_new_tokens=2, temperature=temperature)
