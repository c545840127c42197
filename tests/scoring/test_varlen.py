"""Merged varlen attention, its kernels replaced by matrices: what it makes of a forest is what the rows make alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from prefopt.models.policy import Policy
from prefopt.scoring import forest, score, sharing, varlen
from prefopt.scoring.attention import attend
from prefopt.scoring.forest import Forest, Tree
from prefopt.scoring.varlen import seams
from tests.scoring.test_score import batch
from tests.toy import toy_model


class TestSeams:
    TREES = (Tree(0, 3, (2, 4, 1)), Tree(10, 2, (1,)), Tree(13, 4, ()), Tree(17, 1, (3, 2)))

    def test_by_hand(self):
        """By hand: whole first branches, then the others, 5 tokens under the first prompt and 2 under the last."""
        cut = seams(self.TREES, torch.device("cpu"))
        assert cut.others.tolist() == [5, 6, 7, 8, 9, 21, 22]
        assert cut.trunks.tolist() == [0, 1, 2, 17]
        assert [part.tolist() for part in cut.own[:2]] == [[0, 5, 9, 10, 13, 17, 21, 23]] * 2
        assert [part.tolist() for part in cut.seen[:2]] == [[0, 5, 7], [0, 3, 4]]
        assert cut.own[2:] == (5, 5)
        assert cut.seen[2:] == (5, 3)


@pytest.mark.usefixtures("plain_kernels")
def test_log_probs_and_gradients(monkeypatch):
    """Two forests of a batch in float64, against the dense blocks of a CPU; the seams of one are not the other's."""
    rows = batch()
    monkeypatch.setattr(forest, "ROOM", 12)
    monkeypatch.setattr(varlen, "fits", lambda query: True)
    first, second = toy_model().double(), toy_model().double()
    assert sharing.why_not(Policy(first)) == ""  # else it would be padded, and agree
    merged = score(Policy(first), rows)
    monkeypatch.setattr(varlen, "fits", lambda query: False)
    dense = score(Policy(second), rows)
    torch.testing.assert_close(merged.logps, dense.logps, rtol=0, atol=1e-12)
    weights = torch.linspace(-1, 2, merged.logps.numel(), dtype=torch.float64).view_as(merged.logps)
    for scores in (merged, dense):
        (scores.logps * weights).sum().backward()
    for (name, mine), theirs in zip(first.named_parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=0, atol=1e-11, msg=name)


def test_autocast_is_heard():
    """4-bit layers hand over float32 inside autocast; attention is in its type all the same, backward too."""
    rows = Forest(*torch.zeros(2, 1, 9, dtype=torch.long), (Tree(0, 3, (2, 4)),))
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, heads, 9, 4, requires_grad=True) for heads in (4, 2, 2))
    exact, _ = attend(nn.Module(), q, k, v, None, forest=copy.copy(rows))
    with torch.autocast("cpu", torch.bfloat16):
        out, _ = attend(nn.Module(), q, k, v, None, forest=copy.copy(rows))
    assert out.dtype == torch.bfloat16
    out.float().square().sum().backward()
    torch.testing.assert_close(out.float(), exact, rtol=0, atol=0.05)
    assert all(t.grad.dtype == torch.float32 and bool(t.grad.any()) for t in (q, k, v))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu():
    """In bfloat16 by the real kernels, and in float32 by FlexAttention: the CPU's log-probs."""
    rows = batch()
    truth = score(Policy(toy_model().float()), rows).logps
    for dtype, near in ((torch.float32, 1e-3), (torch.bfloat16, 0.1)):
        policy = Policy(toy_model().to("cuda", dtype))
        assert sharing.why_not(policy) == ""
        found = score(policy, rows.to("cuda")).logps.cpu().float()
        torch.testing.assert_close(found, truth, rtol=0, atol=near)
