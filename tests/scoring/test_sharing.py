"""Where the answer to "can its prompts be shared" holds: a GPU's autocast decides who attends."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from prefopt.models.policy import Policy
from prefopt.scoring import sharing
from tests.toy import toy_model


@pytest.fixture
def tried(monkeypatch) -> list[str]:
    """Where the trial was made, in turn; on a GPU it fails."""
    found: list[str] = []

    def why_not(policy):
        found.append(sharing._surroundings(policy)[0])
        return "" if found[-1] == "cpu" else "it is a GPU"

    monkeypatch.setattr(sharing, "why_not", why_not)
    return found


def test_every_place_has_an_answer_of_its_own(tried, monkeypatch, capsys):
    policy = Policy(toy_model())
    assert sharing.shares_prompts(policy, 5)
    with monkeypatch.context() as there:
        there.setattr(sharing, "_surroundings", lambda policy: ("cuda", None))
        assert not sharing.shares_prompts(policy, 5)
    assert sharing.shares_prompts(policy, 5)
    assert tried == ["cpu", "cuda"]
    assert "padded: it is a GPU" in capsys.readouterr().err


def test_shards_are_not_tried(tried, monkeypatch):
    """They were while they were whole."""
    policy = Policy(toy_model())
    assert sharing.shares_prompts(policy, 5)
    policy.sharded = True
    monkeypatch.setattr(sharing, "_surroundings", lambda policy: ("cuda", None))
    assert sharing.shares_prompts(policy, 5)
    assert tried == ["cpu"]


def test_autocast_is_another_place_on_a_gpu_only(monkeypatch):
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: True)
    on = {kind: SimpleNamespace(device=torch.device(kind)) for kind in ("cpu", "cuda")}
    assert sharing._surroundings(on["cpu"]) == ("cpu", None)
    assert sharing._surroundings(on["cuda"]) == ("cuda", torch.get_autocast_dtype("cuda"))
