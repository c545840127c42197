"""Gold, ensembles and sums by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from prefopt.rewards.ensemble import Ensemble, combined
from prefopt.rewards.model import filled
from prefopt.rewards.sum import Sum
from tests.rewards.made import Told, answer, built, number, numbers


def test_gold_is_asked_prompt_and_text():
    found = []
    judge = built("gold", gold=lambda prompt, text: found.append((prompt, text)) or 2.5)
    judged = judge([answer("a", "b")])
    assert found == [("b", "a")]
    assert judged.reward.tolist() == [2.5]
    assert judged.reward.dtype == np.float64
    assert judged.parts == {}
    assert judge.state_dict() == {}
    assert judge.calibrated


def test_unread_answers_are_worth_the_least_of_the_others():
    assert filled(np.array([2.0, math.nan, -1.0])).tolist() == [2, -1, -1]
    assert filled(np.array([3.0, math.nan])).tolist() == [3, 3]  # not 0, which is less
    assert filled(np.array([math.nan, math.nan])).tolist() == [0, 0]
    assert filled(np.array([])).tolist() == []


@pytest.mark.parametrize(
    ("how", "k", "expected"),
    [
        ("mean", 1.0, [3, 0]),
        ("worst", 1.0, [1, -1]),
        ("lower", 0.5, [3 - 0.5 * math.sqrt(8 / 3), 0 - 0.5 * math.sqrt(2 / 3)]),
        ("lower", 0.0, [3, 0]),
    ],
)
def test_members_combined_by_hand(how, k, expected):
    """1, 3, 5: deviations -2, 0, 2, so √(8/3); -1, 0, 1: √(2/3)."""
    assert combined(np.array([[1.0, -1], [3, 0], [5, 1]]), how, k) == pytest.approx(expected, abs=1e-15)


def test_an_ensemble_by_hand():
    """The second member cannot read the first answer: to it that is worth 2, its other answer's worth."""
    judged = Ensemble([Told(4.0, 1.0), Told(math.nan, 2.0)], "lower", 1.0)([answer(), answer()])
    assert list(judged.parts) == ["member_0", "member_1", "disagreement", "unread"]
    assert judged.parts["member_0"].tolist() == [4, 1]
    assert judged.parts["member_1"].tolist() == [2, 2]
    assert judged.parts["disagreement"].tolist() == [1, 0.5]
    assert judged.parts["unread"].tolist() == [1, 0]
    assert judged.reward.tolist() == [3 - 1, 1.5 - 0.5]


def test_an_ensemble_is_combined_as_it_was_asked(monkeypatch):
    """2 and 4: mean 3, deviation 1."""
    said = {"a": 2.0, "b": 4.0}
    monkeypatch.setattr("prefopt.jobs.annotator._model", lambda name, *_: Told(said[name]))
    for options, expected in ((["combine=lower", "k=3"], 0), (["combine=worst"], 2), ([], 3)):
        assert built("ensemble", "names=[a,b]", *options)([answer()]).reward.tolist() == [expected]


def test_a_sum_by_hand():
    """2 · 3 - 0.5 · 4, and each before it was weighed."""
    judged = Sum({"good": (2.0, Told(3.0)), "long": (-0.5, Told(4.0))})([answer()])
    assert judged.reward.tolist() == [4]
    assert {name: part.tolist() for name, part in judged.parts.items()} == {"good": [3], "long": [4]}


def test_a_sum_of_parts_with_scales_and_penalties_of_their_own():
    """Gold 1 and 3 is -1 and 1 running, less 0.25 for each of two tokens; the pattern is found in the second alone;
    then 0.125 a token off the whole."""
    parts = "{deep:{kind:gold,weight:2,scale:running,length:0.25},three:{kind:rule,rule:regex,pattern:'3',weight:10}}"
    judge = built("sum", f"parts={parts}", "length=0.125", gold=number)
    judged = judge(numbers(1, 3))
    expected = {
        "deep": [-1.5, 0.5],
        "deep/raw": [1, 3],
        "deep/length": [0.5, 0.5],
        "three": [0, 1],
        "length": [0.25, 0.25],
    }
    assert {name: part.tolist() for name, part in judged.parts.items()} == expected
    assert list(judged.parts) == list(expected)
    assert judged.reward.tolist() == [2 * -1.5 - 0.25, 2 * 0.5 + 10 - 0.25]
    state = json.loads(json.dumps(judge.state_dict()))
    assert list(state) == ["deep"]
    again = built("sum", f"parts={parts}", "length=0.125", gold=number)
    again.load_state_dict(state)
    assert again(numbers(7)).reward.tolist() == judge(numbers(7)).reward.tolist() != [0]


def test_a_weight_outside_a_sum_counts_too():
    """Three times what is left when the penalty, 2 tokens of 0.5, is off."""
    judged = built("gold", "weight=3", "length=0.5", gold=number)(numbers(5))
    assert judged.reward.tolist() == [3 * (5 - 1)]
    assert {name: part.tolist() for name, part in judged.parts.items()} == {"gold": [4], "gold/length": [1]}
