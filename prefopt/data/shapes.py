"""Rows to examples: which shape a file has is told from its first row, said aloud, and held to on every row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from itertools import chain
from typing import Any, NamedTuple

from prefopt.data.containers import Row, kind
from prefopt.data.examples import Example, Text
from prefopt.data.values import answer_of, list_of, messages_of, number_of, text_of, truth_of
from prefopt.errors import RequestError, nearest

TURN = "\n\nAssistant:"  # of HH dialogues
OPTIONAL = ("weight", "margin", "tie", "annotator", "slice")
JUDGEMENTS = ("label", "kto_tag", "preference", "scores", "ranks")  # columns, of which each shape reads one at most
ASKED = ("user", "assistant")
Fields = dict[str, Any]


class Shape(NamedTuple):
    """columns: what tells the shape. build: a row to the fields of its Example; ValueError says what is wrong. judged:
    whether something says how good an answer is; else all are shown as good."""

    name: str
    columns: tuple[str, ...]
    build: Callable[[Row], Fields]
    judged: bool = True


def examples_of(
    title: str,
    rows: Iterable[tuple[str, Any]],
    say: Callable[[str], None] = lambda shape: None,
    columns: Mapping[str, str] | None = None,
) -> Iterator[Example]:
    """The examples of rows that come with where they stand, as soon as they are read.

    title: of the table, for messages. say: is told the shape, once. columns: our name of a column to the data's own.
    """
    rows = iter(rows)
    first = next(rows, None)
    if first is None:
        raise RequestError(f"{title}: holds no rows")
    where, row = first
    named = _renamed(row, where, columns)
    shape = _shape(named, where)
    say(shape.name)
    unread = COLUMNS - {*shape.columns, *OPTIONAL, *named}
    for where, row in chain([first], rows):
        named = _renamed(row, where, columns)
        _refuse_another_shape(shape, unread, named, where)
        yield _example(shape, named, where)


def _renamed(row: Any, where: str, columns: Mapping[str, str] | None) -> Row:
    if not isinstance(row, dict):
        raise RequestError(f"{where}: a row must be an object with named columns, this one is {kind(row)}")
    if not columns:
        return row
    missing = next((theirs for theirs in columns.values() if theirs not in row), None)
    if missing is not None:
        raise RequestError(f"{where}: data.columns names {missing!r}, which the row has not{nearest(missing, row)}")
    given = set(columns.values())
    return {name: value for name, value in row.items() if name not in given} | {
        ours: row[theirs] for ours, theirs in columns.items()
    }


def has_shape(row: Any) -> bool:
    return isinstance(row, dict) and any(row.keys() >= set(shape.columns) for shape in SHAPES)


def _shape(row: Row, where: str) -> Shape:
    for shape in SHAPES:
        missing = set(shape.columns) - set(row)
        if not missing:
            _refuse_unread_judgement(shape, row, where)
            return shape
        # A mistyped column must not turn labels into demonstrations without a word.
        if len(missing) == 1 and (near := _misspelt(row, *missing)):
            raise RequestError(
                f"{where}: the columns are those of {shape.name}, but for {near!r}; is it {missing.pop()!r}?"
            )
    first = list(row)[:20]  # of perhaps millions
    hint = next((h for column in first if column not in COLUMNS and (h := nearest(column, sorted(COLUMNS)))), "")
    shown = ", ".join(f"{column!r:.40}" for column in first)
    accepted = "; ".join("/".join(shape.columns) for shape in SHAPES if "(" not in shape.name)
    raise RequestError(
        f"{where}: columns {shown or '(none)'} are no known shape{hint}\naccepted: {accepted}; see data.columns"
    )


def _refuse_unread_judgement(shape: Shape, row: Row, where: str) -> None:
    found = next((name for name in JUDGEMENTS if row.get(name) is not None), None)
    if not shape.judged and found is not None:
        raise RequestError(
            f"{where}: column {found!r} would go unread, and every answer be shown as good: the others are those of "
            f"{shape.name}\nif it is no judgement, data.columns={{slice: {found}}} takes it for a slice's name"
        )


def _refuse_another_shape(shape: Shape, unread: set[str], row: Row, where: str) -> None:
    """A judgement that begins in a later row would go unread, and what it calls bad would be shown as good."""
    found = next((name for name in row if name in unread and row[name] is not None), None)
    if found is not None and row.keys() >= set(shape.columns):  # a row that has less is refused for what is missing
        raise RequestError(
            f"{where}: column {found!r} is not in the first row, and {shape.name}, which that row is, have none; "
            "give rows of one shape"
        )


def _misspelt(row: Row, column: str) -> str:
    """A column of the row that has no meaning and nearly this name, or nothing."""
    found = get_close_matches(column, [name for name in row if name not in COLUMNS], n=1, cutoff=0.75)
    return found[0] if found else ""


def _example(shape: Shape, row: Row, where: str) -> Example:
    try:
        fields = shape.build(row)
        extras = {name: _optional(name, row[name]) for name in OPTIONAL if row.get(name) is not None}
        if extras.pop("tie", False):
            fields = {**fields, "scores": (0.0,) * len(fields["scores"]), "target": 0.5}
        return Example(**{**fields, **extras}, source=where)
    except KeyError as error:
        raise RequestError(f"{where}: column {error} is missing; the first row has it") from error
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{where}: {error}") from error


def _optional(name: str, value: Any) -> Any:
    if name in ("slice", "annotator"):
        return text_of(name, str(value))
    if name == "tie":
        return truth_of(name, value)
    return number_of(name, value, 0.0)


# ---------------------------------------------------------------- pairs


def _pair(row: Row, better: str = "chosen", worse: str = "rejected") -> Fields:
    return {**_under_prompt(row, better, worse), "scores": (1.0, 0.0)}


def _benchmark(row: Row) -> Fields:
    """RewardBench's: who wrote the answers plays no part, and accuracy is told by subset."""
    return {**_pair(row), "slice": text_of("subset", row["subset"])}


