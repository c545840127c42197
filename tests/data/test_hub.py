"""Data sets by name: read through `datasets`, adapted where they are well known, refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prefopt.data.origins import open_origin
from prefopt.data.prepare import Recipe, prepared
from prefopt.errors import RequestError
from tests.data.made import Characters
from tests.data.test_prepare import settings

PAIRS = [{"prompt": f"p{i}", "chosen": "yes", "rejected": "no"} for i in range(9)]


def published(folder: Path, **splits: list[dict]) -> str:
    """A data set as one downloads it: a folder with a file for each split."""
    folder.mkdir(parents=True)
    for name, rows in splits.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))


def hub(name: str, tmp_path: Path, **given: str):
    return open_origin(settings(kind="hub", name=name, **given), tmp_path)


def test_splits_are_found_by_their_usual_names(tmp_path: Path):
    name = published(tmp_path / "own", train=PAIRS, validation=PAIRS[:3], test=PAIRS[:2])
    found = hub(name, tmp_path).find(None)
    assert [split for split, _ in found.splits] == ["train"] * 9 + ["val"] * 3 + ["test"] * 2
    assert found.notes[0] == f"data.train: 9 rows of {name} (train), read as pairs with a prompt"
    assert next(iter(found.splits))[1].source == f"{name}:train:1"


def test_splits_may_be_named(tmp_path: Path):
    name = published(tmp_path / "own", train=PAIRS, validation=PAIRS[:4])
    found = hub(name, tmp_path, train="validation", val="train").find(None).splits
    assert sorted({(split, len(e.prompt)) for split, e in found}) == [("test", 2), ("train", 2), ("val", 2)]
    assert [split for split, _ in found].count("train") == 4
    with pytest.raises(RequestError, match=r"data\.test=validate: .* train, validation; did you mean 'validation'\?"):
        hub(name, tmp_path, test="validate").find(None)


def test_a_well_known_one_is_adapted(tmp_path: Path):
    """Its splits have names of their own, and only a part of its columns is meant."""
    turns = [{"role": "user", "content": "p"}]
    rows = [
        {
            "prompt": "p",
            "prompt_id": "x",
            "chosen": [*turns, {"role": "assistant", "content": f"yes {i}"}],
            "rejected": [*turns, {"role": "assistant", "content": "no"}],
            "score_chosen": 9.0,
            "score_rejected": 2.0,
            "messages": turns,
        }
        for i in range(3)
    ]
    name = published(tmp_path / "HuggingFaceH4/ultrafeedback_binarized", train_prefs=rows, test_prefs=rows[:1])
    found = [(split, example) for split, example in hub(name, tmp_path).find(None).splits]
    assert [split for split, _ in found].count("train") == 3
    assert found[0][1].completions == ("yes 0", "no")


def test_an_evaluation_reads_the_test_split_alone(tmp_path: Path):
    """RewardBench has no other; of one without a split to evaluate, those that are there are named."""
    bench = [{**row, "chosen_model": "a", "rejected_model": "b", "subset": "hep-go"} for row in PAIRS]
    name = published(tmp_path / "allenai/reward-bench", raw=bench, filtered=bench[:4])
    files = "".join(f"  - split: {split}\n    path: {split}.jsonl\n" for split in ("raw", "filtered"))
    card = f"---\nconfigs:\n- config_name: default\n  data_files:\n{files}---\n"
    (tmp_path / "allenai/reward-bench/README.md").write_text(card)
    given = settings(kind="hub", name=name)
    origin = open_origin(given, tmp_path, ("test",))
    origin.check()
    found = origin.find(None)
    assert [(split, example.slice) for split, example in found.splits] == [("test", "hep-go")] * 4
    dataset = prepared(found.splits, found.fingerprint, Characters(), Recipe(64), tmp_path / "cache")
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (0, 0, 4)
    other = settings(kind="hub", name=published(tmp_path / "own", train=PAIRS, validation=PAIRS))
    with pytest.raises(
        RequestError, match=r"data\.test: .* has the splits train, validation; name the one to evaluate"
    ):
        open_origin(other, tmp_path, ("test",)).find(None)


def test_a_row_that_is_not_as_it_was_published_is_named(tmp_path: Path):
    name = published(tmp_path / "openai/webgpt_comparisons", train=[{"question": {}, "answer_0": "a", "score_0": 1.0}])
    with pytest.raises(RequestError, match=r"webgpt_comparisons:train:1: no row of .* as it was published: KeyError"):
        hub(name, tmp_path).find(None)


def test_a_subset_may_be_a_folder_and_a_variant_a_suffix(tmp_path: Path):
    talk = "\n\nHuman: Hi\n\nAssistant:"
    rows = [{"chosen": f"{talk} a {i}", "rejected": f"{talk} b"} for i in range(4)]
    root = tmp_path / "Anthropic/hh-rlhf"
    published(root / "harmless-base", train=rows, test=rows[:1])
    published(root / "helpful-base", train=rows[:1], test=rows[:1])
    found = hub(str(root), tmp_path, subset="harmless-base").find(None)
    assert found.splits.rows == 5
    judged = {"prompt": "p", "response_0": "a", "response_1": "b", "better_response_id": 0, "safer_response_id": 1}
    name = published(tmp_path / "PKU-Alignment/PKU-SafeRLHF", train=[judged] * 4, test=[judged])
    chosen = {
        variant: {e.completions[0] for _, e in hub(name + variant, tmp_path).find(None).splits}
        for variant in ("", ":safer")
    }
    assert chosen == {"": {"a"}, ":safer": {"b"}}


def test_variants_of_one_data_set_do_not_share_the_cache(tmp_path: Path):
    """The same published rows, read by two judgements: other fingerprints, and other rows out of one cache."""
    judged = [
        {"prompt": f"p{i}", "response_0": "a", "response_1": "b", "better_response_id": 0, "safer_response_id": 1}
        for i in range(9)
    ]
    name = published(tmp_path / "PKU-Alignment/PKU-SafeRLHF", train=judged)
    fingerprints, chosen = set(), []
    for variant in ("", ":safer"):
        found = hub(name + variant, tmp_path).find(None)
        fingerprints.add(found.fingerprint)
        dataset = prepared(found.splits, found.fingerprint, Characters(), Recipe(100), tmp_path / "cache")
        chosen.append({encoded.example.completions[0] for encoded in dataset.train})
    assert len(fingerprints) == 2
    assert chosen == [{"a"}, {"b"}]


def test_rows_that_an_adapter_leaves_out_are_counted(tmp_path: Path):
    """Once each, however often the rows are passed over."""
    row = {"domain": "a_train", "human_ref_A": "yes", "human_ref_B": "no", "labels": 1}
    rows = [{**row, "history": f"p{i}", "score_ratio": 3.0 if i % 3 else 1.5} for i in range(30)]
    held = [{**row, "history": f"held {i}", "score_ratio": 1.0 + i} for i in range(6)]
    found = hub(published(tmp_path / "stanfordnlp/SHP", train=rows, validation=held) + ":clear", tmp_path).find(None)
    audit = prepared(found.splits, found.fingerprint, Characters(), Recipe(100), tmp_path / "cache").audit
    assert (audit["rows_in"], audit["rows_kept"], audit["dropped"]) == (36, 25, {"left_out_by_adapter": 11})


def test_another_revision_of_the_rows_has_another_fingerprint(tmp_path: Path):
    one = hub(published(tmp_path / "one", train=PAIRS), tmp_path).find(None)
    again = hub(str(tmp_path / "one"), tmp_path).find(None)
    other = hub(published(tmp_path / "two", train=PAIRS[:8]), tmp_path).find(None)
    assert one.fingerprint == again.fingerprint != other.fingerprint


@pytest.mark.parametrize("name", ["nobody/nothing", "no such/name", "{tmp}/nowhere"])
def test_what_cannot_be_loaded_is_refused_in_two_lines(tmp_path: Path, name: str):
    with pytest.raises(RequestError) as refused:
        hub(name.format(tmp=tmp_path), tmp_path).find(None)
    assert str(refused.value).startswith(f"data.name={name.format(tmp=tmp_path)}: cannot be loaded")
    assert len(str(refused.value).splitlines()) <= 2


def test_an_error_without_a_word_is_told_by_its_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*arguments: object, **options: object):
        raise ConnectionError

    monkeypatch.setattr("datasets.load_dataset", fail)
    with pytest.raises(RequestError, match=r"\Adata\.name=x: cannot be loaded: ConnectionError\Z"):
        hub("x", tmp_path).find(None)


def test_a_name_belongs_to_the_hub_alone(tmp_path: Path):
    with pytest.raises(RequestError, match=r"data\.name must be a data set of the hub, with data=hub and only there"):
        open_origin(settings(train="t.jsonl", name="x"), tmp_path)
    with pytest.raises(RequestError, match=r"data\.name"):
        open_origin(settings(kind="hub"), tmp_path)
