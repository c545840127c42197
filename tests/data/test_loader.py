"""The order of a run, and its steps cut for ranks and micro-batches: every row once, every rank in step."""

from __future__ import annotations

from hashlib import sha256
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prefopt.data.examples import Encoded
from prefopt.data.loader import HeldOutLoader, Plan, Recorded, StepLoader, TokenPlan, micro_batches
from prefopt.data.module import PreferenceData, held_out_loaders
from prefopt.data.views import View, view
from prefopt.records import Batch
from tests.data.made import encode, label, pairs_of

EXAMPLES = pairs_of([1, 3, 2, 5, 8, 1, 1, 4, 2, 7, 3, 6, 2, 9, 1, 5, 4], np.random.default_rng(0))
plans = st.builds(Plan, st.integers(1, 17), st.integers(1, 20), st.integers(1, 12), st.integers(0, 3))
COUNTED = ("rows", "pairs", "tokens", "demonstrations", "demonstrated_tokens", "demonstrated_text", "weight")

quick = settings(max_examples=80, deadline=None)


# ------------------------------------------------------------------------------------------- the plan


def epoch_of(plan: Plan, epoch: int) -> list[int]:
    steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
    return [row for number in steps for row in plan.step(number)]


@quick
@given(plans)
def test_an_epoch_holds_every_row_once(plan: Plan):
    sizes = [len(plan.step(number)) for number in range(plan.steps_per_epoch)]
    assert sizes[:-1] == [plan.batch_size] * (plan.steps_per_epoch - 1)
    assert 1 <= sizes[-1] <= plan.batch_size
    for epoch in range(3):
        assert sorted(epoch_of(plan, epoch)) == list(range(plan.rows))


@quick
@given(plans, st.integers(1, 20))
def test_the_batch_size_cuts_the_order_and_does_not_make_it(plan: Plan, other: int):
    """A function of rows, seed and epoch: the batches are slices of one permutation, whatever their size."""
    same = Plan(plan.rows, other, 99, plan.seed)
    for epoch in range(3):
        assert epoch_of(plan, epoch) == epoch_of(same, epoch)


@quick
@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=17),
    st.integers(1, 60),
    st.integers(1, 6),
    st.integers(0, 3),
    st.sampled_from([0.3, 1, 2.5]),
)
def test_steps_of_tokens(lengths, room, most, seed, epochs):
    """The same order, cut as late as the room allows; every row once an epoch; epochs end where rows run out."""
    plan = TokenPlan.by_tokens(lengths, room, most, None, epochs, seed)
    steps = [plan.step(number) for number in range(plan.steps)]
    seen = [row for rows in steps for row in rows]
    plain = Plan(len(lengths), len(lengths), 9, seed)
    whole = [row for epoch in range(4) for row in plain.step(epoch)]
    assert seen == whole[: len(seen)]
    assert epochs * len(lengths) <= len(seen) < epochs * len(lengths) + most
    for number, rows in enumerate(steps):
        used, last = sum(lengths[row] for row in rows), plan.examples(number + 1) % len(lengths) == 0
        assert 1 <= len(rows) <= most
        assert used <= room or len(rows) == 1
        following = plan.step(number + 1)[0]
        assert last or len(rows) == most or used + lengths[following] > room
        assert plan.examples(number + 1) == plan.examples(number) + len(rows)
    assert set(plan.rows_seen()) == set(seen)
    assert TokenPlan.by_tokens(lengths, room, most, 3, epochs, seed).steps == 3


def test_seeds_and_epochs_have_orders_of_their_own():
    orders = {tuple(epoch_of(Plan(50, 7, 99, seed), epoch)) for seed in range(20) for epoch in range(20)}
    assert len(orders) == 400


def test_the_order_does_not_touch_and_does_not_follow_the_global_generator():
    torch.manual_seed(5)
    expected = torch.rand(3).tolist()
    torch.manual_seed(5)
    first = Plan(50, 7, 99, 0).step(3)
    assert torch.rand(3).tolist() == expected
    assert Plan(50, 7, 99, 0).step(3) == first


def test_steps_may_be_asked_in_any_order():
    plan = Plan(10, 3, 99, 0)
    forwards = [plan.step(number) for number in range(12)]
    assert [plan.step(number) for number in reversed(range(12))] == forwards[::-1]


