"""Examples to splits: cut by prompts alone, dropped for a reason that is counted, hashed by what they say."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hydra import compose, initialize_config_dir

from prefopt.config import config_dir, read_settings
from prefopt.data.containers import read_rows
from prefopt.data.examples import Encoded, Example, Text
from prefopt.data.origins import joined, open_origin
from prefopt.data.prepare import Dataset, Recipe, admit, prepared
from prefopt.data.shapes import examples_of
from prefopt.data.splits import SPLITS, Splits
from prefopt.errors import RequestError
from prefopt.settings import DataSettings
from tests.data.made import Characters, encode, label, pair

Given = dict[str, list[Example]]


def splits_of(given: Given, held_out: float) -> Splits:
    return Splits(lambda: [(name, example) for name in SPLITS for example in given.get(name, [])], held_out)


def complete_splits(given: Given, held_out: float) -> Given:
    found: Given = {name: [] for name in SPLITS}
    for name, example in splits_of(given, held_out):
        found[name].append(example)
    return found


def prepare(
    max_length: int = 100,
    held_out: float = 0.2,
    on_leak: str = "warn",
    truncation: str = "drop",
    **given: list[Example],
) -> Dataset:
    with TemporaryDirectory() as cache:
        recipe = Recipe(max_length, truncation, on_leak)
        return prepared(splits_of(given, held_out), "made here", Characters(), recipe, Path(cache))


def read_examples(path: str, key: str) -> list[Example]:
    return list(examples_of(path, read_rows(path, key)))


def kept(dataset: Dataset) -> Given:
    return {name: [replace(e.example) for e in getattr(dataset, name)] for name in ("train", "val", "test")}


def counted(dataset: Dataset) -> dict:
    return {name: dataset.audit[name] for name in ("rows_in", "rows_kept", "dropped", "leaked_prompts")}


# ------------------------------------------------------------------------------------------- splits


def rows(prompts: int, each: int = 2) -> list[Example]:
    """`each` rows under each prompt, far apart."""
    return [pair(f"prompt {i}", f"yes {k}") for k in range(each) for i in range(prompts)]


def where(splits: Given) -> dict[str, str]:
    """The split of each prompt; a prompt in two splits is an error."""
    found: dict[str, str] = {}
    for name, examples in splits.items():
        for prompt in {example.prompt_text for example in examples}:
            assert found.setdefault(prompt, name) == name
    return found


def test_what_is_given_stays():
    given = {"train": rows(3), "val": rows(2), "test": rows(1)}
    assert complete_splits(given, 0.5) == given


def test_a_missing_test_is_half_of_val():
    train, val = rows(300), [pair(f"held {i}") for i in range(1000)]
    splits = complete_splits({"train": train, "val": val}, 0.1)
    assert splits["train"] == train
    where(splits)
    assert sorted(map(repr, splits["val"] + splits["test"])) == sorted(map(repr, val))
    assert 450 < len(splits["test"]) < 550  # 500 ± 3 standard errors of 15.8


def test_a_missing_val_is_cut_from_train():
    test = [pair("held")]
    splits = complete_splits({"train": rows(1000), "test": test}, 0.1)
    assert splits["test"] == test
    where(splits)
    assert 140 < len(splits["val"]) < 260  # two rows under each of 100 ± 3 · 9.5 prompts
    assert sorted(map(repr, splits["train"] + splits["val"])) == sorted(map(repr, rows(1000)))


def test_both_are_cut_from_train():
    splits = complete_splits({"train": rows(1000)}, 0.2)
    counts = Counter(where(splits).values())
    assert sum(counts.values()) == 1000
    assert 160 < counts["val"] + counts["test"] < 240
    assert 70 < counts["val"] < 130
    for examples in splits.values():  # rows keep their order
        places = [rows(1000).index(example) for example in examples[:40]]
        assert places == sorted(places)


def test_a_cut_depends_on_nothing_but_the_prompt():
    before = where(complete_splits({"train": rows(300)}, 0.2))
    new = [pair(f"new {i}") for i in range(300)]
    more = [*new, *reversed(rows(300, each=1)), *new[:9]]
    after = where(complete_splits({"train": more}, 0.2))
    assert {prompt: after[prompt] for prompt in before} == before
    assert len(after) == 600


def test_a_larger_share_holds_out_the_same_prompts_and_more():
    few, many = (where(complete_splits({"train": rows(300)}, share)) for share in (0.1, 0.4))
    held = {prompt for prompt, split in few.items() if split != "train"}
    assert held < {prompt for prompt, split in many.items() if split != "train"}


def test_messages_are_cut_like_text():
    train = [pair(({"role": "user", "content": f"prompt {i % 50}"},), str(i)) for i in range(100)]
    assert Counter(where(complete_splits({"train": train}, 0.3)).values()).keys() == {"train", "val", "test"}


@pytest.mark.parametrize(
    ("prompts", "sizes"),
    [(1, (2, 0, 0)), (2, (2, 2, 0)), (3, (4, 2, 0)), (4, (4, 2, 2)), (8, (8, 4, 4)), (20, (32, 4, 4))],
)
def test_few_prompts_leave_two_on_each_side_while_they_last(prompts: int, sizes: tuple[int, ...]):
    splits = complete_splits({"train": rows(prompts)}, 1e-9)
    assert tuple(map(len, splits.values())) == sizes
    assert len(complete_splits({"train": rows(prompts)}, 1 - 1e-9)["train"]) == 2 * max(min(4, prompts // 2), 1)
    assert complete_splits({"train": []}, 0.5) == {"train": [], "val": [], "test": []}


# ------------------------------------------------------------------------------------------- what is dropped

HELD = {"val": [pair("v")], "test": [pair("t")]}


def test_reasons_and_counts_by_hand():
    train = [
        pair("p", "yes", "no"),  # kept: 2 + 4 tokens
        pair("p", "", "no"),
        pair("p", "yes", ""),
        pair("p", "", ""),
        pair("p", "same", "same"),
        pair("p", "ye\2s", "no"),
        pair("p", "y" * 7, "no"),  # kept: 2 + 8 tokens
        pair("p", "yes", "n" * 8),  # 2 + 9 tokens
        pair("p" * 7, "yes", "no"),  # 8 + 4 tokens
    ]
    val = [pair("held"), pair("held", "same", "same")]
    dataset = prepare(train=train, val=val, test=[pair("kept"), pair("k", "", "no")], max_length=10)
    assert counted(dataset) == {
        "rows_in": 13,
        "rows_kept": 4,
        "dropped": {"contains_end_token": 1, "empty_completion": 4, "identical_pair": 2, "too_long": 2},
        "leaked_prompts": 0,
    }
    assert kept(dataset) == {"train": [train[0], train[6]], "val": val[:1], "test": [pair("kept")]}
    assert dataset.counts() == {"desirable": 2, "undesirable": 2}
    assert dataset.train[0].example.is_pair


def test_reasons_of_labels():
    train = [label("p", good=False), label("p", ""), label("p", "\2x"), label("p", "y" * 9), label("q"), label("r")]
    dataset = prepare(train=train, max_length=10, **HELD)
    assert dataset.audit["dropped"] == {"contains_end_token": 1, "empty_completion": 1, "too_long": 1}
    assert dataset.counts() == {"desirable": 2, "undesirable": 1}
    assert not dataset.train[0].example.is_pair


@pytest.mark.parametrize(
    ("example", "max_length", "reason"),
    [
        (pair("p", "yes", "no"), 6, ""),
        (pair("p", "yes", "no"), 5, "too_long"),
        (pair("p", "no", "yes"), 5, "too_long"),  # the longer side decides, whichever it is
        (pair("p", "y\2", "no"), 9, "contains_end_token"),
        (pair("p", "no", "y\2"), 9, "contains_end_token"),
        (pair("p\2", "yes", "no"), 9, ""),  # a prompt may hold the ends of earlier turns
        (label("p", "y"), 9, ""),
        (pair("p", "", "y\2"), 1, "empty_completion"),  # one reason a row: the first that applies
        (pair("p", "y\2", "y\2"), 1, "contains_end_token"),
        (pair("p", "yes", "yes"), 1, "identical_pair"),
    ],
)
def test_the_reason_of_a_row(example: Example, max_length: int, reason: str):
    assert admit(example, Characters(), Recipe(max_length))[2] == reason


def test_nothing_left_says_why():
    train = [pair("p", "", "no"), pair("p", "yes", ""), pair("p", "same", "same")]
    with pytest.raises(RequestError, match=r"\Ano training row is left of 5: 2 empty completion, 1 identical pair\Z"):
        prepare(train=train, **HELD)
    with pytest.raises(RequestError, match=r"\Ano training row is left of 2: it was empty\Z"):
        prepare(train=[], **HELD)


def test_a_held_out_split_is_never_empty():
    with pytest.raises(
        RequestError, match=r"\Ano val row is left: give data\.val, or more prompts .* \(1 empty completion\)\Z"
    ):
        prepare(train=rows(3), val=[pair("v", "")], test=[pair("t")])
    with pytest.raises(
        RequestError, match=r"\Ano test row is left: give data\.test, or more prompts .* \(it was empty\)\Z"
    ):
        prepare(train=rows(3))


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_split_of_pairs_and_labels_is_refused(split: str):
    given = {"train": [pair("p"), pair("q")], **HELD}
    given[split] = [*given[split], label("r")]
    with pytest.raises(RequestError, match=rf"\Adata\.{split} mixes pairs and labelled completions; give one kind\Z"):
        prepare(**given)


def test_labels_may_be_held_against_pairs():
    dataset = prepare(train=[label("p"), label("q", good=False)], **HELD)
    assert not dataset.train[0].example.is_pair
    assert dataset.val[0].example.is_pair


# ------------------------------------------------------------------------------------------- leaks

LEAKY = {
    "train": [pair("a"), pair("b"), pair("b", "sure"), pair("c"), pair("d")],
    "val": [pair("b", "maybe"), pair("e")],
    "test": [pair("c"), pair("f")],
}


def test_leaks_are_counted_and_kept():
    dataset = prepare(**LEAKY, on_leak="warn")
    assert kept(dataset) == LEAKY
    assert counted(dataset) == {"rows_in": 9, "rows_kept": 9, "dropped": {}, "leaked_prompts": 2}


def asked(text: str, role: str = "user") -> Text:
    return ({"role": role, "content": text},)


def test_a_message_of_the_user_is_the_same_prompt_as_its_text():
    """A leak whichever is held out, cut to the same side, joined; what more than a question says is another prompt."""
    for held, train in ((asked("Hi"), "Hi"), ("Hi", asked("Hi"))):
        given = {"train": [pair(train), pair("p")], "val": [pair(held)], "test": [pair("t")]}
        assert prepare(**given).audit["leaked_prompts"] == 1
        assert prepare(**given, on_leak="drop").audit["dropped"] == {"leak": 1}
    other = [pair(asked("Hi", "system")), pair((*asked("Hi", "system"), *asked("Hi"))), pair("p")]
    assert prepare(train=other, val=[pair("Hi")], test=[pair("t")]).audit["leaked_prompts"] == 0
    as_text = where(complete_splits({"train": rows(300)}, 0.2))
    messages = [replace(row, prompt=asked(row.prompt)) for row in rows(300)]
    for name, examples in complete_splits({"train": messages}, 0.2).items():
        assert {as_text[example.question] for example in examples} == {name}
    (ranking,) = joined([label("p", "good"), label(asked("p"), "bad", good=False)])
    assert ranking.completions == ("good", "bad")


def test_leaks_are_dropped_from_training_alone():
    dataset = prepare(**LEAKY, on_leak="drop")
    assert kept(dataset) == {**LEAKY, "train": [pair("a"), pair("d")]}
    assert counted(dataset) == {"rows_in": 9, "rows_kept": 6, "dropped": {"leak": 3}, "leaked_prompts": 2}


def test_leaks_are_an_error():
    with pytest.raises(RequestError, match=r"\Adata\.on_leak=error: 2 training prompts stand in the held-out rows"):
        prepare(**LEAKY, on_leak="error")
    assert prepare(train=rows(50), on_leak="error").audit["leaked_prompts"] == 0  # a cut leaks nothing


def test_everything_leaked_says_so():
    with pytest.raises(RequestError, match=r"\Ano training row is left of 3: 1 leak\Z"):
        prepare(train=[pair("a")], val=[pair("a")], test=[pair("b")], on_leak="drop")


# ------------------------------------------------------------------------------------------- the hash

SAID = {name: [pair("p", weight=0.5, margin=1.0, slice="s"), pair("q")] for name in ("train", "val", "test")}
CHANGES = {
    "a character of the prompt": {"prompt": "P"},
    "a character of the chosen": {"completions": ("yes!", "no")},
    "a character of the rejected": {"completions": ("yes", "nO")},
    "the sides": {"completions": ("no", "yes")},
    "the scores": {"scores": (0.0, 1.0)},
    "the weight": {"weight": 0.25},
    "the margin": {"margin": 0.0},
    "no margin": {"margin": None},
    "the slice": {"slice": "t"},
    "messages for text": {"prompt": ({"role": "user", "content": "p"},)},
}


def test_the_hash_follows_every_change():
    """One changed character of one row in one split, each unlike all the others."""
    found = {prepare(**SAID).data_hash}
    for split, (first, *others) in SAID.items():
        for change in CHANGES.values():
            found.add(prepare(**{**SAID, split: [replace(first, **change), *others]}).data_hash)
    assert len(found) == 1 + 3 * len(CHANGES)


def test_the_hash_follows_order_and_splits():
    a, b, c, d = (pair(prompt) for prompt in "abcd")
    given = [
        {"train": [a, b], "val": [c], "test": [d]},
        {"train": [b, a], "val": [c], "test": [d]},
        {"train": [a], "val": [b, c], "test": [d]},  # the same rows in the same order, cut elsewhere
        {"train": [a, b], "val": [d], "test": [c]},
        {"train": [a, a, b], "val": [c], "test": [d]},
    ]
    assert len({prepare(**splits).data_hash for splits in given}) == len(given)


def test_the_hash_is_of_what_is_said_not_where(tmp_path: Path):
    table = [{"prompt": f"p{i}", "chosen": "yes", "rejected": "no\n"} for i in range(40)]
    one, other, third = tmp_path / "a.jsonl", tmp_path / "b.jsonl.gz", tmp_path / "c.jsonl"
    one.write_text("\n".join(map(json.dumps, table)), "utf-8")
    other.write_bytes(gzip.compress("\n\n".join(map(json.dumps, table)).encode()))
    table[17]["rejected"] = "no"
    third.write_text("\n".join(map(json.dumps, table)), "utf-8")
    hashes = [prepare(train=read_examples(str(path), "data.train")).data_hash for path in (one, other, third)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_dropped_rows_are_not_in_the_hash():
    one, two = prepare(train=[pair("p")], **HELD), prepare(train=[pair("p"), pair("p", "", "no")], **HELD)
    assert one.data_hash == two.data_hash


def test_the_hash_of_the_ids_follows_what_becomes_of_the_same_text(tmp_path: Path):
    """Cut at either end, under another start, cut apart elsewhere: the rows say the same and are other tokens."""

    class Other(Characters):
        def encode(self, example: Example) -> Encoded:
            row = encode(example)
            return replace(row, prompt=row.prompt[:1], completions=(row.prompt[1:], *row.completions[1:]))

        def key(self) -> str:
            return "other"

    given = {"train": [pair("prompt"), pair("q")], **HELD}
    recipes = [Recipe(100), Recipe(8, "truncate_completion"), Recipe(8, "truncate_prompt_left"), Recipe(99)]
    found = [prepared(splits_of(given, 0.1), "f", Characters(), recipe, tmp_path) for recipe in recipes]
    found.append(prepared(splits_of(given, 0.1), "f", Other(), Recipe(100), tmp_path))
    assert len({dataset.data_hash for dataset in found}) == 1
    tokens = [dataset.tokens_hash for dataset in found]
    assert tokens[0] == tokens[3]  # another limit, which cuts nothing
    assert len(set(tokens)) == 4


# ------------------------------------------------------------------------------------------- files as a source


def settings(**given: str) -> DataSettings:
    overrides = [f"data.{name}={value}" for name, value in {"held_out": 0.2, **given}.items()]
    with initialize_config_dir(config_dir(), version_base="1.3"):
        return read_settings(compose("train", ["data=jsonl", *overrides])).data


def written(folder: Path, name: str, table: list[dict]) -> str:
    path = folder / name
    path.write_text("\n".join(map(json.dumps, table)), "utf-8")
    return str(path)


def test_files_say_what_they_were_read_as(tmp_path: Path):
    train = written(tmp_path, "t.jsonl", [{"prompt": "p", "chosen": "yes", "rejected": "no"}] * 3)
    val = written(tmp_path, "v.jsonl", [{"prompt": "q", "completion": "yes", "label": 1}])
    origin = open_origin(settings(train=train, val=val), tmp_path)
    found = origin.find(lambda: pytest.fail("files are written by nobody"))
    assert found.notes == [
        f"data.train: 3 rows of {train}, read as pairs with a prompt",
        f"data.val: 1 rows of {val}, read as labelled completions",
    ]
    assert [name for name, _ in found.splits] == ["train"] * 3 + ["val"]


def test_demonstrations_are_the_good_completions_of_training(tmp_path: Path):
    table = [
        {"prompt": "p", "completion": "good", "label": 1},
        {"prompt": "p", "completion": "bad", "label": 0},
        {"prompt": "p", "completion": "", "label": 1},
    ]
    held = written(tmp_path, "v.jsonl", [{"prompt": "q", "completion": "held", "label": 1}])
    files = open_origin(settings(train=written(tmp_path, "t.jsonl", table), val=held, test=held), tmp_path)
    assert [(e.prompt, e.completions, e.scores) for e in files.demonstrations()] == [("p", ("good",), (1.0,))]
    files = open_origin(settings(train=written(tmp_path, "t.jsonl", table[1:]), val=held, test=held), tmp_path)
    with pytest.raises(RequestError, match=r"\Adata\.train holds no completion judged good"):
        list(files.demonstrations())


def test_labels_of_one_prompt_may_be_joined_into_a_ranking():
    """Best first; a prompt with one class alone says nothing; soft labels rank by their probability."""
    rows = [
        label("p", "bad", good=False, weight=2.0),
        label("p", "good"),
        label("p", "good too", target=0.75, slice="s"),
        label("p", "rather bad", good=False, target=0.75),
        label("q", "a"),
        label("q", "b"),
        label("r", "alone"),
    ]
    ranking, tie, alone = joined(rows)
    assert ranking.completions == ("good", "good too", "rather bad", "bad")
    assert ranking.scores == (1.0, 0.75, 0.25, 0.0)
    assert (ranking.weight, ranking.target, ranking.is_tie) == (1.25, 1.0, False)
    assert tie.is_tie
    assert alone.is_tie
    with pytest.raises(RequestError, match=r"f:1: data\.group=true joins labelled completions; these rows are pairs"):
        list(joined([pair("p", source="f:1")]))


def test_columns_may_have_other_names(tmp_path: Path):
    train = written(tmp_path, "t.jsonl", [{"question": f"p{i}", "answer": "yes", "prompt": 1} for i in range(9)])
    files = open_origin(settings(train=train, columns="{prompt: question, completion: answer}"), tmp_path)
    assert {(e.prompt, e.completions) for e in files.demonstrations()} <= {(f"p{i}", ("yes",)) for i in range(9)}
    files = open_origin(settings(train=train, columns="{prompt: queston, completion: answer}"), tmp_path)
    with pytest.raises(RequestError, match=r"t\.jsonl:1: data\.columns names 'queston', .*did you mean 'question'"):
        files.check()


@pytest.mark.parametrize("change", ["bytes", "columns", "group"])
def test_the_fingerprint_follows_what_is_read(tmp_path: Path, change: str):
    rows = [{"prompt": f"p{i}", "completion": "yes", "label": 1} for i in range(9)]
    path = written(tmp_path, "t.jsonl", rows)
    fingerprints = [open_origin(settings(train=path), tmp_path).find(None).fingerprint for _ in range(2)]
    if change == "bytes":
        path = written(tmp_path, "t.jsonl", [*rows, rows[0]])
    given = {"columns": {"columns": "{label: label}"}, "group": {"group": True}}.get(change, {})
    fingerprints.append(open_origin(settings(train=path, **given), tmp_path).find(None).fingerprint)
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


def test_an_unknown_kind_of_data_is_refused():
    with pytest.raises(RequestError, match=r"data\.kind must be one of .*got 'jsonn'; did you mean 'jsonl'"):
        open_origin(settings(train="t.jsonl", kind="jsonn"), Path())


def test_real_dialogues_are_prepared(real_data: Path):
    """Counted once more from the texts: a character is a token, and each side has one token more."""
    files = {name: real_data / "hh-harmless" / f"{name}.jsonl.gz" for name in ("train", "test")}
    given = {name: read_examples(str(path), f"data.{name}") for name, path in files.items()}
    expected = Counter()
    for example in given["train"] + given["test"]:
        chosen, rejected = example.completions
        long = len(example.prompt) + 1 + max(len(chosen), len(rejected)) + 1 > 1000
        reasons = {
            "empty_completion": not (chosen and rejected),
            "identical_pair": chosen == rejected,
            "too_long": long,
            "": True,
        }
        expected[next(reason for reason, holds in reasons.items() if holds)] += 1
    audit = prepare(max_length=1000, **given).audit
    assert audit["rows_in"] == 1800
    assert audit["rows_kept"] == expected.pop("")
    assert audit["dropped"] == dict(expected)
