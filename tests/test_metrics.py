"""Measures by hand."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch

from prefopt.data.examples import Encoded, Example
from prefopt.metrics.answers import Answers, _shared, answer_measures, best_of, bleus, distinct, gold_gain, self_bleu
from prefopt.metrics.held_out import HeldOutTable, gold_measures, measures, slice_measures
from prefopt.metrics.rewardbench import OVERALL, SECTIONS, section_scores
from prefopt.metrics.rows import describe, wins
from prefopt.metrics.sums import Sums
from prefopt.records import Scores
from prefopt.reports.terminal import _gained


def example(scores, **more) -> Encoded:
    count = len(scores)
    said = Example(prompt="p", completions=("a", "b")[:count], scores=scores, **more)
    return Encoded(said, np.array([1]), (np.array([2]),) * count)


def table(rewards, logps, refs, lengths) -> dict[str, np.ndarray]:
    """One pair an entry: (chosen, rejected)."""
    flat = lambda pairs: np.array([value for pair in pairs for value in pair], dtype=float)  # noqa: E731
    rows = np.repeat(np.arange(len(rewards)), 2).astype(float)
    columns = {"reward": flat(rewards), "logp": flat(logps), "ref_logp": flat(refs), "length": flat(lengths)}
    return {"row": rows, "place": np.tile([0.0, 1.0], len(rewards)), **columns}


def test_pairs_by_hand():
    """Right, a tie, wrong, with weights 1, 2, 1: accuracy (1 + 2 · ½ + 0) / 4."""
    examples = [example((1.0, 0.0), weight=w) for w in (1.0, 2.0, 1.0)]
    rewards = [(2.0, 1.0), (1.0, 1.0), (0.0, 3.0)]
    logps, refs = [(-4.0, -5.0), (-6.0, -6.5), (-3.0, -2.0)], [(-5.0, -5.0), (-6.0, -6.0), (-3.0, -4.0)]
    found = measures(table(rewards, logps, refs, [(3, 4), (5, 6), (7, 8)]), examples)
    assert found["accuracy"] == pytest.approx(0.5)
    # log-ratios (1, 0), (0, -.5), (0, 2): right, right, wrong
    assert found["accuracy_logratio"] == pytest.approx(3 / 4)
    # log-probs (-4, -5), (-6, -6.5), (-3, -2): right, right, wrong
    assert found["accuracy_logp"] == pytest.approx(3 / 4)
    assert found["margin"] == pytest.approx((1 + 0 * 2 - 3) / 4)
    assert found["chosen_logp_delta"] == pytest.approx((1 + 0 * 2 + 0) / 4)
    assert found["rejected_logp_delta"] == pytest.approx((0 - 0.5 * 2 + 2) / 4)
    assert found["chosen_length"] == pytest.approx((3 + 5 * 2 + 7) / 4)
    assert found["rejected_length"] == pytest.approx((4 + 6 * 2 + 8) / 4)


def test_labels_without_pairs_by_hand():
    """Desirable 3 and 1, undesirable 2 and 1: of four comparisons 2 are right, one a tie, one wrong: 2.5 / 4."""
    examples = [example((s,)) for s in (1.0, 1.0, 0.0, 0.0)]
    rewards = np.array([3.0, 1.0, 2.0, 1.0])
    columns = {"reward": rewards, "logp": rewards - 5, "ref_logp": rewards * 0 - 5, "length": rewards * 0 + 4}
    found = measures({"row": np.arange(4.0), "place": np.zeros(4), **columns}, examples)
    assert found["accuracy"] == pytest.approx(2.5 / 4)
    assert found["margin"] == pytest.approx(2.0 - 1.5)


def test_what_does_not_apply_is_none():
    """A reward head has no log-probs; one class has no order."""
    nan = [(math.nan, math.nan)]
    found = measures(table([(1.0, 0.0)], nan, nan, [(1, 1)]), [example((1.0, 0.0))])
    assert found["accuracy"] == 1.0
    assert found["accuracy_logp"] is None
    assert found["chosen_logp_delta"] is None
    one = {"row": np.zeros(1), "place": np.zeros(1)} | {k: np.ones(1) for k in ("reward", "logp", "ref_logp", "length")}
    assert measures(one, [example((1.0,))])["accuracy"] is None


def test_rows_without_any_weight_say_nothing():
    pairs = [(2.0, 1.0), (1.0, 2.0)]
    found = measures(table(pairs, pairs, pairs, pairs), [example((1.0, 0.0), weight=0.0)] * 2)
    assert set(found.values()) == {None}


def test_gold_measures_by_hand():
    """Gold gaps +1, -2, 0, +3: labels agree in 2.5 of 4. Reward gaps +, -, +, -: true order 2 of the 3 with a gap."""
    gold = [(2.0, 1.0), (0.0, 2.0), (1.0, 1.0), (3.0, 0.0)]
    examples = [example((1.0, 0.0), gold=pair) for pair in gold]
    pairs = [(1.0, 0.0), (0.0, 1.0), (1.0, 0.0), (0.0, 1.0)]
    found = gold_measures(table(pairs, pairs, pairs, pairs), examples)
    expected = {"pairs": 4, "ceiling": 2.5 / 4, "accuracy_of_ceiling": (2 / 4) / (2.5 / 4), "accuracy_true": 2 / 3}
    assert found == pytest.approx(expected)


def test_the_table_holds_each_completion_once_in_order():
    """Batches in any order, rows repeated to fill a batch, mismatched rows of labels left out."""
    held = HeldOutTable()
    logps = torch.tensor([[-1.0, -2.0], [-3.0, 0.0], [-4.0, -5.0], [-6.0, 0.0]])
    mask = torch.tensor([[1, 1], [1, 0], [1, 1], [1, 0]]).bool()

    def scores(rows, places):
        columns = {"row": torch.tensor(rows), "place": torch.tensor(places)}
        return Scores(logps=logps, mask=mask, ref_logps=logps * 2, columns=columns)

    held.update("pairs", scores([7, 3, 7, 3], [0, 0, 1, 1]), torch.tensor([1.0, 2.0, 3.0, 4.0]))
    held.update("pairs", scores([7, 3, 7, 3], [0, 0, 1, 1]), torch.tensor([1.0, 2.0, 3.0, 4.0]))
    held.update("labels", scores([9, 8, 1, 1], [0, 0, 0, 0]), torch.tensor([5.0, 6.0, 9.0, 9.0]))
    found = held.compute()
    assert found["row"].tolist() == [3, 3, 7, 7, 8, 9]
    assert found["place"].tolist() == [0, 1, 0, 1, 0, 0]
    assert found["reward"].tolist() == [2, 4, 1, 3, 6, 5]
    assert found["logp"].tolist() == [-3, -6, -3, -9, -3, -3]
    assert found["ref_logp"].tolist() == [-6, -12, -6, -18, -6, -6]
    assert found["length"].tolist() == [1, 1, 2, 2, 1, 2]
    assert held.double().half().compute()["reward"].dtype == np.float64


def test_sums_are_float64_and_know_empty_counts():
    sums = Sums()
    for _ in range(10):
        sums.update({"a": (torch.tensor(0.1), torch.tensor(1)), "b": (torch.tensor(0.0), 0)})
    assert sums.half().compute()["a"] == pytest.approx(float(torch.tensor(0.1).double()), rel=1e-15)
    assert math.isnan(sums.compute()["b"])
    with pytest.raises(ValueError, match=r"expected \['a', 'b'\], got \['a'\]"):
        sums.update({"a": (0, 1)})
    sums.reset()
    sums.update({"c": (6, 4)})
    assert sums.compute() == {"c": 1.5}


def test_sums_are_exact_in_any_order():
    """Added up in float64 one after the other, 1e16 + 1 - 1e16 is 0 or 1 and ten times 0.1 is not 1."""
    parts = [1e16, 1.0, -1e16, *[0.1] * 10]
    found = set()
    for shuffle in range(20):
        sums = Sums()
        for i in np.random.default_rng(shuffle).permutation(len(parts)):
            sums.update({"a": (torch.tensor(parts[i], dtype=torch.float64), 0.1)})
        found.add(sums.compute()["a"])
    assert found == {2.0 / 1.3}


def test_sums_of_what_is_no_number_are_none():
    for parts in ([math.inf, -math.inf], [math.nan, 1.0], [math.inf, math.nan]):
        sums = Sums()
        for part in parts:
            sums.update({"a": (part, 1.0)})
        assert math.isnan(sums.compute()["a"])
    sums = Sums()
    assert sums.compute() == {}
    sums.update({"a": (1e308, 1.0)})
    sums.update({"a": (1e308, 1.0)})
    assert sums.compute() == {"a": math.inf}


def test_a_tie_is_one_half():
    assert wins(torch.tensor([1.0, 0.0, -1.0])).tolist() == [1.0, 0.5, 0.0]
    same = Scores(logps=torch.full((2, 3), -1.0), mask=torch.ones(2, 3), ref_logps=torch.full((2, 3), -1.0))
    seen = describe("pairs", same, torch.zeros(2))
    assert [float(value) for value in seen["accuracy"]] == [0.5, 1.0]


def test_training_rows_by_hand():
    """Weights 1 and 3 of two pairs; labelled rows of each class by themselves."""
    logps = torch.tensor([[-1.0], [-2.0], [-3.0], [-4.0]])
    scores = Scores(logps=logps, mask=torch.ones(4, 1), columns={"weight": torch.tensor([1.0, 3.0])})
    seen = describe("pairs", scores, torch.tensor([2.0, 0.0, 1.0, 1.0]))
    mean = {name: float(s / c) for name, (s, c) in seen.items()}
    assert mean["accuracy"] == 0.25
    assert mean["margin"] == (1 * 1 + -1 * 3) / 4
    assert mean["chosen_logp"] == (-1 * 1 - 2 * 3) / 4
    assert "chosen_logp_delta" not in mean
    labels = Scores(logps=logps, mask=torch.ones(4, 1), columns={"desirable": torch.tensor([True, False, False, True])})
    seen = describe("labels", labels, torch.tensor([2.0, 5.0, 9.0, 9.0]))
    assert [float(v) for v in seen["desirable_reward"]] == [2.0, 1.0]
    assert [float(v) for v in seen["undesirable_reward"]] == [5.0, 1.0]


def test_answers_by_hand():
    """Bigrams of [1 2 1 2] and [3]: 12 21 12, two different of three. Trigrams of the first: 121 212, none repeated."""
    assert distinct([[1, 2, 1, 2], [3]], 2) == pytest.approx(2 / 3)
    assert distinct([[1]], 2) == 1.0
    ids = [[1, 2, 1, 2], [3], [5, 5, 5, 5, 5], [6, 7]]
    policy = Answers(2, ids, kl=np.array([1.0, 3.0, 0.0, 2.0]), gold=np.array([1.0, 2.0, 3.0, 0.0]))
    base = Answers(2, ids, gold=np.array([0.0, 2.0, 4.0, -1.0]))
    found = answer_measures(policy, base)
    assert found["length"] == 3.0
    assert found["repetition"] == pytest.approx((0 + 0 + 2 / 3 + 0) / 4)
    assert found["kl"] == 1.5
    assert found["kl_stderr"] == pytest.approx(0.5)  # prompts' means 2 and 1: sd 0.7071 over √2
    assert found["gold_reward"] == 1.5
    assert found["gold_reward_stderr"] == pytest.approx(0.0)
    assert found["win_rate_vs_reference"] == pytest.approx((1 + 0.5 + 0 + 1) / 4)
    assert answer_measures(base)["kl"] is None
    assert answer_measures(Answers(2, ids, kl=np.zeros(4)))["kl"] == 0.0
    assert answer_measures(Answers(2, ids))["gold_reward"] is None


def test_bleu_by_hand():
    """Of 1 2 3 4 against 1 2 3 5: 3 of 4 words, 2 of 3 pairs, 1 of 2 triples, and none of 1, which counts as 0.1."""
    assert bleus([[1, 2, 3, 4], [1, 2, 3, 5]])[0] == pytest.approx((3 / 4 * 2 / 3 * 1 / 2 * 0.1 / 1) ** 0.25)
    assert bleus([[1, 2, 3, 4, 5], [1, 2, 3, 4, 5], [9]])[0] == pytest.approx(1)
    # A word counts as often as in one reference: 1 1 1 has two of three words in 1 1, its pair once of two.
    assert bleus([[1, 1, 1], [1, 1], [1, 5]])[0] == pytest.approx((2 / 3 * 1 / 2 * 0.1) ** (1 / 3))
    # But any reference may have it: 1 2 has 1 of the one and 2 of the other, and no pair.
    assert bleus([[1, 2], [1, 7], [7, 2]])[0] == pytest.approx((1 * 0.1) ** 0.5)
    # Two words, so words and pairs: all are there; too short by the nearest length, 3: exp(1 - 3/2).
    assert bleus([[1, 2], [1, 2, 3], [1, 2, 3, 4, 5, 6]])[0] == pytest.approx(math.exp(-0.5))
    # The nearest length is 4, though another reference is shorter.
    assert bleus([[1, 2, 3], [1], [1, 2, 3, 4]])[0] == pytest.approx(math.exp(-1 / 3))
    # As near as the longer one is the shorter one, which asks for no penalty.
    assert bleus([[1, 2], [1], [1, 2, 3]])[0] == pytest.approx(1)
    assert (bleus([[], [], [1]])[0], bleus([[], [1]])[0]) == (1, 0)


def test_bleu_counts_by_the_definition():
    """The largest count in any one other text, of texts so short of words that they share most."""
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, 3, length).tolist() for length in (7, 5, 7, 9, 6)]
    for n in (1, 2, 3):
        counts = [Counter(zip(*(ids[i:] for i in range(n)), strict=False)) for ids in texts]
        expected = []
        for k, own in enumerate(counts):
            others = [grams for i, grams in enumerate(counts) if i != k]
            expected.append(sum(min(count, max(grams[g] for grams in others)) for g, count in own.items()))
        assert _shared(texts, n) == expected


def test_self_bleu_by_hand():
    """Prompts by themselves: the same answer twice, then two without a word in common."""
    ids = [[1, 2, 3, 4], [1, 2, 3, 4], [1, 2], [3, 4]]
    assert self_bleu(ids, 2) == pytest.approx((1 + 1 + 2 * (0.1 / 2 * 0.1 / 1) ** 0.5) / 4)
    assert self_bleu(ids, 1) is None
    assert answer_measures(Answers(2, ids))["self_bleu"] == pytest.approx(self_bleu(ids, 2))


def test_slices_by_hand():
    """Slice a: right and a tie of weight 3; slice b: wrong; a row without a slice is in none."""
    named = (("a", 1.0), ("a", 3.0), ("b", 1.0), (None, 1.0))
    examples = [example((1.0, 0.0), slice=name, weight=w) for name, w in named]
    pairs = [(2.0, 1.0), (1.0, 1.0), (0.0, 3.0), (9.0, 0.0)]
    found = slice_measures(table(pairs, pairs, pairs, pairs), examples)
    assert list(found) == ["a", "b"]
    assert (found["a"]["rows"], found["b"]["rows"]) == (2, 1)
    assert found["a"]["accuracy"] == pytest.approx((1 + 3 * 0.5) / 4)
    assert found["a"]["margin"] == pytest.approx(1 / 4)
    assert (found["b"]["accuracy"], found["b"]["margin"]) == (0, -3)
    assert slice_measures(table(pairs[3:], pairs[3:], pairs[3:], pairs[3:]), examples[3:]) is None


def test_the_sections_of_rewardbench_by_hand():
    """Chat: (100 · 0.9 + 40 · 0.5) / 140. Reasoning: math-prm counts 984, one language 164. No other section is there,
    so there is no overall score; with all there is, and it is the mean of four whatever their sizes."""
    known = {"alpacaeval-easy": 0.9, "mt-bench-med": 0.5, "math-prm": 0.25, "hep-cpp": 1.0, "mine": 0.0, "hep-go": None}
    found = section_scores(known)
    assert found == pytest.approx({"Chat": (90 + 20) / 140, "Reasoning": (984 * 0.25 + 164) / (984 + 164)})
    assert section_scores({"mine": 1.0}) is None
    every = {name: float(section == "Chat") for section, weights in SECTIONS.items() for name in weights}
    assert section_scores(every)[OVERALL] == pytest.approx(1 / 4)
    counts = {section: sum(weights.values()) for section, weights in SECTIONS.items()}
    assert counts == {"Chat": 358, "Chat Hard": 456, "Safety": 740, "Reasoning": 2 * 984}  # rows; code and math alike


def test_gold_gain_by_hand():
    """Two prompts, gains 2 and 4: mean 3, sem 1, t(0.975, 1) = 12.706. Best of 4: maxima 3 and 7, means 1.5 and 5.5."""
    base = np.array([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])
    policy = base + np.repeat([2.0, 4.0], 4)
    found = gold_gain(Answers(4, [[0]] * 8, gold=policy), Answers(4, [[0]] * 8, gold=base))
    assert found["gold_gain"] == pytest.approx(3.0)
    assert found["gold_gain_low"] == pytest.approx(3 - 12.7062, abs=1e-3)
    assert found["gold_gain_high"] == pytest.approx(3 + 12.7062, abs=1e-3)
    assert found["best_of_4_gain"] == pytest.approx(1.5)


def test_a_gain_of_few_answers():
    """One prompt has no interval, three answers no best of four; what is not known is not a number in no file."""
    base = np.array([0.0, 1.0, 2.0])
    found = gold_gain(Answers(3, [[0]] * 3, gold=base + 2), Answers(3, [[0]] * 3, gold=base))
    unknown = dict.fromkeys(("gold_gain_low", "gold_gain_high", "best_of_4_gain"))
    assert found == {"gold_gain": pytest.approx(2.0), **unknown}
    assert list(_gained(found)) == ["gold reward gained 2.000"]
    known = {"gold_gain": 2.0, "gold_gain_low": 1.5, "gold_gain_high": 2.5, "best_of_4_gain": 1.0}
    gained = "gold reward gained 2.000 (95 % interval 1.500 to 2.500)"
    assert list(_gained(known)) == [gained, "best of 4 of the base gains 1.000, half of that is 0.500"]


def test_the_best_of_n_by_hand():
    """The judge's order of the worths is 20, 30, 10, 40. Of the six pairs one has its best in the second place, two in
    the third, three in the last: (30 + 2 · 10 + 3 · 40) / 6; of all four the best is the last."""
    judged, worth = np.array([[3.0, 1, 2, 4]]), np.array([[10.0, 20, 30, 40]])
    assert best_of(1, judged, worth) == pytest.approx(25)
    assert best_of(2, judged, worth) == pytest.approx(170 / 6)
    assert best_of(4, judged, worth) == pytest.approx(40)


def test_the_best_of_n_is_the_mean_over_every_choice():
    draw = np.random.default_rng(0)
    judged, worth = draw.normal(size=(2, 3, 7))
    for n in (1, 3, 7):
        choices = [list(some) for some in itertools.combinations(range(7), n)]
        every = [worth[p, some][judged[p, some].argmax()] for p in range(3) for some in choices]
        assert best_of(n, judged, worth) == pytest.approx(np.mean(every))