def test_the_first_order_stays_what_it_is():
    # Recorded from this code: whoever changes it changes every run, and says so in the changelog.
    assert epoch_of(Plan(8, 3, 1, 0), 0) == [4, 0, 7, 3, 2, 5, 1, 6]


@quick
@given(plans)
def test_examples_are_the_rows_of_the_first_steps(plan: Plan):
    seen = [len(plan.step(number)) for number in range(3 * plan.steps_per_epoch)]
    assert [plan.examples(steps) for steps in range(len(seen) + 1)] == [
        sum(seen[:steps]) for steps in range(len(seen) + 1)
    ]


def test_the_order_hash_is_of_the_rows_seen():
    plan = Plan(5, 2, 99, 0)
    texts = [",".join(map(str, plan.step(number))) + ";" for number in range(4)]
    assert [plan.order_hash(steps) for steps in range(5)] == [
        sha256("".join(texts[:n]).encode()).hexdigest() for n in range(5)
    ]


def test_the_order_hash_is_of_the_rows_that_the_data_has():
    """Of labelled rows SFT shows the desirable ones, here 1, 3 and 4: its first step is not of rows 0 to 2."""
    examples = [encode(label(f"p{i}", good=i in (1, 3, 4))) for i in range(5)]
    sft, kto = (Recorded(view(data, examples), Plan(n, n, 1, 0)) for data, n in (("demonstrations", 3), ("labels", 5)))
    of_data = [[1, 3, 4][row] for row in sft.plan.step(0)]
    assert sft.order_hash(1) == sha256((",".join(map(str, of_data)) + ";").encode()).hexdigest()
    assert sft.order_hash(1) != sft.plan.order_hash(1)
    assert kto.order_hash(1) == kto.plan.order_hash(1)


def test_the_order_is_no_affair_of_the_method():
    """Whatever pairs are shown as, a run has the same rows at the same step."""
    plan = Plan(17, 4, 9, 0)
    hashes = {Recorded(view(data, EXAMPLES), plan).order_hash(9) for data in ("demonstrations", "pairs", "labels")}
    assert hashes == {plan.order_hash(9)}


def test_the_order_hash_tells_runs_apart():
    plans = [Plan(20, 4, 99, 0), Plan(20, 4, 99, 1), Plan(20, 5, 99, 0), Plan(21, 4, 99, 0)]
    assert len({plan.order_hash(5) for plan in plans}) == 4
    assert Plan(20, 4, 1, 0).order_hash(5) == plans[0].order_hash(5)  # how long a run is does not change its order


# ------------------------------------------------------------------------------------------- steps


class Cut(NamedTuple):
    """A plan over EXAMPLES[:rows], cut for `world` ranks into micro-batches of `micro` rows."""

    plan: Plan
    micro: int
    world: int
    data: str

    def view(self) -> View:
        return view(self.data, EXAMPLES[: self.plan.rows])

    def loaders(self, start: int = 0) -> list[StepLoader]:
        shown = self.view()
        return [
            StepLoader(Recorded(shown, self.plan), self.micro, rank, self.world, start) for rank in range(self.world)
        ]


plans_of_two = st.builds(Plan, st.integers(2, 17), st.integers(1, 20), st.integers(1, 5), st.integers(0, 3))
cuts = st.builds(
    Cut, plans_of_two, st.integers(1, 8), st.integers(1, 5), st.sampled_from(["demonstrations", "pairs", "labels"])
)
by_hand = [
    Cut(Plan(17, 8, 4, 0), micro, world, data)
    for micro in (1, 2, 3, 8)
    for world in (1, 2, 3, 5)
    for data in ("demonstrations", "pairs", "labels")
]


def shown_rows(batch: Batch) -> list[int]:
    """The examples of a batch that weigh something, each once."""
    weight, first = batch.columns["weight"], batch.columns["row"][: len(batch.columns["weight"])]
    repeats = 2 if batch.data == "labels" else 1  # both completions of a pair
    return first[weight > 0].tolist()[::repeats]


