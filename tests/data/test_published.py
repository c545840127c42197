"""Each adapter on a row written by hand in the columns of its data set, and what the file reader makes of it."""

from __future__ import annotations

import ast
import inspect
from typing import Any, NamedTuple

import pytest

from prefopt.data import published
from prefopt.data.published import ADAPTERS, Adapter, adapter_for
from prefopt.data.shapes import examples_of


def said(*texts: str) -> list[dict[str, str]]:
    """Messages of the user and the assistant in turn."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


class Case(NamedTuple):
    names: tuple[str, ...]
    row: dict[str, Any]
    adapted: dict[str, Any] | None
    answers: tuple[str, ...] = ()  # as the reader orders them, the best first
    scores: tuple[float, ...] = (1.0, 0.0)


HH = {
    "chosen": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: 2 + 2?\n\nAssistant: 4.",
    "rejected": "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: 2 + 2?\n\nAssistant: 5.",
}
TALKS = {"chosen": said("Q", "yes"), "rejected": said("Q", "no")}
PAIR = {"prompt": "Q", "chosen": "yes", "rejected": "no"}
OTHER = {"prompt": "Q", "chosen": "no", "rejected": "yes"}
SHP = {
    "post_id": "qt3nxl",
    "domain": "asksocial_science_train",
    "history": "Q",
    "human_ref_A": "yes",
    "human_ref_B": "no",
    "labels": 1,
    "score_ratio": 2.0,
}
SAFE = {"prompt": "Q", "response_0": "yes", "response_1": "no", "better_response_id": 0, "safer_response_id": 1}
STEER2 = {"split": "train", "prompt": "Q", "response_1": "yes", "response_2": "no", "preference_strength": -2}
STEER3 = {
    "domain": "code",
    "language": "python",
    "context": said("Q", "A", "R"),
    "response1": "yes",
    "response2": "no",
    "overall_preference": -1,
}
BENCH = {**PAIR, "chosen_model": "GPT-4", "rejected_model": "alpaca", "subset": "alpacaeval-easy", "id": 7}
POST = {"id": "t3", "post": "One.\n\nTwo.", "title": "T", "subreddit": "AskReddit", "site": None, "article": None}
NEWS = {"id": "n", "post": None, "title": "T", "subreddit": None, "site": "cnn", "article": "One.\n\nTwo."}
SUMMARIES = {
    "info": POST,
    "summaries": [{"text": " no", "policy": "ref", "note": ""}, {"text": " yes", "policy": "sup4", "note": ""}],
    "choice": 1,
    "worker": "w1",
    "batch": "batch3",
    "split": "train",
    "extra": {"confidence": 7},
}
REDDIT = {
    "prompt": "SUBREDDIT: r/AskReddit\n\nTITLE: T\n\nPOST: One.\nTwo.\n\nTL;DR:",
    "chosen": " yes",
    "rejected": " no",
    "annotator": "w1",
    "slice": "AskReddit",
}
WEBGPT = {
    "question": {"dataset": "eli5", "id": "1", "full_text": "Q"},
    "answer_0": "yes",
    "answer_1": "no",
    "score_0": 0.5,
    "score_1": -0.5,
}
ARENA = {
    "winner": "model_a",
    "judge": "arena_user_973",
    "conversation_a": said("Q", "yes"),
    "conversation_b": said("Q", "no"),
    "turn": 1,
    "language": "English",
}
ARENA_PAIR = {
    "prompt": said("Q"),
    "chosen": "yes",
    "rejected": "no",
    "annotator": "arena_user_973",
    "slice": "English",
}
KAGGLE = {
    "prompt": '["Q"]',
    "response_a": '["yes"]',
    "response_b": '["no"]',
    "winner_model_a": 1,
    "winner_model_b": 0,
    "winner_tie": 0,
}
ULTRA = {
    "source": "evol_instruct",
    "instruction": "Q",
    "completions": [{"response": text, "overall_score": s} for text, s in (("b", 6.5), ("a", 8.0), ("c", 1.0))],
}
NECTAR = {
    "prompt": "\n\nHuman: Q\n\nAssistant: ",
    "answers": [{"answer": "b", "model": "m", "rank": 2.0}, {"answer": "a", "model": "n", "rank": 1.0}],
    "num_responses": 2,
}
YES, NO = ("yes", "no"), ("no", "yes")
TIE = (0.0, 0.0)

PLAIN_TALKS = (
    "HuggingFaceH4/ultrafeedback_binarized",
    "trl-lib/ultrafeedback_binarized",
    "argilla/ultrafeedback-binarized-preferences-cleaned",
    "Skywork/Skywork-Reward-Preference-80K-v0.1",
    "Skywork/Skywork-Reward-Preference-80K-v0.2",
    "allenai/llama-3.1-tulu-3-8b-preference-mixture",
    "allenai/llama-3.1-tulu-3-70b-preference-mixture",
)
ARENA_55K = ("lmsys/lmsys-arena-human-preference-55k", "lmarena-ai/arena-human-preference-55k")
CASES = [
    Case(("Anthropic/hh-rlhf",), HH, HH, (" 4.", " 5.")),
    Case(("Anthropic/hh-rlhf",), {"chosen": "\n\nHuman: A", "rejected": "\n\nHuman: B"}, None),
    # The two sides part before the assistant speaks for the first time.
    Case(
        ("Anthropic/hh-rlhf",),
        {"chosen": "\n\nHuman: A\n\nAssistant: 1", "rejected": "\n\nHuman: B\n\nAssistant: 1"},
        None,
    ),
    Case(PLAIN_TALKS, {**TALKS, "prompt": "Q", "score_chosen": 8.0}, TALKS, YES),
    Case(PLAIN_TALKS, {**TALKS, "source": "evol"}, {**TALKS, "slice": "evol"}, YES),
    Case(
        ("trl-lib/kto-mix-14k",),
        {"prompt": said("Q"), "completion": [{"role": "assistant", "content": "yes"}], "label": False},
        {"prompt": said("Q"), "completion": [{"role": "assistant", "content": "yes"}], "label": False},
        ("yes",),
        (0.0,),
    ),
    Case(
        ("Intel/orca_dpo_pairs",),
        {"system": "Be brief.", "question": "Q", "chosen": "yes", "rejected": "no"},
        {**PAIR, "prompt": [{"role": "system", "content": "Be brief."}, *said("Q")]},
        YES,
    ),
    Case(
        ("Intel/orca_dpo_pairs",),
        {"system": "", "question": "Q", "chosen": "yes", "rejected": "no"},
        {**PAIR, "prompt": said("Q")},
        YES,
    ),
    Case(("stanfordnlp/SHP", "stanfordnlp/SHP:clear"), SHP, {**PAIR, "slice": "asksocial_science"}, YES),
    Case(("stanfordnlp/SHP",), {**SHP, "labels": 0}, {**OTHER, "slice": "asksocial_science"}, NO),
    Case(("stanfordnlp/SHP",), {**SHP, "score_ratio": 1.9}, {**PAIR, "slice": "asksocial_science"}, YES),
    Case(("stanfordnlp/SHP:clear",), {**SHP, "score_ratio": 1.9}, None),
    Case(("PKU-Alignment/PKU-SafeRLHF",), SAFE, PAIR, YES),
    Case(("PKU-Alignment/PKU-SafeRLHF:safer",), SAFE, OTHER, NO),
    Case(("nvidia/HelpSteer2",), STEER2, {**PAIR, "prompt": said("Q")}, YES),
    Case(("nvidia/HelpSteer2",), {**STEER2, "preference_strength": 1}, {**OTHER, "prompt": said("Q")}, NO),
    Case(
        ("nvidia/HelpSteer2",),
        {**STEER2, "preference_strength": 0},
        {**PAIR, "prompt": said("Q"), "tie": True},
        YES,
        TIE,
    ),
    Case(
        ("nvidia/HelpSteer2",),
        {**STEER2, "prompt": "c#\n\n<extra_id_1>Assistant\nA\nB\n<extra_id_1>User\nR\n"},
        {**PAIR, "prompt": said("c#", "A\nB", "R")},
        YES,
    ),
    Case(("nvidia/HelpSteer3",), STEER3, {**PAIR, "prompt": said("Q", "A", "R"), "slice": "code"}, YES),
    Case(
        ("nvidia/HelpSteer3",),
        {**STEER3, "overall_preference": 3},
        {**OTHER, "prompt": said("Q", "A", "R"), "slice": "code"},
        NO,
    ),
    Case(
        ("nvidia/HelpSteer3",),
        {**STEER3, "overall_preference": 0},
        {**PAIR, "prompt": said("Q", "A", "R"), "slice": "code", "tie": True},
        YES,
        TIE,
    ),
    Case(("openai/summarize_from_feedback",), SUMMARIES, REDDIT, (" yes", " no")),
    Case(
        ("openai/summarize_from_feedback",),
        {**SUMMARIES, "info": NEWS, "choice": 0},
        {
            "prompt": "TITLE: T\n\nOne.\nTwo.\n\nTL;DR:",
            "chosen": " no",
            "rejected": " yes",
            "annotator": "w1",
            "slice": "news",
        },
        (" no", " yes"),
    ),
    Case(("openai/webgpt_comparisons",), WEBGPT, {**PAIR, "slice": "eli5"}, YES),
    Case(
        ("openai/webgpt_comparisons",),
        {**WEBGPT, "score_0": -0.1, "score_1": 0.1},
        {**OTHER, "slice": "eli5"},
        NO,
    ),
    Case(
        ("openai/webgpt_comparisons",),
        {**WEBGPT, "score_0": 0.0, "score_1": 0.0},
        {**PAIR, "slice": "eli5", "tie": True},
        YES,
        TIE,
    ),
    Case(("lmsys/chatbot_arena_conversations",), ARENA, ARENA_PAIR, YES),
    Case(
        ("lmsys/chatbot_arena_conversations",),
        {**ARENA, "winner": "model_b"},
        {**ARENA_PAIR, "chosen": "no", "rejected": "yes"},
        NO,
    ),
    Case(("lmsys/chatbot_arena_conversations",), {**ARENA, "winner": "tie"}, {**ARENA_PAIR, "tie": True}, YES, TIE),
    Case(
        ("lmsys/chatbot_arena_conversations",),
        {**ARENA, "winner": "tie (bothbad)"},
        {**ARENA_PAIR, "tie": True},
        YES,
        TIE,
    ),
    Case(
        ("lmsys/chatbot_arena_conversations",),
        {**ARENA, "conversation_a": said("Q", "A", "R", "yes"), "conversation_b": said("Q", "B", "R", "no")},
        None,
    ),
    Case(("lmsys/chatbot_arena_conversations",), {**ARENA, "conversation_b": said("Q2", "no")}, None),
    Case(ARENA_55K, KAGGLE, PAIR, YES),
    Case(ARENA_55K, {**KAGGLE, "winner_model_a": 0, "winner_model_b": 1}, OTHER, NO),
    Case(ARENA_55K, {**KAGGLE, "winner_model_a": 0, "winner_tie": 1}, {**PAIR, "tie": True}, YES, TIE),
    Case(ARENA_55K, {**KAGGLE, "response_b": "[null]"}, None),
    Case(ARENA_55K, {**KAGGLE, "response_a": '["\\ud83d"]'}, None),
    Case(ARENA_55K, {**KAGGLE, "response_a": '["\\ud83d\\ude42"]'}, {**PAIR, "chosen": "🙂"}, ("🙂", "no")),
    Case(
        ARENA_55K,
        {**KAGGLE, "prompt": '["Q","R"]', "response_a": '["A","yes"]', "response_b": '["B","no"]'},
        None,
    ),
    Case(
        ("openbmb/UltraFeedback",),
        ULTRA,
        {"prompt": "Q", "completions": ["b", "a", "c"], "scores": [6.5, 8.0, 1.0], "slice": "evol_instruct"},
        ("a", "b", "c"),
        (8.0, 6.5, 1.0),
    ),
    Case(
        ("openbmb/UltraFeedback",),
        {"instruction": "Q", "completions": [*ULTRA["completions"][:2], {"response": "d", "overall_score": None}]},
        {"prompt": "Q", "completions": ["b", "a"], "scores": [6.5, 8.0]},
        ("a", "b"),
        (8.0, 6.5),
    ),
    Case(("openbmb/UltraFeedback",), {"instruction": "Q", "completions": ULTRA["completions"][:1]}, None),
    Case(
        ("berkeley-nest/Nectar",),
        NECTAR,
        {"prompt": "\n\nHuman: Q\n\nAssistant:", "completions": [" b", " a"], "ranks": [2.0, 1.0]},
        (" a", " b"),
        (-1.0, -2.0),
    ),
    Case(
        ("berkeley-nest/Nectar",),
        {**NECTAR, "prompt": "Q"},
        {"prompt": "Q", "completions": ["b", "a"], "ranks": [2.0, 1.0]},
        ("a", "b"),
        (-1.0, -2.0),
    ),
    Case(("berkeley-nest/Nectar",), {**NECTAR, "answers": NECTAR["answers"][:1]}, None),
    Case(("allenai/reward-bench",), BENCH, BENCH, ("yes", "no")),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.names[0])
def test_a_row_of_each_data_set(case: Case):
    for name in case.names:
        before = repr(case.row)
        assert adapter_for(name).row(case.row) == case.adapted
        assert repr(case.row) == before
    if case.adapted is not None:
        (example,) = examples_of("hub", [("hub:1", case.adapted)])
        assert example.completions == case.answers
        assert example.scores == case.scores
        assert example.slice == case.adapted.get("slice", case.adapted.get("subset"))
        assert example.annotator == case.adapted.get("annotator")


def test_every_adapter_is_shown_above():
    assert {name.lower() for case in CASES for name in case.names} == set(ADAPTERS)


def test_names_are_found_in_any_case_and_others_as_they_are():
    assert adapter_for("NVIDIA/helpsteer2") is adapter_for("nvidia/HelpSteer2") is ADAPTERS["nvidia/helpsteer2"]
    assert adapter_for("someone/pairs") == Adapter()
    assert adapter_for("someone/pairs").row(PAIR) is PAIR


def test_which_splits_and_subsets_are_read():
    """Only what differs from train, validation and test of the one config."""
    assert {name: adapter.splits for name, adapter in ADAPTERS.items() if adapter.splits} == {
        "huggingfaceh4/ultrafeedback_binarized": {"train": "train_prefs", "test": "test_prefs"},
        "allenai/reward-bench": {"test": "filtered"},
    }
    assert {name: adapter.config for name, adapter in ADAPTERS.items() if adapter.config} == {
        "nvidia/helpsteer2": "preference",
        "nvidia/helpsteer3": "preference",
        "openai/summarize_from_feedback": "comparisons",
    }
    assert {name for name, adapter in ADAPTERS.items() if adapter.folders} == {
        "anthropic/hh-rlhf",
        "stanfordnlp/shp",
        "stanfordnlp/shp:clear",
        "nvidia/helpsteer2",
    }
    assert all(adapter.source.startswith("https://") for adapter in ADAPTERS.values())


def test_no_data_set_has_two_adapters():
    with pytest.raises(ValueError, match=r"\Anvidia/HELPSTEER2 has two adapters\Z"):
        published._declare("nvidia/HELPSTEER2", row=published.unchanged)


def test_what_is_left_out_is_told():
    """A row function that can give None says so in its docstring."""
    tree = ast.parse(inspect.getsource(published))
    for function in (node for node in tree.body if isinstance(node, ast.FunctionDef)):
        gives_none = any(
            isinstance(n, ast.Constant) and n.value is None
            for r in ast.walk(function)
            if isinstance(r, ast.Return)
            for n in ast.walk(r)
        )
        if gives_none:
            assert "Left out:" in (ast.get_docstring(function) or ""), function.name
