"""The audit by hand: every figure counted once more on rows few enough to count, and on the real dialogues."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from prefopt.data.audit import Tally, warnings
from prefopt.data.examples import Example
from tests.data.made import encode, label, pair
from tests.data.test_prepare import prepare


def report(*examples: Example) -> dict:
    tally = Tally()
    for example in examples:
        tally.see(encode(example))
    return tally.report()


def test_counts_lengths_and_balance_by_hand():
    """A character is a token; a prompt has one more, a completion its end."""
    found = report(pair("pp", "yyy", "n"), pair("p", "y", "nn", target=0.75), pair("pppp", "yy", "nn"))
    assert (found["rows"], found["pairs"], found["soft"]) == (3, 3, 1)
    assert (found["desirable"], found["undesirable"]) == (3, 3)
    assert found["prompt_tokens"] == (3 + 2 + 5) / 3
    assert found["desirable_tokens"] == (4 + 2 + 3) / 3
    assert found["undesirable_tokens"] == (2 + 3 + 3) / 3
    assert found["longest"] == 5 + 3
    assert found["longer_wins"] == (1 + 0 + 0.5) / 3


def test_labels_have_a_balance_and_no_longer_one():
    found = report(label("p", "y"), label("p", "n", good=False), label("q", "y"))
    assert (found["pairs"], found["desirable"], found["undesirable"]) == (0, 2, 1)
    assert found["longer_wins"] is None
    assert report(label("p"))["undesirable_tokens"] is None


def test_of_a_ranking_the_best_and_the_worst_count():
    found = report(Example(prompt="p", completions=("yy", "mmmmm", "n"), scores=(3.0, 2.0, 1.0)))
    assert (found["pairs"], found["desirable"], found["undesirable"]) == (1, 1, 1)
    assert (found["longer_wins"], found["longest"]) == (1.0, 2 + 3)


def test_a_prompt_as_text_and_as_a_message_is_one_prompt():
    message = ({"role": "user", "content": "p"},)
    assert report(pair("p", "a", "b"), pair(message, "b", "a"))["contradictions"] == 1


def test_duplicates_say_all_the_same():
    again = [pair("p"), pair("p"), pair("p", source="elsewhere"), pair("p", weight=2.0), pair("q")]
    assert report(*again)["duplicates"] == 2


@pytest.mark.parametrize(
    ("examples", "contradictions", "circles"),
    [
        ([pair("p", "a", "b"), pair("p", "a", "b")], 0, 0),
        ([pair("p", "a", "b"), pair("p", "b", "a")], 1, 0),
        ([pair("p", "a", "b"), pair("q", "b", "a")], 0, 0),  # under another prompt it is another question
        ([pair("p", a, b) for a, b in pairwise("abca")], 0, 1),
        ([pair("p", a, b) for a, b in pairwise("abcda")] + [pair("q", a, b) for a, b in pairwise("abca")], 0, 2),
        ([pair("p", a, b) for a, b in pairwise("abcd")] + [pair("p", "a", "d")], 0, 0),
        ([pair("p", a, b) for a, b in pairwise("abca")] + [pair("p", "b", "a")], 1, 0),  # no circle without a over b
        ([label("p", "a"), label("p", "a", good=False), label("p", "b")], 1, 0),
    ],
)
def test_contradictions_and_circles(examples: list[Example], contradictions: int, circles: int):
    found = report(*examples)
    assert (found["contradictions"], found["cyclic_prompts"]) == (contradictions, circles)


def test_annotators_agree_by_pairs_of_them():
    """Item 1: three judges, 1 of 3 pairs agrees. Item 2: two who agree. Item 3: one judge only. So 2 of 4."""
    judged = [
        pair("p", "a", "b", annotator="ann"),
        pair("p", "a", "b", annotator="bob"),
        pair("p", "b", "a", annotator="cyn"),
        pair("q", "a", "b", annotator="ann"),
        pair("q", "a", "b", annotator="dan"),
        pair("r", "a", "b", annotator="ann"),
        pair("s", "a", "b"),
    ]
    found = report(*judged)
    assert (found["annotators"], found["judged_repeatedly"], found["annotator_agreement"]) == (4, 2, 0.5)
    assert report(pair("p"))["annotator_agreement"] is None


def test_what_was_cut_is_counted():
    tally = Tally()
    for cut in (0, 2, 1, -1):
        tally.see(encode(pair("p")), cut)
    found = tally.report()
    assert (found["truncated"], found["lost_end_tokens"]) == (3, 3)


def test_warnings_are_sentences():
    given = {
        "train": [pair("p", "yyy", "n"), pair("p", "yyy", "n"), pair("q", "yyy", "n"), pair("q", "n", "yyy")],
        "val": [pair("q"), pair("v")],
        "test": [pair("v", "ja"), pair("t")],
    }
    assert warnings(prepare(**given).audit) == [
        "1 prompt of train also in val (data.on_leak=drop leaves them out of train)",
        "1 prompt of val also in test, which then reports what it has chosen by",
        "1 training row said twice",
        "1 training judgement made both ways",
        "the longer answer wins 75% of the training pairs: length is confounded",
    ]
    dropped = warnings(prepare(**given, on_leak="drop").audit)
    assert [sentence for sentence in dropped if "also in" in sentence] == [
        "1 prompt of val also in test, which then reports what it has chosen by"
    ]
    quiet = prepare(train=[pair("p", "yes", "no"), pair("q", "no", "yes")], val=[pair("v")], test=[pair("t")]).audit
    assert warnings(quiet) == []


def test_the_audit_of_real_dialogues(real_data: Path):
    """Counted once more from the file, without any of our code: an id here is a character, an end one more."""
    given, expected, seen = {}, Counter(), set()
    for split in ("train", "test"):
        with gzip.open(real_data / "hh-harmless" / f"{split}.jsonl.gz", "rt", encoding="utf-8") as stream:
            rows = [json.loads(line) for line in stream]
        given[split] = []
        for row in rows:
            shared = next(
                (i for i, (a, b) in enumerate(zip(row["chosen"], row["rejected"], strict=False)) if a != b), 0
            )
            cut = row["chosen"][:shared].rfind("\n\nAssistant:") + len("\n\nAssistant:")
            prompt, chosen, rejected = row["chosen"][:cut], row["chosen"][cut:], row["rejected"][cut:]
            given[split].append(pair(prompt, chosen, rejected))
            if split == "train":
                said = (prompt, chosen, rejected)
                expected["duplicates"] += said in seen
                expected["contradictions"] += (prompt, rejected, chosen) in seen
                seen.add(said)
                expected["halves"] += 2 * (len(chosen) > len(rejected)) + (len(chosen) == len(rejected))
                expected["prompt"] += len(prompt) + 1
                expected["chosen"] += len(chosen) + 1
                expected["rejected"] += len(rejected) + 1
    leaks = len({e.prompt for e in given["train"]} & {e.prompt for e in given["test"]})
    audit = prepare(max_length=10**6, held_out=1e-9, val=[pair("v"), pair("w")], **given).audit
    train = audit["splits"]["train"]
    n = train["rows"]
    assert (n, audit["leaked_prompts"], audit["dropped"]) == (1500, leaks, {})
    assert (train["duplicates"], train["contradictions"]) == (expected["duplicates"], expected["contradictions"])
    assert train["longer_wins"] == expected["halves"] / 2 / n
    assert train["prompt_tokens"] == expected["prompt"] / n
    assert train["desirable_tokens"] == expected["chosen"] / n
    assert train["undesirable_tokens"] == expected["rejected"] / n


def test_a_tie_is_counted_and_left_out():
    ties = [replace(pair("p", "a", "b"), scores=(0.0, 0.0)), pair("p", "a", "b", target=0.5)]
    same = replace(pair("p", "a", "a"), scores=(0.5, 0.5), target=0.5)
    found = prepare(train=[pair("p"), *ties, same, pair("<mark>")], val=[pair("v")], test=[pair("t")]).audit
    assert found["dropped"] == {"contains_special_token": 1, "identical_pair": 1, "tie": 2}