def check_cut(cut: Cut) -> None:
    plan, shown = cut.plan, cut.view()
    for number in range(plan.steps):
        ranks = [loader.step(number) for loader in cut.loaders()]
        rows = plan.step(number)
        seen = [row for batches in ranks for batch in batches for row in shown_rows(batch)]
        assert sorted(seen) == sorted(rows)
        assert {len(batches) for batches in ranks} == {-(-plan.batch_size // (cut.micro * cut.world))}
        counts = shown.batch(rows).units()
        for batches in ranks:
            assert all(batch.counts == counts for batch in batches)
            assert all(len(shown_rows(batch)) <= cut.micro for batch in batches)
            assert batches[0].siblings == tuple(batches[1:])
            assert all(batch.siblings == () for batch in batches[1:])
        parts = [batch.units() for batches in ranks for batch in batches]
        assert {name: sum(part[name] for part in parts) for name in COUNTED} == {name: counts[name] for name in COUNTED}


@quick
@given(cuts)
def test_a_step_is_shown_once_whoever_shows_it(cut: Cut):
    check_cut(cut)


@pytest.mark.parametrize("cut", by_hand, ids=str)
def test_a_step_of_many_shapes(cut: Cut):
    """The last step of the epoch has one row, so most ranks have none."""
    assert [len(cut.plan.step(number)) for number in range(4)] == [8, 8, 1, 8]
    check_cut(cut)


def test_a_step_by_hand():
    """Seven rows over two ranks in twos. A rank that runs out repeats the step's first row with weight 0."""
    plan, shown = Plan(7, 7, 1, 0), view("pairs", EXAMPLES[:7])
    rows = plan.step(0)
    first, second = (StepLoader(Recorded(shown, plan), 2, rank, 2).step(0) for rank in (0, 1))
    assert [b.columns["row"].tolist()[: len(b) // 2] for b in first] == [[rows[0], rows[2]], [rows[4], rows[6]]]
    assert [b.columns["row"].tolist()[: len(b) // 2] for b in second] == [[rows[1], rows[3]], [rows[5]]]
    last = StepLoader(Recorded(shown, Plan(7, 6, 2, 0)), 1, 2, 3).step(1)
    assert [b.columns["row"].tolist() for b in last] == [[Plan(7, 6, 2, 0).step(1)[0]] * 2] * 2
    assert [b.columns["weight"].tolist() for b in last] == [[0.0]] * 2


def same(one: Batch, other: Batch) -> bool:
    tensors = [name for name, value in vars(one).items() if isinstance(value, torch.Tensor)]
    return (
        all(torch.equal(getattr(one, name), getattr(other, name)) for name in tensors)
        and {name: column.tolist() for name, column in one.columns.items()}
        == {name: column.tolist() for name, column in other.columns.items()}
        and one.counts == other.counts
        and len(one.siblings) == len(other.siblings)
        and all(map(same, one.siblings, other.siblings))
    )


@settings(max_examples=30, deadline=None)
@given(cuts, st.integers(0, 6))
def test_a_late_start_shows_the_tail(cut: Cut, start: int):
    for whole, late in zip(cut.loaders(), cut.loaders(start), strict=True):
        batches = list(whole)
        assert len(whole) == len(late) == len(batches) == cut.plan.steps * whole.micro_batches
        tail = list(late)
        assert len(tail) == max(0, cut.plan.steps - start) * whole.micro_batches
        assert all(map(same, tail, batches[start * whole.micro_batches :]))


@quick
@given(st.integers(1, 40), st.none() | st.integers(1, 40), st.integers(1, 8))
def test_the_trainer_accumulates_over_what_a_step_has(batch_size: int, micro: int | None, world: int):
    plan, shown = Plan(2, batch_size, 1, 0), view("pairs", EXAMPLES[:2])
    size = micro or -(-batch_size // world)
    loader = StepLoader(Recorded(shown, plan), size, 0, world)
    assert loader.micro_batches == micro_batches(batch_size, micro, world) == len(loader.step(0)) == len(loader)
    assert micro is not None or loader.micro_batches == 1


# ------------------------------------------------------------------------------------------- held-out rows


@quick
@given(st.integers(1, 17), st.integers(1, 9), st.integers(1, 6), st.sampled_from(["demonstrations", "pairs"]))
def test_held_out_rows_are_shown_once(rows: int, batch_size: int, world: int, data: str):
    """In the batches of one process, which ranks take in turn; the last turn is filled up with the first batch."""
    shown = view(data, EXAMPLES[:rows])
    alone = list(HeldOutLoader(shown, batch_size))
    assert sorted(row for batch in alone for row in shown_rows(batch)) == list(range(rows))
    assert all(len(batch.prompt_lengths) == batch_size for batch in alone[:-1])
    lengths = [length_of(EXAMPLES[row]) for batch in alone for row in shown_rows(batch)]
    assert lengths == sorted(lengths)
    loaders = [HeldOutLoader(shown, batch_size, rank, world) for rank in range(world)]
    batches = [list(loader) for loader in loaders]
    assert [len(loader) for loader in loaders] == list(map(len, batches))
    in_turn = [batch for turn in zip(*batches, strict=True) for batch in turn]
    assert all(map(same, in_turn, alone))
    fillers = in_turn[len(alone) :]
    assert len(fillers) < world
    for batch in fillers:
        assert not batch.columns["weight"].any()
        assert batch.columns["row"].tolist() == alone[0].columns["row"].tolist()


def length_of(encoded: Encoded) -> int:
    return len(encoded.prompt) + max(map(len, encoded.completions))


def test_held_out_batches_are_of_what_the_view_shows():
    examples = [encode(label(f"p{i}", "y" * n, good=i % 2 == 0)) for i, n in enumerate([5, 9, 1, 2, 3, 7])]
    (batch,) = HeldOutLoader(view("demonstrations", examples), 9)
    assert batch.columns["row"].tolist() == [2, 4, 0]
    (batch,) = HeldOutLoader(view("labels", examples), 9)
    assert batch.columns["row"].tolist()[:6] == [2, 3, 4, 0, 5, 1]
    assert (batch.counts, batch.siblings) == ({}, ())


# ------------------------------------------------------------------------------------------- the data module


def module(val: list[Encoded], micro: int | None = None, **trainer: int) -> PreferenceData:
    found = PreferenceData(Recorded(view("labels", EXAMPLES), Plan(17, 8, 5, 0)), micro, val, "labels", (), 4)
    found.trainer = SimpleNamespace(**{"global_rank": 0, "world_size": 1, "global_step": 0, **trainer})
    return found


def test_training_goes_on_where_the_trainer_stands():
    loader = module([], micro=3, global_rank=1, world_size=2, global_step=3).train_dataloader()
    expected = StepLoader(Recorded(view("labels", EXAMPLES), Plan(17, 8, 5, 0)), 3, 1, 2, 3)
    assert all(map(same, list(loader), list(expected)))
    assert [batch.columns["row"].tolist()[::2][:3] for batch in loader][::2] == [
        Plan(17, 8, 5, 0).step(number)[1::2][:3] for number in (3, 4)
    ]


def test_without_a_micro_batch_size_a_rank_takes_its_share_at_once():
    (first, *_) = module([], world_size=3, global_rank=2).train_dataloader()
    assert first.siblings == ()
    assert len(first.prompt_lengths) == 2  # rows 2 and 5 of eight


def test_held_out_loaders_show_every_completion_and_the_own_view():
    pairs, labels = EXAMPLES[:4], [encode(label(f"p{i}")) for i in range(4)]
    assert [loader.view.data for loader in held_out_loaders(pairs, "pairs", (), 4)] == ["pairs"]
    assert [loader.view.data for loader in held_out_loaders(pairs, "labels", (), 4)] == ["pairs", "labels"]
    assert [loader.view.data for loader in held_out_loaders(labels, "demonstrations", (), 4)] == [
        "labels",
        "demonstrations",
    ]
    loaders = held_out_loaders(pairs, "demonstrations", (), 3, rank=1, world=2)
    longest = max(range(4), key=lambda row: length_of(EXAMPLES[row]))
    assert [[shown_rows(batch) for batch in loader] for loader in loaders] == [[[longest]], [[longest]]]
    assert [loader.view.data for loader in module(pairs).val_dataloader()] == ["pairs", "labels"]
    assert module([]).val_dataloader() == []
