"""Well-known data sets of the hub: which splits to read, and each row as one of the shapes of shapes.py.

A row function is pure, and gives None for a row that is left out; its docstring says which. Column names are those of
the data sets' cards on huggingface.co/datasets, or of the public code named beside.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

VERSION = 1  # a change in what the same row becomes must change it: prepared data are found by it
Row = dict[str, Any]
Adapted = Callable[[Row], Row | None]


def unchanged(row: Row) -> Row | None:
    return row


@dataclass(frozen=True)
class Adapter:
    """splits: the hub's name of each of ours, where it is unusual. config: the subset to read when none is asked for.

    folders: its subsets are folders of the repository (`data_dir`), not configs. source: where its columns are told.
    """

    splits: dict[str, str] = field(default_factory=dict)
    row: Adapted = unchanged
    config: str | None = None
    folders: bool = False
    source: str = ""


ADAPTERS: dict[str, Adapter] = {}


def adapter_for(name: str) -> Adapter:
    """By the hub's name in any case, with ":variant" behind it where one is wanted; of others, the rows as they are.

    A folder that ends in that name is a copy of it.
    """
    return ADAPTERS.get(adapter_key(name), Adapter())


def adapter_key(name: str) -> str:
    return "/".join(name.lower().split("/")[-2:])


def _declare(*names: str, row: Adapted, **more: Any) -> None:
    for name in names:
        key = name.lower()
        if key in ADAPTERS:
            raise ValueError(f"{name} has two adapters")
        ADAPTERS[key] = Adapter(row=row, **more)


# ---------------------------------------------------------------- pairs that need little more than their columns


def _dialogues(row: Row) -> Row | None:
    """Whole dialogues on both sides. Left out: a row whose sides share no turn of the assistant's to be cut at."""
    begin = next((i for i, (a, b) in enumerate(zip(row["chosen"], row["rejected"], strict=False)) if a != b), None)
    shared = row["chosen"][:begin]
    return {name: row[name] for name in ("chosen", "rejected")} if "\n\nAssistant:" in shared else None


def _conversations(row: Row) -> Row | None:
    """Whole conversations as messages on both sides; what a prompt column repeats of them is not needed."""
    adapted = {name: row[name] for name in ("chosen", "rejected")}
    return {**adapted, "slice": row["source"]} if row.get("source") else adapted


def _labelled(row: Row) -> Row | None:
    return {name: row[name] for name in ("prompt", "completion", "label")}


def _orca(row: Row) -> Row | None:
    """The system message is empty in many rows, and then none."""
    system = [{"role": "system", "content": row["system"]}] if row["system"] else []
    prompt = [*system, {"role": "user", "content": row["question"]}]
    return {"prompt": prompt, "chosen": row["chosen"], "rejected": row["rejected"]}


def _pair(prompt: Any, first: str, second: str, second_is_better: float, **more: Any) -> Row:
    """second_is_better: above 0 the second is chosen, below 0 the first; 0 is a tie."""
    chosen, rejected = (second, first) if second_is_better > 0 else (first, second)
    tie = {} if second_is_better else {"tie": True}
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **tie, **more}


# The card; harmless-base, helpful-base, helpful-online, helpful-rejection-sampled are folders.
_declare("Anthropic/hh-rlhf", row=_dialogues, folders=True, source="https://huggingface.co/datasets/Anthropic/hh-rlhf")
# The splits *_sft and *_gen of the same data set are for other uses.
_declare(
    "HuggingFaceH4/ultrafeedback_binarized",
    row=_conversations,
    splits={"train": "train_prefs", "test": "test_prefs"},
    source="https://huggingface.co/datasets/HuggingFaceH4/ultrafeedback_binarized",
)
_declare("trl-lib/ultrafeedback_binarized", row=_conversations, source="https://huggingface.co/docs/trl/dpo_trainer")
_declare(
    "argilla/ultrafeedback-binarized-preferences-cleaned",
    row=_conversations,
    source="https://huggingface.co/datasets/argilla/ultrafeedback-binarized-preferences-cleaned/blame/main/README.md",
)
_declare(
    "Skywork/Skywork-Reward-Preference-80K-v0.1",
    "Skywork/Skywork-Reward-Preference-80K-v0.2",
    row=_conversations,
    source="https://huggingface.co/datasets/Skywork/Skywork-Reward-Preference-80K-v0.2",
)
_declare(
    "allenai/llama-3.1-tulu-3-8b-preference-mixture",
    "allenai/llama-3.1-tulu-3-70b-preference-mixture",
    row=_conversations,
    source="https://huggingface.co/datasets/allenai/llama-3.1-tulu-3-8b-preference-mixture/raw/main/README.md",
)
_declare(
    "trl-lib/kto-mix-14k",
    row=_labelled,
    source="https://huggingface.co/datasets/trl-lib/kto-mix-14k/blame/main/README.md",
)
# Another split, raw, holds what was filtered out as well. The columns are a shape of their own.
_declare(
    "allenai/reward-bench",
    row=unchanged,
    splits={"test": "filtered"},
    source="https://huggingface.co/datasets/allenai/reward-bench",
)
_declare("Intel/orca_dpo_pairs", row=_orca, source="https://huggingface.co/datasets/Intel/orca_dpo_pairs")


