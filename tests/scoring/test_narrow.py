"""The last layer works for the tokens that are read; a model whose parts are not what their names say is left whole."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from prefopt.models.policy import Policy
from prefopt.scoring import generate, narrow, score, sharing
from tests.scoring.test_forest import batch_of, llama, lora
from tests.toy import textbook, toy_gpt2

pytestmark = pytest.mark.usefixtures("exact_rmsnorm")
ROWS = [(5, [2, 3], False), (3, [1], False)]
LLAMA, GPT2 = ("self_attn.q_proj", "self_attn.o_proj", "mlp"), ("attn.c_proj", "mlp")


@pytest.fixture
def seen(monkeypatch) -> Callable[[nn.Module], list[int]]:
    """How many tokens a part's own forward is given, call by call."""

    def watch(part: nn.Module) -> list[int]:
        sizes: list[int] = []
        forward = part.forward
        monkeypatch.setattr(part, "forward", lambda states: (sizes.append(states.shape[1]), forward(states))[1])
        return sizes

    return watch


def known(model: nn.Module, heads: frozenset[str] = frozenset({"lm"})) -> Policy:
    policy = Policy(model, heads)
    assert sharing.shares_prompts(policy, 8)
    return policy


@pytest.mark.parametrize(("make", "names"), [(llama, LLAMA), (lora, LLAMA), (toy_gpt2, GPT2)])
def test_what_the_last_layer_sees(make, names, seen):
    """What predicts a completion's tokens: the prompt's end, once for both, and all of them but the last.
    1 + 1 + 2 of the first tree, 1 + 0 of the second; the forest has 64 with its filling."""
    policy = known(make())
    *others, last = policy.causal.get_submodule("transformer.h" if make is toy_gpt2 else "model.layers")
    parts = [last.get_submodule(name) for name in names]
    assert narrow.parts(policy) == parts
    before, sizes = seen(others[0].mlp), [seen(part) for part in parts]
    score(policy, batch_of(ROWS))
    assert before == [64]
    assert sizes == [[5] for _ in parts]


def test_prompts_are_read_where_they_count(seen):
    """All tokens but the completions' last: 4 + 1 + 1 + 2 and 2 + 1 + 0."""
    policy = known(llama())
    sizes = seen(policy.causal.model.layers[-1].mlp)
    score(policy, batch_of(ROWS), prompt=True)
    assert sizes == [11]


def test_a_reward_reads_one_token_of_each_row(seen):
    policy = known(llama(), frozenset({"scalar"}))
    sizes = seen(policy.causal.model.layers[-1].mlp)
    score(policy, batch_of(ROWS), heads=frozenset({"scalar"}))
    assert sizes == [3]


def test_a_sampler_reads_the_ends_of_its_prompts(seen):
    """Of two different prompts; then a token in each of three rows."""
    policy = known(llama())
    sizes = seen(policy.causal.model.layers[-1].mlp)
    generate(policy, [torch.arange(4), torch.arange(6), torch.arange(4)], max_new_tokens=2, temperature=0)
    assert sizes == [2, 1]


class Particular(nn.Module):
    """A feed-forward that takes whole forests and rows of the trial's sizes only."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, states: Tensor) -> Tensor:
        if states.shape[1] % 64 and states.shape[1] > 6:
            raise TypeError("not so many")
        return self.inner(states)


def test_a_part_that_is_not_what_its_name_says():
    """The trial asks for 22 of 64 tokens, the batch for 9, and it takes neither: its rows are a forest all the same."""
    model = llama()
    model.model.layers[-1].mlp = Particular(model.model.layers[-1].mlp)
    policy, rows = known(model), batch_of([(3, [2, 3, 3], False), (3, [3], False)])
    scores = score(policy, rows)
    for i, theirs in enumerate(textbook(model, rows)[0]):
        torch.testing.assert_close(scores.logps[i][scores.mask[i]], theirs, rtol=0, atol=1e-12)
