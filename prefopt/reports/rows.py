"""Rows as a model will see them: the tree of prompt and completions, token by token, and the audit around it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from prefopt.data.audit import in_words, warnings
from prefopt.data.examples import Encoded
from prefopt.data.splits import SPLITS
from prefopt.errors import plain

WITHOUT_LOSS = ("grey50", "grey62")  # two shades each, so that neighbouring tokens are told apart
WITH_LOSS = ("black on green3", "black on pale_green3")
ENDS = "black on gold1"
Decode = Callable[[list[int]], str]
MEASURES = (
    ("rows", "rows", "d"),
    ("pairs", "pairs", "d"),
    ("desirable", "good completions", "d"),
    ("undesirable", "bad completions", "d"),
    ("soft", "soft labels", "d"),
    ("duplicates", "rows said twice", "d"),
    ("contradictions", "judged both ways", "d"),
    ("cyclic_prompts", "prompts with a circle of preferences", "d"),
    ("longer_wins", "the longer one wins", ".1%"),
    ("prompt_tokens", "tokens of a prompt", ".1f"),
    ("desirable_tokens", "tokens of a good completion", ".1f"),
    ("undesirable_tokens", "tokens of a bad completion", ".1f"),
    ("longest", "tokens of the longest row", "d"),
    ("truncated", "rows cut", "d"),
    ("lost_end_tokens", "completions without their end", "d"),
    ("annotators", "annotators", "d"),
    ("judged_repeatedly", "judged by several annotators", "d"),
    ("annotator_agreement", "annotators agree", ".1%"),
)


def audit_view(audit: dict[str, Any]) -> RenderableType:
    """The audit as a table with a column per split, what was dropped, and what it warns of."""
    table = Table(title="audit", title_justify="left")
    for column in ("", *SPLITS):
        table.add_column(column, justify="right" if column else "left")
    for name, label, form in MEASURES:
        values = [audit["splits"][split][name] for split in SPLITS]
        if any(values):
            table.add_row(label, *("" if value is None else format(value, form) for value in values))
    dropped = in_words(audit["dropped"])
    lines = [f"{audit['rows_in']} rows read, {audit['rows_kept']} kept" + (f"; dropped: {dropped}" if dropped else "")]
    lines += [f"warning: {sentence}" for sentence in warnings(audit)]
    return Group(table, *(Text(plain(line)) for line in lines))


def row_view(number: int, row: Encoded, decode: Decode, end_ids: Sequence[int]) -> RenderableType:
    """A row as a tree: the prompt, under it each completion that methods see. decode: ids to their text."""
    example = row.example
    about = [f"weight {example.weight:g}"] if example.weight != 1 else []
    about += [f"p {example.target:g}"] if example.target != 1 else []
    about += [f"margin {example.margin:g}"] if example.margin is not None else []
    about += [f"{name} {value}" for name in ("slice", "annotator") if (value := getattr(example, name))]
    head = Text(f"row {number}  {plain(example.source)}  {plain(', '.join(about))}".rstrip(), style="bold")
    tree = Tree(Group(head, _tokens(row.prompt, decode, WITHOUT_LOSS, ())))
    for place in example.shown:
        judged = ("chosen" if example.is_pair else "good") if example.good(place) else "rejected"
        judged = "bad" if judged == "rejected" and not example.is_pair else judged
        ids = row.completions[place]
        label = Text(f"{judged}, {len(ids)} tokens", style="bold")
        tree.add(Group(label, _tokens(ids, decode, WITH_LOSS, end_ids)))
    return tree


def legend() -> Text:
    return Text.assemble(
        ("without loss", WITHOUT_LOSS[0]), "  ", ("with loss", WITH_LOSS[0]), "  ", ("end of turn, with loss", ENDS)
    )


def _tokens(ids: np.ndarray, decode: Decode, shades: tuple[str, str], end_ids: Sequence[int]) -> Text:
    found = Text()
    for place, (token, text) in enumerate(zip(ids.tolist(), pieces(ids.tolist(), decode), strict=True)):
        shown = plain(text).replace("\\n", "⏎")
        found.append(shown, style=ENDS if token in end_ids else shades[place % 2])
    return found


def pieces(ids: list[int], decode: Decode) -> list[str]:
    """What each token adds to the text. Alone it may be a part of a letter, or want the space before it: one that ends
    within a letter adds nothing, the one that ends the letter all of it."""
    found: list[str] = []
    start = done = 0  # the text up to `done` is out; that from `start` on is context enough for what comes
    for end in range(1, len(ids) + 1):
        before, now = decode(ids[start:done]), decode(ids[start:end])
        whole = end == len(ids) or not now.endswith("\N{REPLACEMENT CHARACTER}")
        found.append(now[len(before) :] if whole else "")
        start, done = (done, end) if whole else (start, done)
    return found
