"""Which prompts are answered when, and in which order their answers train."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefopt.data.loader import Plan
from prefopt.rollouts import RolloutPlan

plans = st.builds(
    RolloutPlan,
    st.integers(1, 17),
    st.integers(1, 9),
    st.integers(1, 30),
    st.integers(0, 3),
    prompts=st.integers(1, 40),
    passes=st.integers(1, 3),
)
quick = settings(max_examples=80, deadline=None)


@quick
@given(plans)
def test_a_pass_trains_every_answer_once(plan: RolloutPlan):
    per_pass, per_collection = plan.steps_per_pass, plan.passes * plan.steps_per_pass
    for collection in range(3):
        steps = [plan.where(collection * per_collection + i) for i in range(per_collection)]
        assert {number for number, _ in steps} == {collection}
        for turn in range(plan.passes):
            places = [rows for _, rows in steps[turn * per_pass : (turn + 1) * per_pass]]
            assert sorted(place for rows in places for place in rows) == list(range(plan.prompts))
            assert {len(rows) for rows in places[:-1]} <= {plan.batch_size}
        assert plan.first_pass(collection) == [rows for _, rows in steps[:per_pass]]


@quick
@given(plans)
def test_collections_are_slices_of_the_order_of_recorded_rows(plan: RolloutPlan):
    recorded = Plan(plan.rows, plan.rows, 99, plan.seed)
    stream = [row for epoch in range(4 * plan.prompts // plan.rows + 2) for row in recorded.step(epoch)]
    answered = [row for collection in range(3) for row in plan.answered(collection)]
    assert answered == stream[: len(answered)]


@quick
@given(plans)
def test_examples_count_every_pass_and_epochs_do_not(plan: RolloutPlan):
    seen = [len(plan.step(number)) for number in range(20)]
    assert [plan.examples(steps) for steps in range(21)] == [sum(seen[:steps]) for steps in range(21)]
    steps = 2 * plan.passes * plan.steps_per_pass
    assert plan.epochs(steps) == pytest.approx(2 * plan.prompts / plan.rows, rel=1e-12)


def test_by_hand():
    # 10 rows, collections of 4 in steps of 3 (3 and 1), two passes: 4 steps a collection
    plan = RolloutPlan.of_rollouts(10, 3, None, 2, 0, prompts=4, passes=2)
    assert plan.steps == 20  # two times ten prompts are five collections
    assert RolloutPlan.of_rollouts(10, 3, 7, 2, 0, prompts=4, passes=2).steps == 7
    assert [plan.where(number)[0] for number in range(9)] == [0, 0, 0, 0, 1, 1, 1, 1, 2]
    assert [plan.where(number)[1] for number in (0, 1, 4, 5)] == [[0, 1, 2], [3], [0, 1, 2], [3]]
    assert plan.answered(2) == [*Plan(10, 10, 9, 0).step(0)[8:], *Plan(10, 10, 9, 0).step(1)[:2]]


def test_later_passes_have_orders_of_their_own():
    plan = RolloutPlan(50, 50, 99, 0, prompts=50, passes=3)
    orders = [tuple(plan.where(number)[1]) for number in range(6)]
    assert orders[0] == orders[3] == tuple(range(50))
    assert len(set(orders)) == 5
    other = RolloutPlan(50, 50, 99, 1, prompts=50, passes=3)
    assert other.where(1)[1] != plan.where(1)[1]
