"""Penalties and scales by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from prefopt.rewards.scale import Moments
from tests.rewards.made import answer, built, number, numbers

# ---------------------------------------------------------------- penalties


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("missing_end=2", [0, 2, 0]),
        ("length=0.1", [0.2, 0.6, 0]),
        (
            "repetition=8",
            [0, 4, 0],
        ),
    ],
)
def test_each_penalty_by_hand(override, expected):
    """6 tokens: the trigrams 777, 777, 777, 778 of which 2 of 4 were said before; no trigram, nothing repeated."""
    answers = [answer("1"), answer("1", ids=[7, 7, 7, 7, 7, 8], ended=False), answer("1", ids=[])]
    judged = built("gold", override, gold=number)(answers)
    name = override.partition("=")[0]
    assert list(judged.parts) == [name]
    assert judged.parts[name] == pytest.approx(expected, abs=1e-15)
    assert judged.reward == pytest.approx([1 - taken for taken in expected], abs=1e-15)


def test_penalties_together():
    judged = built("gold", "missing_end=2", "length=0.5", gold=number)([answer("10", ids=[7, 7], ended=False)])
    assert judged.reward.tolist() == [10 - 2 - 1]
    assert list(judged.parts) == ["missing_end", "length"]
    assert list(built("gold", gold=number)(numbers(1)).parts) == []


# ---------------------------------------------------------------- scales


def test_a_running_scale_by_hand():
    """1 and 3: mean 2, deviation 1. With 8 it is 4 and √((9 + 1 + 16) / 3), and 8 stands 4 above."""
    judge = built("gold", "scale=running", gold=number)
    first = judge(numbers(1, 3))
    assert first.reward.tolist() == [-1, 1]
    assert list(first.parts) == ["raw"]
    assert first.parts["raw"].tolist() == [1, 3]
    assert judge(numbers(8)).reward == pytest.approx([4 / np.sqrt(26 / 3)], rel=1e-15)


def test_a_running_scale_over_calls_is_that_of_all():
    values = np.random.default_rng(0).normal(50, 3, 97)
    judge = built("gold", "scale=running", gold=number)
    for part in np.split(values, [1, 30, 30, 64]):  # one of them empty
        judged = judge(numbers(*part))
    assert judged.reward == pytest.approx((values[64:] - values.mean()) / values.std(), rel=1e-12)
    state = judge.state_dict()
    assert state.pop("judge") == {}
    assert state == pytest.approx({"count": 97, "mean": values.mean(), "m2": values.var() * 97}, rel=1e-12)
    assert [type(value) for value in state.values()] == [int, float, float]  # nothing of numpy's


def test_what_is_far_from_zero_keeps_its_spread():
    """As sums of squares it would be lost to rounding."""
    values = np.array([1e9 + 1, 1e9 + 3, 1e9 + 1, 1e9 + 3])
    moments = Moments()
    for value in values:
        moments.add(np.array([value]))
    assert moments.m2 == pytest.approx(4, rel=1e-6)


def test_a_running_scale_goes_on_from_its_state():
    judge, again = (built("gold", "scale=running", "length=0.1", gold=number) for _ in range(2))
    judge(numbers(1, 3, 9))
    again.load_state_dict(json.loads(json.dumps(judge.state_dict())))
    assert again(numbers(4, 5)).reward.tolist() == judge(numbers(4, 5)).reward.tolist()


def test_where_all_are_alike_only_the_mean_is_taken_off():
    """0.1 three times has a spread of some 1e-17, which is rounding."""
    judge = built("gold", "scale=running", gold=number)
    assert judge(numbers(7)).reward.tolist() == [0]
    rounded = built("gold", "scale=running", gold=number)
    for _ in range(3):
        judged = rounded(numbers(0.1, 0.1, 0.1))
    assert judged.reward == pytest.approx([0, 0, 0], abs=1e-15)
    reference = built("gold", "scale=reference", gold=number)
    reference.calibrate(numbers(2, 2))
    assert reference(numbers(2, 5)).reward.tolist() == [0, 3]


def test_a_reference_scale_is_that_of_the_answers_it_was_given():
    """1 and 5: mean 3, deviation 2; later answers do not move it. Penalties come after, and are not in it."""
    judge = built("gold", "scale=reference", "length=0.5", gold=number)
    assert not judge.calibrated
    with pytest.raises(RuntimeError, match="calibrated before it judges"):
        judge(numbers(1))
    judge.calibrate(numbers(1, 5))
    assert judge.calibrated
    for _ in range(2):
        judged = judge(numbers(1, 5, 9))
        assert judged.reward.tolist() == [-1 - 1, 1 - 1, 3 - 1]
        assert list(judged.parts) == ["raw", "length"]
        assert judged.parts["raw"].tolist() == [1, 5, 9]
    again = built("gold", "scale=reference", "length=0.5", gold=number)
    again.load_state_dict(json.loads(json.dumps(judge.state_dict())))
    assert again.calibrated
    assert again(numbers(9)).reward.tolist() == [2]


def test_calibration_reaches_the_parts_of_a_sum():
    """2 and 4 is -1 and 1 to the part; both parts together are 3 and 7 then, which to the whole is -1 and 1."""
    parts = "{a:{kind:gold,scale:reference},b:{kind:gold}}"
    judge = built("sum", f"parts={parts}", "scale=reference", gold=number)
    assert not judge.calibrated
    judge.calibrate(numbers(2, 4))
    judged = judge(numbers(2, 4))
    assert judged.parts["a"].tolist() == [-1, 1]
    assert judged.parts["raw"].tolist() == [-1 + 2, 1 + 4]
    assert judged.reward.tolist() == [-1, 1]
    plain = built("sum", f"parts={parts}", gold=number)
    assert not plain.calibrated
    plain.load_state_dict(judge.state_dict()["judge"])
    assert plain.calibrated
    assert plain(numbers(2)).reward.tolist() == [-1 + 2]


def test_a_scale_around_another_waits_for_it_and_keeps_its_state():
    """2 and 4 is -1 and 1 to the part, whatever follows; 6 is 3 then, and the mean of -1, 1 and 3 is 1."""
    asked = ["parts={a:{kind:gold,scale:reference}}", "scale=running"]
    judge = built("sum", *asked, gold=number)
    assert not judge.calibrated
    judge.calibrate(numbers(2, 4))
    assert judge(numbers(2, 4)).reward.tolist() == [-1, 1]
    again = built("sum", *asked, gold=number)
    again.load_state_dict(json.loads(json.dumps(judge.state_dict())))
    assert again.calibrated
    assert again(numbers(6)).reward == pytest.approx([2 / np.sqrt(8 / 3)], rel=1e-15)


def test_calibrating_again_begins_anew():
    judge = built("gold", "scale=reference", gold=number)
    judge.calibrate(numbers(100, 300))
    judge.calibrate(numbers(1, 5))
    assert judge(numbers(5)).reward.tolist() == [1]