# ---------------------------------------------------------------- judged pairs


def _shp(row: Row) -> Row | None:
    """labels: 1 = A is preferred. domain: "askculinary_train"."""
    more = {"slice": row["domain"].rsplit("_", 1)[0]}
    return _pair(row["history"], row["human_ref_A"], row["human_ref_B"], -1 if row["labels"] else 1, **more)


def _shp_clear(row: Row) -> Row | None:
    """Left out: comments that scored less than twice as much as the other, as in the DPO paper and its code."""
    return _shp(row) if row["score_ratio"] >= 2 else None


def _safe_rlhf(judgement: str) -> Adapted:
    """better_response_id: the more helpful answer; safer_response_id: the more harmless. Each is 0 or 1."""

    def row(row: Row) -> Row | None:
        return _pair(row["prompt"], row["response_0"], row["response_1"], 1 if row[judgement] else -1)

    return row


EXTRA = re.compile(r"\n*<extra_id_1>(User|Assistant)\n")  # of NeMo's templates: how HelpSteer2 writes several turns


def _helpsteer2(row: Row) -> Row | None:
    """preference_strength: -3 to 3, above 0 for response_2. A prompt is one text, whatever turns it has."""
    first, *rest = EXTRA.split(row["prompt"])
    turns = [("User", first), *zip(rest[::2], rest[1::2], strict=True)]
    prompt = [{"role": speaker.lower(), "content": said.removesuffix("\n")} for speaker, said in turns]
    return _pair(prompt, row["response_1"], row["response_2"], row["preference_strength"])


def _helpsteer3(row: Row) -> Row | None:
    """overall_preference: -3 to 3, above 0 for response2; context: messages; domain: general, stem, code, …"""
    context = [{"role": turn["role"], "content": turn["content"]} for turn in row["context"]]
    return _pair(context, row["response1"], row["response2"], row["overall_preference"], slice=row["domain"])


def _summaries(row: Row) -> Row | None:
    """choice: 0 or 1. The prompts are those of TRL's tldr-preference, for Reddit's posts and for news alike."""
    info, (first, second) = row["info"], row["summaries"]
    if info.get("post"):
        where, body = f"SUBREDDIT: r/{info['subreddit']}\n\nTITLE: {info['title']}\n\nPOST: ", info["post"]
    else:
        where, body = f"TITLE: {info['title']}\n\n", info["article"]
    prompt = f"{where}{body.replace(chr(10) * 2, chr(10))}\n\nTL;DR:"
    more = {"annotator": row["worker"], "slice": info.get("subreddit") or "news"}
    return _pair(prompt, first["text"], second["text"], 1 if row["choice"] else -1, **more)


def _webgpt(row: Row) -> Row | None:
    """score_0 and score_1 sum to 0; the answer above 0 is preferred. The marks [1] of quotes stay in the answers."""
    question = row["question"]
    return _pair(question["full_text"], row["answer_0"], row["answer_1"], row["score_1"], slice=question["dataset"])


