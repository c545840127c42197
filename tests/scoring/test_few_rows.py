"""Weights laid out for few rows: the same products, and nothing left behind."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from prefopt.models.policy import Policy
from prefopt.scoring import few_rows, generate
from tests.toy import toy_model

pytestmark = pytest.mark.skipif(not few_rows.HERE, reason="torch without MKL")


@pytest.fixture(autouse=True)
def small_layers(monkeypatch):
    monkeypatch.setattr(few_rows, "SMALL", 32 * 48)
    with torch.no_grad():
        yield


class Causal(nn.Module):
    """Two layers that are large enough, one of them with a bias, and one that is not."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up = nn.Linear(32, 48, dtype=dtype)
        self.down = nn.Linear(48, 32, bias=False, dtype=dtype)
        self.small = nn.Linear(32, 4, dtype=dtype)

    def forward(self, states):
        return self.down(self.up(states))


def replaced(causal):
    return [name for name, module in causal.named_modules() if "forward" in vars(module)]


@pytest.fixture
def laid(monkeypatch):
    """The rows that a weight was laid out for, in turn."""
    found, reorder = [], torch.ops.mkl._mkl_reorder_linear_weight

    def counted(weight, rows):
        found.append((tuple(weight.shape), rows))
        return reorder(weight, rows)

    monkeypatch.setattr(torch.ops.mkl, "_mkl_reorder_linear_weight", counted)
    return found


def test_products_are_the_layers_own(laid):
    """At every number of rows, in whatever order, with and without bias, [N, H] and [N, 1, H]."""
    causal = Causal()
    many = few_rows.MOST + 1
    given = [torch.randn(rows, 32) for rows in (1, 3, 4, 5, 16, 4, 100, many - 1, many)] + [torch.randn(7, 1, 32)]
    expected = [causal(states) for states in given]
    with few_rows.few_rows(Policy(causal)):
        for states, own in zip(given, expected, strict=True):
            found = causal(states)
            assert found.shape == own.shape
            torch.testing.assert_close(found, own, rtol=1e-5, atol=1e-6)
    assert laid == [(shape, rows) for rows in (4, 5, 16, 4, 100, many - 1, 7) for shape in ((48, 32), (32, 48))]


def test_a_weight_is_laid_out_once_for_as_many_rows(laid):
    causal = Causal()
    with few_rows.few_rows(Policy(causal)):
        for rows in (8, 8, 8, 6, 6):
            causal(torch.randn(rows, 32))
    assert [rows for _, rows in laid] == [8, 8, 6, 6]


def test_what_does_not_gain_is_left(laid, monkeypatch):
    """Small layers, other types, autocast, models whose second copy would be too large."""
    causal = Causal()
    with few_rows.few_rows(Policy(causal)):
        assert replaced(causal) == ["up", "down"]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert causal(torch.randn(8, 32)).dtype == torch.bfloat16
    with few_rows.few_rows(Policy(double := Causal(torch.float64))):
        assert not replaced(double)
    monkeypatch.setattr(few_rows, "ROOM", 2 * 32 * 48 - 1)
    with few_rows.few_rows(Policy(causal)):
        assert not replaced(causal)
    assert not laid


def test_nothing_is_left_behind(monkeypatch):
    """While sampling the layers are replaced; afterwards everything is what it was, ties included."""
    monkeypatch.setattr(few_rows, "SMALL", 0)
    policy = Policy(toy_model(dtype=torch.float32), end_ids=(2,))
    before = {name: p.clone() for name, p in policy.named_parameters()}
    seen = []

    def watch(ids):
        seen.append(replaced(policy.causal))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(policy, [torch.tensor([1, 5])], max_new_tokens=2, watch=watch)
    assert len(seen[0]) == 15
    assert not replaced(policy.causal)
    for name, p in policy.named_parameters():
        assert torch.equal(p, before[name])
    assert policy.causal.lm_head.weight is policy.causal.model.embed_tokens.weight


def test_what_somebody_else_put_there_stays():
    """A hook of a model over several devices, or another `few_rows` around this one."""
    causal = Causal()
    mine = causal.up.forward
    causal.up.forward = lambda states: mine(states) + 1
    own = causal.up.forward
    with few_rows.few_rows(Policy(causal)):
        assert causal.up.forward is own
        with few_rows.few_rows(Policy(causal)):
            assert replaced(causal) == ["up", "down"]
        assert replaced(causal) == ["up", "down"]
    assert replaced(causal) == ["up"]
