"""Views by hand: which ids, under which prompt, in which order, with which columns, and what that counts."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prefopt.data.examples import Encoded, Example
from prefopt.data.views import View, mismatch, view
from prefopt.errors import RequestError
from prefopt.objectives import get
from prefopt.records import Batch
from tests.data.made import encode, label, pair

A, B, C, E, F, N, Y = map(ord, "abcefny")

PAIRS = [
    encode(pair("a", "yy", "n", weight=0.5)),
    encode(pair("bb", "y", "nnn", margin=2.0)),
    encode(pair("c", "yyy", "nn", weight=2.0, margin=0.25)),
]
MARGIN = ("margin",)  # what Bradley-Terry reads
LABELS = [
    encode(label("a", "y")),
    encode(label("bb", "nn", good=False, weight=0.5)),
    encode(label("c", "yyy", weight=2.0)),
    encode(label("bb", "yy")),
]


def said(batch: Batch) -> list[tuple[list[int], list[int]]]:
    """(prompt, completion) ids of every row."""
    prompts = [prompt.tolist() for prompt in batch.prompts()]
    return [(prompts[g], c.tolist()) for g, c in zip(batch.group.tolist(), batch.completions(), strict=True)]


def columns(batch: Batch) -> dict[str, list]:
    return {name: column.tolist() for name, column in batch.columns.items()}


# ------------------------------------------------------------------------------------------- batches by hand


def test_pairs_by_hand():
    batch = view("pairs", PAIRS, MARGIN).batch([2, 0])
    assert batch.data == "pairs"
    assert batch.prompt_ids.tolist() == [1, C, 1, A]
    assert batch.prompt_lengths.tolist() == [2, 2]
    assert batch.completion_ids.tolist() == [Y, Y, Y, 2, Y, Y, 2, N, N, 2, N, 2]  # the chosen ones, then the rejected
    assert batch.completion_lengths.tolist() == [4, 3, 3, 2]
    assert batch.group.tolist() == [0, 1, 0, 1]
    assert columns(batch) == {"weight": [2.0, 0.5], "row": [2, 0, 2, 0], "place": [0, 0, 1, 1], "margin": [0.25, 0.0]}
    assert (batch.counts, batch.siblings) == ({}, ())


def test_demonstrations_by_hand():
    batch = view("demonstrations", PAIRS).batch([1, 0])
    assert batch.data == "demonstrations"
    assert said(batch) == [([1, B, B], [Y, 2]), ([1, A], [Y, Y, 2])]
    assert batch.group.tolist() == [0, 1]
    assert columns(batch) == {"weight": [1.0, 0.5], "row": [1, 0], "place": [0, 0]}


def test_demonstrations_of_labels_are_the_good_ones():
    shown = view("demonstrations", LABELS)
    assert len(shown) == 3
    batch = shown.batch([0, 1, 2])  # positions among what is shown; `row` is the example's number
    assert said(batch) == [([1, A], [Y, 2]), ([1, C], [Y, Y, Y, 2]), ([1, B, B], [Y, Y, 2])]
    assert columns(batch) == {"weight": [1.0, 2.0, 1.0], "row": [0, 2, 3], "place": [0, 0, 0]}


def test_of_a_ranking_every_method_sees_the_best_and_the_worst():
    ranking = [
        encode(Example(prompt="p", completions=("y", "c", "n"), scores=(5.0, 2.0, -1.0))),
        encode(Example(prompt="q", completions=("yy", "c", "nn", "n"), scores=(-1.0, -2.0, -3.0, -4.0))),
    ]
    p, q = [1, ord("p")], [1, ord("q")]
    assert said(view("demonstrations", ranking).batch([0, 1])) == [(p, [Y, 2]), (q, [Y, Y, 2])]
    pairs = view("pairs", ranking).batch([1, 0])
    assert said(pairs) == [(q, [Y, Y, 2]), (p, [Y, 2]), (q, [N, 2]), (p, [N, 2])]
    assert columns(pairs)["place"] == [0, 0, 3, 2]
    labels = view("labels", ranking).batch([0])
    assert said(labels)[:2] == [(p, [Y, 2]), (p, [N, 2])]
    assert columns(labels)["desirable"][:2] == [True, False]


def test_a_soft_label_is_a_weight_or_a_target():
    """p = 3/4: weight 2 · |2p - 1| = 1, or weight 2 and target 3/4."""
    soft = [encode(pair("a", target=0.75, weight=2.0)), encode(pair("b"))]
    assert columns(view("pairs", soft).batch([0, 1]))["weight"] == [1.0, 1.0]
    shown = columns(view("pairs", soft, ("target",)).batch([0, 1]))
    assert (shown["weight"], shown["target"]) == ([2.0, 1.0], [0.75, 1.0])
    assert columns(view("labels", soft).batch([0, 1]))["weight"] == [1.0] * 4


def test_labels_by_hand():
    shown = view("labels", LABELS)
    batch = shown.batch([1, 2])
    first, second = shown.partners[1, 0], shown.partners[2, 0]
    assert batch.group.tolist() == [0, 1, 0, 1]
    assert said(batch) == [
        ([1, B, B], [N, N, 2]),
        ([1, C], [Y, Y, Y, 2]),
        ([1, B, B], LABELS[first[0]].completions[0].tolist()),  # a partner's completion under the labelled row's prompt
        ([1, C], LABELS[second[0]].completions[0].tolist()),
    ]
    assert columns(batch) == {
        "weight": [0.5, 2.0],
        "row": [1, 2, first[0], second[0]],
        "place": [0, 0, 0, 0],
        "desirable": [False, True, *(LABELS[i].example.scores[0] > 0 for i, _ in (first, second))],
    }
    assert batch.columns["desirable"].dtype == torch.bool


def test_labels_of_pairs_show_both_sides():
    shown = view("labels", PAIRS)
    assert len(shown) == 3
    batch = shown.batch([2, 0])
    assert batch.prompt_lengths.tolist() == [2, 2]
    assert batch.group.tolist() == [0, 0, 1, 1] * 2
    labelled = said(batch)[:4]
    assert labelled == [([1, C], [Y, Y, Y, 2]), ([1, C], [N, N, 2]), ([1, A], [Y, Y, 2]), ([1, A], [N, 2])]
    assert columns(batch)["weight"] == [2.0, 2.0, 0.5, 0.5]
    assert columns(batch)["desirable"][:4] == [True, False, True, False]
    places = [(2, 0), (2, 1), (0, 0), (0, 1)]
    rows = list(zip(columns(batch)["row"], columns(batch)["place"], strict=True))
    assert rows == places + [shown.partners[place] for place in places]


def test_a_view_is_of_the_arrays_themselves():
    batch = view("pairs", PAIRS, MARGIN).batch([0, 1])
    assert batch.prompt_ids.dtype == batch.completion_ids.dtype == torch.int64
    batch.prompt_ids.zero_()  # a batch is a copy
    assert PAIRS[0].prompt.tolist() == [1, A]


# ------------------------------------------------------------------------------------------- weight, margin, filler


def test_every_batch_has_the_same_columns():
    """Also where no row of a batch has a margin: a missing one is 0, as it is beside rows that have one."""
    shown = view("pairs", PAIRS, MARGIN)
    assert {tuple(columns(shown.batch(rows))) for rows in ([0], [1], [0, 1, 2], [2, 0])} == {
        ("weight", "row", "place", "margin")
    }
    assert columns(shown.batch([0]))["margin"] == [0.0]
    assert "margin" not in view("pairs", PAIRS[:1], MARGIN).batch([0]).columns
    assert "margin" not in view("labels", PAIRS).batch([0]).columns


def test_weights_and_margins_are_floats():
    batch = view("pairs", [encode(pair("a", weight=2, margin=1)), encode(pair("b", weight=1, margin=3))], MARGIN).batch(
        [0, 1]
    )
    assert batch.columns["weight"].dtype == batch.columns["margin"].dtype == torch.float32
    assert columns(batch)["margin"] == [1.0, 3.0]


COUNTED = ("rows", "pairs", "tokens", "demonstrations", "demonstrated_tokens", "demonstrated_text", "weight")


def counted(batch: Batch) -> dict[str, float]:
    return {name: batch.units()[name] for name in COUNTED}


def test_units_of_pairs_by_hand():
    # Weights 2 and 0.5; completions of 4, 3 and of 3, 2 tokens; one prompt token of each pair has one before it.
    assert counted(view("pairs", PAIRS, MARGIN).batch([2, 0])) == {
        "rows": 2.5,
        "pairs": 2.5,
        "tokens": 2.0 * (4 + 3) + 0.5 * (3 + 2),
        "demonstrations": 2.5,
        "demonstrated_tokens": 2.0 * 4 + 0.5 * 3,
        "demonstrated_text": 2.0 * (4 + 1) + 0.5 * (3 + 1),
        "weight": 2.5,
    }
    assert view("pairs", PAIRS, MARGIN).batch([2, 0]).units()["margin"] == 0.25


def test_units_of_demonstrations_by_hand():
    # Weights 1 and 0.5, completions of 2 and 3 tokens, 2 and 1 prompt tokens after the first.
    assert counted(view("demonstrations", PAIRS).batch([1, 0])) == {
        "rows": 1.5,
        "pairs": 1.5,
        "tokens": 2 + 0.5 * 3,
        "demonstrations": 1.5,
        "demonstrated_tokens": 2 + 0.5 * 3,
        "demonstrated_text": (2 + 2) + 0.5 * (3 + 1),
        "weight": 1.5,
    }


def test_units_of_labels_by_hand():
    # The second row is undesirable and weighs 0.5; what the partners weigh is theirs alone and counts nowhere.
    assert counted(view("labels", LABELS).batch([1, 2])) == {
        "rows": 2.5,
        "pairs": 2.5,
        "tokens": 0.5 * 3 + 2.0 * 4,
        "demonstrations": 2.0,
        "demonstrated_tokens": 2.0 * 4,
        "demonstrated_text": 2.0 * (4 + 1),
        "weight": 2.5,
    }


@pytest.mark.parametrize("data", ["demonstrations", "pairs", "labels"])
def test_filler_is_the_same_rows_and_counts_nothing(data: str):
    shown = view(data, PAIRS)
    filler, batch = shown.batch([1, 2], filler=True), shown.batch([1, 2])
    assert said(filler) == said(batch)
    assert set(counted(filler).values()) == {0.0}
    assert set(filler.columns["weight"].tolist()) == {0.0}
    different = {name for name, column in columns(filler).items() if column != columns(batch)[name]}
    assert different == {"weight"}


# ------------------------------------------------------------------------------------------- KTO's partners


def prompts_of(examples: list[Encoded]) -> list[str]:
    return [encoded.example.prompt_text for encoded in examples]


def check_partners(examples: list[Encoded]) -> None:
    """Each completion has one partner, a completion that exists, under another prompt."""
    places = [(i, k) for i, encoded in enumerate(examples) for k in range(len(encoded.completions))]
    partners, prompts = mismatch(examples), prompts_of(examples)
    assert sorted(partners) == places
    assert set(partners.values()) <= set(places)
    assert all(prompts[i] != prompts[j] for (i, _), (j, _) in partners.items())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=2, max_size=30))
def test_a_partner_has_another_prompt(drawn: list[tuple[int, bool]]):
    examples = [encode(pair(str(prompt)) if two else label(str(prompt))) for prompt, two in drawn]
    if len({prompt for prompt, _ in drawn}) < 2:
        with pytest.raises(RequestError, match=r"\Alabels need completions under at least two different prompts"):
            mismatch(examples)
    else:
        check_partners(examples)


def test_two_prompts_are_each_others_partners():
    assert mismatch([encode(label("a")), encode(label("b"))]) == {(0, 0): (1, 0), (1, 0): (0, 0)}


def test_a_prompt_as_text_and_as_a_message_are_no_partners():
    with pytest.raises(RequestError, match=r"\Alabels need completions under at least two different prompts"):
        mismatch([encode(label("a")), encode(label(({"role": "user", "content": "a"},)))])


@pytest.mark.parametrize(("prompts", "each"), [(400, 1), (200, 2), (100, 4)])
def test_every_completion_is_used_about_equally_often(prompts: int, each: int):
    """With many prompts the next row in the circle nearly always has another one: partners are nearly a permutation."""
    examples = [encode(pair(f"p{i % prompts}", f"yes {i}")) for i in range(prompts * each)]
    used = Counter(mismatch(examples).values())
    assert sum(used.values()) == 2 * prompts * each
    assert max(used.values()) <= 3
    assert sum(count == 1 for count in used.values()) > 0.9 * 2 * prompts * each


def test_a_prompt_with_half_of_the_rows_does_not_single_one_out():
    """Each of the others stands in for itself and for the run before it, one row on average."""
    examples = [encode(label(f"p{max(i - 200, 0)}", f"yes {i}")) for i in range(400)]
    check_partners(examples)
    assert max(Counter(mismatch(examples).values()).values()) < 12


def test_a_partner_is_no_longer_than_the_longest_row_leaves_room_for():
    """Where any fits: no row grows beyond what the data has anyway. Alone, a first draw would be too long 15 times."""
    draw = random.Random(0)
    examples = [encode(label("x" * n, "y" * draw.randint(1, 30))) for n in range(40)]
    rows = [len(encoded.prompt) + len(encoded.completions[0]) for encoded in examples]
    check_partners(examples)
    partners = mismatch(examples).items()
    assert all(len(examples[i].prompt) + len(examples[j].completions[0]) <= max(rows) for (i, _), (j, _) in partners)
    tight = [encode(label("x" * 9, "y")), encode(label("x", "yy"))]  # the longest row is 12, and 10 + 3 is all there is
    assert mismatch(tight) == {(0, 0): (1, 0), (1, 0): (0, 0)}


def test_partners_come_from_all_rows_and_from_both_sides():
    examples = [encode(pair(f"p{i}")) for i in range(200)]
    partners = mismatch(examples)
    apart = np.array([abs(i - j) for (i, _), (j, _) in partners.items()])
    assert 50 < apart.mean() < 84  # 200 / 3 of two random rows
    kinds = Counter((k, m) for (_, k), (_, m) in partners.items())
    assert min(kinds.values()) > 70  # 100 of each kind; a standard error is under 10
    batch = view("labels", examples).batch([0, 1, 2])
    assert not set(columns(batch)["row"][6:]) <= {0, 1, 2}


def test_partners_are_a_function_of_the_data_alone():
    examples = [encode(pair(f"p{i}")) for i in range(50)]
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    first = view("labels", examples)
    random.seed(2), np.random.seed(2), torch.manual_seed(2)
    again = view("labels", [encode(pair(f"p{i}", "other", "texts")) for i in range(50)])
    assert first.partners == again.partners == mismatch(examples)

    def shown(rows: list[int], size: int) -> dict[tuple[int, int], tuple[int, int]]:
        """The partner of each labelled completion in batches of this size."""
        found = {}
        for i in range(0, len(rows), size):
            batch = first.batch(rows[i : i + size])
            places = list(zip(columns(batch)["row"], columns(batch)["place"], strict=True))
            half = len(places) // 2
            found |= dict(zip(places[:half], places[half:], strict=True))
        return found

    assert shown(list(range(50)), 1) == shown(list(range(49, -1, -1)), 7) == first.partners


@pytest.mark.parametrize("examples", [[], [label("a")], [label("a"), label("a", "other"), label("a", good=False)]])
def test_fewer_than_two_prompts_are_refused(examples: list[Example]):
    with pytest.raises(RequestError, match=r"\A(labels need|this loss needs)"):
        view("labels", list(map(encode, examples)))


# ------------------------------------------------------------------------------------------- what a view may show


def judged(batch: Batch) -> set[tuple[int, int]]:
    """The completions a loss is about: both halves of pairs, the labelled half of labels."""
    places = list(zip(columns(batch)["row"], columns(batch)["place"], strict=True))
    return set(places if batch.data == "pairs" else places[: len(places) // 2])


def test_kto_and_dpo_see_the_same_examples():
    shown: dict[str, View] = {name: view(get(name).needs.data, PAIRS) for name in ("dpo", "kto", "orpo", "sft")}
    assert {name: one.data for name, one in shown.items()} == {
        "dpo": "pairs",
        "kto": "labels",
        "orpo": "pairs",
        "sft": "demonstrations",
    }
    assert {tuple(one.rows) for one in shown.values()} == {(0, 1, 2)}
    for rows in ([0], [1, 2], [2, 0, 1]):
        assert (
            judged(shown["dpo"].batch(rows))
            == judged(shown["kto"].batch(rows))
            == {(r, k) for r in rows for k in (0, 1)}
        )
        assert shown["dpo"].batch(rows).prompt_ids.tolist() == shown["kto"].batch(rows).prompt_ids.tolist()


@pytest.mark.parametrize("data", ["rankings", "rollouts", "steps"])
def test_what_no_recorded_example_gives_is_refused(data: str):
    with pytest.raises(
        RequestError, match=rf"\Arecorded examples are demonstrations, pairs, labels; this loss needs {data}\Z"
    ):
        view(data, PAIRS)


@pytest.mark.parametrize(
    ("data", "examples", "needed"),
    [
        ("pairs", LABELS, r"pairs \(chosen and rejected\)"),
        ("pairs", [], r"pairs \(chosen and rejected\)"),
        ("demonstrations", [encode(label("a", good=False))], "completions judged good"),
        ("demonstrations", [], "completions judged good"),
        ("labels", [], "labelled completions"),
    ],
)
def test_data_without_what_a_loss_needs_is_refused(data: str, examples: list[Encoded], needed: str):
    message = rf"\Athis loss needs {needed}, and the data has none\Z"
    with pytest.raises(RequestError, match=message):
        view(data, examples)