def _implicit_pair(row: Row) -> Fields:
    """The prompt stands inside both sides: messages up to the last turn, or text up to the last shared turn mark."""
    chosen, rejected = row["chosen"], row["rejected"]
    if isinstance(chosen, list) and isinstance(rejected, list):
        prompt: Text = messages_of(chosen)[:-1]
        if not prompt or prompt != messages_of(rejected)[:-1]:
            raise ValueError("chosen and rejected must be the same messages up to their last one, which answers them")
        answers = [answer_of("chosen", chosen[-1:]), answer_of("rejected", rejected[-1:])]
    else:
        prompt, *answers = _split_text(text_of("chosen", chosen), text_of("rejected", rejected))
    return {"prompt": prompt, "completions": tuple(answers), "scores": (1.0, 0.0)}


def _split_text(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Cut both texts after the last `\\n\\nAssistant:` within their common beginning."""
    shared = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), None)
    cut = chosen[: min(len(chosen), len(rejected)) if shared is None else shared].rfind(TURN)
    if cut < 0:
        raise ValueError(f"no prompt column, and no {TURN!r} in what chosen and rejected share")
    cut += len(TURN)
    return chosen[:cut], chosen[cut:], rejected[cut:]


def _judged(row: Row, first: str, second: str, p: float) -> Fields:
    """A pair whose first column wins with probability p; 1/2 is a tie."""
    fields = _under_prompt(row, *((first, second) if p >= 0.5 else (second, first)))
    return {**fields, "scores": (p, 1 - p) if p >= 0.5 else (1 - p, p), "target": max(p, 1 - p)}


def _preference(row: Row) -> Fields:
    """AlpacaEval's: 1 = the first is better, 2 = the second, between = the judge's probability."""
    value = number_of("preference", row["preference"], 1.0, 2.0)
    return _judged(_with_instruction(row), "output_1", "output_2", 2.0 - value)


def _a_or_b(row: Row, first: str, second: str) -> Fields:
    """label: 1 or A for the first, 0 or B for the second (HALOs), a probability between, or Tie (Tinker)."""
    value = row["label"]
    names = {"a": 1.0, "b": 0.0, "tie": 0.5, "true": 1.0, "false": 0.0}
    p = names.get(str(value).strip().lower())
    return _judged(row, first, second, number_of("label", value, 0.0, 1.0) if p is None else p)


def _ranking(row: Row, column: str) -> Fields:
    """Completions with a score (higher is better) or a rank (1 is best) each; the best comes first."""
    completions = list_of("completions", row["completions"])
    numbers = [number_of(column, value) for value in list_of(column, row[column])]
    if len(numbers) != len(completions) or len(numbers) < 2:
        raise ValueError(f"{len(completions)} completions and {len(numbers)} {column}; give as many, and at least two")
    scores = [-number for number in numbers] if column == "ranks" else numbers
    order = sorted(range(len(scores)), key=lambda k: -scores[k])
    named = {str(k): completions[k] for k in order}
    fields = _under_prompt({"prompt": row["prompt"], **named}, *named)
    return {**fields, "scores": tuple(scores[k] for k in order)}


# ---------------------------------------------------------------- labels and demonstrations


def _label(row: Row, answer: str = "completion", label: str = "label") -> Fields:
    """true, 1 or a probability above 1/2 is desirable; 1/2 says nothing."""
    p = truth_of(label, row[label], soft=True)
    return {**_under_prompt(row, answer), "scores": (float(p > 0.5),), "target": max(p, 1 - p)}


def _named_label(row: Row) -> Fields:
    """NeMo-Aligner's: preference is chosen or rejected."""
    names, said = {"chosen": 1.0, "rejected": 0.0}, row["preference"]
    if not isinstance(said, str) or said not in names:
        raise ValueError(f"column 'preference' must be chosen or rejected; got {said!r:.80}")
    return {**_under_prompt(row, "response"), "scores": (names[said],)}


def _demonstration(row: Row, answer: str = "completion") -> Fields:
    return {**_under_prompt(row, answer), "scores": (1.0,)}


def _conversation(row: Row, label: str | None = None) -> Fields:
    """A whole conversation: its last message answers the ones before. label: the column that judges it, if any."""
    messages = messages_of(row["messages"])
    if len(messages) < 2:
        raise ValueError("column 'messages' must hold a question and its answer")
    answer = answer_of("messages", row["messages"])
    p = truth_of(label, row[label]) if label else True
    return {"prompt": messages[:-1], "completions": (answer,), "scores": (float(p),)}


# ---------------------------------------------------------------- prompts and answers


def _with_instruction(row: Row) -> Row:
    """LLaMA-Factory's and Alpaca's columns: the prompt is instruction, input below it, after system and history."""
    asked = "\n".join(text_of(name, row[name]) for name in ("instruction", "input") if row.get(name))
    turns = row.get("history") or []
    if not isinstance(turns, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in turns):
        raise ValueError(f"column 'history' must be a list of pairs, what was asked and answered; got {turns!r:.80}")
    past = [{"role": role, "content": said} for turn in turns for role, said in zip(ASKED, turn, strict=True)]
    system = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    prompt = [*system, *past, {"role": "user", "content": asked}] if system or past else asked
    return {**row, "prompt": prompt}


def _under_prompt(row: Row, *names: str) -> Fields:
    """The prompt and the answers in these columns. An answer may repeat the dialogue, which then is the prompt."""
    value = row["prompt"]
    prompt = messages_of(value) if isinstance(value, list) else text_of("prompt", value)
    before = [found for name in names if isinstance(row[name], list) and (found := messages_of(row[name])[:-1])]
    if before:
        known = (before[0], before[0][0]["content"], before[0][-1]["content"])
        if prompt not in known or any(other != before[0] for other in before):
            raise ValueError(f"the messages in {'/'.join(names)} before the last must be those of the prompt")
        prompt = before[0]
    return {"prompt": prompt, "completions": tuple(answer_of(name, row[name]) for name in names)}


# The first shape whose columns a row has is its shape, so what says more stands before what says less.
SHAPES = (
    Shape(
        "pairs with a prompt (RewardBench)",
        ("prompt", "chosen", "rejected", "chosen_model", "rejected_model", "subset"),
        _benchmark,
    ),
    Shape("pairs with a prompt", ("prompt", "chosen", "rejected"), _pair),
    Shape(
        "pairs with a prompt (NeMo-Aligner)",
        ("prompt", "chosen_response", "rejected_response"),
        lambda row: _pair(row, "chosen_response", "rejected_response"),
    ),
    Shape(
        "pairs under an instruction (LLaMA-Factory)",
        ("instruction", "chosen", "rejected"),
        lambda row: _pair(_with_instruction(row)),
    ),
    Shape(
        "pairs under a conversation (LLaMA-Factory)",
        ("conversations", "chosen", "rejected"),
        lambda row: _pair({**row, "prompt": row["conversations"]}),
    ),
    Shape("pairs, the prompt inside both sides", ("chosen", "rejected"), _implicit_pair),
    Shape("judged pairs", ("instruction", "output_1", "output_2", "preference"), _preference),
    Shape(
        "judged pairs (HALOs)",
        ("prompt", "output_A", "output_B", "label"),
        lambda row: _a_or_b(row, "output_A", "output_B"),
    ),
    Shape(
        "judged pairs (Tinker)",
        ("prompt_conversation", "completion_A", "completion_B", "label"),
        lambda row: _a_or_b({**row, "prompt": row["prompt_conversation"]}, "completion_A", "completion_B"),
    ),
    Shape("ranked completions", ("prompt", "completions", "ranks"), lambda row: _ranking(row, "ranks")),
    Shape("scored completions", ("prompt", "completions", "scores"), lambda row: _ranking(row, "scores")),
    Shape("labelled completions", ("prompt", "completion", "label"), _label),
    Shape("labelled completions (HALOs)", ("prompt", "output", "label"), lambda row: _label(row, "output")),
    Shape("labelled completions (NeMo-Aligner)", ("prompt", "response", "preference"), _named_label),
    Shape(
        "labelled completions (LLaMA-Factory)",
        ("instruction", "output", "kto_tag"),
        lambda row: _label(_with_instruction(row), "output", "kto_tag"),
    ),
    Shape("labelled conversations (LLaMA-Factory)", ("messages", "kto_tag"), lambda row: _conversation(row, "kto_tag")),
    Shape("labelled conversations (ms-swift)", ("messages", "label"), lambda row: _conversation(row, "label")),
    Shape("demonstrations", ("prompt", "completion"), _demonstration, judged=False),
    Shape(
        "demonstrations (Alpaca)",
        ("instruction", "output"),
        lambda row: _demonstration(_with_instruction(row), "output"),
        judged=False,
    ),
    Shape("conversations", ("messages",), _conversation, judged=False),
)
COLUMNS = {column for shape in SHAPES for column in shape.columns} | set(OPTIONAL)