_declare("stanfordnlp/SHP", row=_shp, folders=True, source="https://huggingface.co/datasets/stanfordnlp/SHP")
_declare(
    "stanfordnlp/SHP:clear",
    row=_shp_clear,
    folders=True,
    source="https://github.com/eric-mitchell/direct-preference-optimization",
)
_declare(
    "PKU-Alignment/PKU-SafeRLHF",
    row=_safe_rlhf("better_response_id"),
    source="https://huggingface.co/datasets/PKU-Alignment/PKU-SafeRLHF",
)
_declare(
    "PKU-Alignment/PKU-SafeRLHF:safer",
    row=_safe_rlhf("safer_response_id"),
    source="https://huggingface.co/datasets/PKU-Alignment/PKU-SafeRLHF",
)
# The folder has one split; a column of its rows names the validation rows, which are read as training rows here.
_declare(
    "nvidia/HelpSteer2",
    row=_helpsteer2,
    config="preference",
    folders=True,
    source="https://github.com/NVIDIA/NeMo-Aligner examples/nlp/data/steerlm/preprocess_helpsteer2_data.py",
)
_declare(
    "nvidia/HelpSteer3",
    row=_helpsteer3,
    config="preference",
    source="https://docs.nvidia.com/nemo/rl/latest/_modules/nemo_rl/data/hf_datasets/helpsteer3.html",
)
_declare(
    "openai/summarize_from_feedback",
    row=_summaries,
    config="comparisons",
    source="https://github.com/huggingface/trl examples/datasets/tldr_preference.py",
)
_declare(
    "openai/webgpt_comparisons",
    row=_webgpt,
    source="https://huggingface.co/datasets/openai/webgpt_comparisons/blob/main/README.md",
)


# ---------------------------------------------------------------- arenas: model_a against model_b


def _arena(row: Row) -> Row | None:
    """winner: model_a, model_b, "tie" or "tie (bothbad)". Left out: votes after several turns, where the two models had
    given different answers before, so that the last ones stand under no common prompt."""
    a, b = row["conversation_a"], row["conversation_b"]
    if len(a) != 2 or len(b) != 2 or a[0] != b[0]:
        return None
    better = {"model_a": -1, "model_b": 1}.get(row["winner"], 0)
    more = {"annotator": row["judge"], "slice": row["language"]}
    return _pair(a[:1], a[1]["content"], b[1]["content"], better, **more)


def _arena_55k(row: Row) -> Row | None:
    """Prompts and answers are JSON lists of texts, one a turn. Left out: several turns, as above, and what is no text
    (null, or half a surrogate pair)."""
    prompt, a, b = (json.loads(row[name]) for name in ("prompt", "response_a", "response_b"))
    if not all(len(texts) == 1 and _is_text(texts[0]) for texts in (prompt, a, b)):
        return None
    return _pair(prompt[0], a[0], b[0], row["winner_model_b"] - row["winner_model_a"])


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)


_declare(
    "lmsys/chatbot_arena_conversations",
    row=_arena,
    source="https://huggingface.co/datasets/lmsys/chatbot_arena_conversations",
)
_declare(
    "lmsys/lmsys-arena-human-preference-55k",
    "lmarena-ai/arena-human-preference-55k",
    row=_arena_55k,
    source="https://huggingface.co/datasets/lmsys/lmsys-arena-human-preference-55k",
)


# ---------------------------------------------------------------- rankings


def _ultrafeedback(row: Row) -> Row | None:
    """overall_score: a critic's, 1 to 10. Left out: rows with fewer than two scored completions."""
    scored = [(c["response"], c["overall_score"]) for c in row["completions"] if _is_number(c.get("overall_score"))]
    if len(scored) < 2:
        return None
    completions, scores = (list(column) for column in zip(*scored, strict=True))
    more = {"slice": row["source"]} if row.get("source") else {}
    return {"prompt": row["instruction"], "completions": completions, "scores": scores, **more}


def _nectar(row: Row) -> Row | None:
    """Answers with ranks, 1 the best. The prompt is a dialogue whose last space belongs to the answers.

    Left out: rows with fewer than two answers.
    """
    prompt = row["prompt"].removesuffix(" ")
    space = " " if prompt != row["prompt"] else ""
    answers = row["answers"]
    if len(answers) < 2:
        return None
    return {
        "prompt": prompt,
        "completions": [space + a["answer"] for a in answers],
        "ranks": [a["rank"] for a in answers],
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and value == value


_declare("openbmb/UltraFeedback", row=_ultrafeedback, source="https://github.com/OpenBMB/UltraFeedback")
_declare("berkeley-nest/Nectar", row=_nectar, source="https://huggingface.co/datasets/berkeley-nest/Nectar")
