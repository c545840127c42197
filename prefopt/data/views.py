"""Views: the same examples as demonstrations, pairs or labels. A row of a view is one example; a batch is some rows."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from prefopt.data.examples import Encoded, key
from prefopt.errors import RequestError
from prefopt.records import HALVED, Batch, Columns


@dataclass(frozen=True)
class View:
    """Examples as one kind of data. rows: the examples this view can show, by index; `batch` shows some of them."""

    data: str
    examples: Sequence[Encoded]
    rows: list[int]
    partners: dict[tuple[int, int], tuple[int, int]]
    columns: frozenset[str] = frozenset()  # what else the method reads and some example has: margin, target

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, rows: Sequence[int], filler: bool = False) -> Batch:
        """The examples `rows` (positions in this view) as a batch. filler: give every row the weight 0."""
        chosen = [self.rows[row] for row in rows]
        groups, places = _BUILD[self.data](self, chosen)
        prompts = [torch.from_numpy(self.examples[i].prompt) for i in chosen]
        completions = [torch.from_numpy(self.examples[i].completions[k]) for i, k in places]
        return Batch.of(self.data, prompts, completions, groups, **self._columns(places, filler))

    def _columns(self, places: list[tuple[int, int]], filler: bool) -> Columns:
        """Columns of all rows; those of a half are cut to [N/2]."""
        examples = [self.examples[i].example for i, _ in places]
        half = len(places) // 2 if self.data in HALVED else len(places)
        soft = "target" in self.columns
        columns: Columns = {
            "weight": torch.tensor(
                [0.0 if filler else float(e.weight if soft else e.confidence) for e in examples[:half]]
            ),
            "row": torch.tensor([i for i, _ in places]),
            "place": torch.tensor([k for _, k in places]),
        }
        if self.data == "labels":
            judged = [e.good(k) for e, (_, k) in zip(examples, places, strict=True)]
            columns["desirable"] = torch.tensor(judged)
        if "margin" in self.columns:
            columns["margin"] = torch.tensor([float(e.margin or 0.0) for e in examples[:half]])
        if soft:
            columns["target"] = torch.tensor([e.target for e in examples[:half]])
        return columns


def check_view(data: str, there: Collection[str] | None = None) -> None:
    """Refuse what no recorded example can be shown as, before anything is read or fitted. there: what these can."""
    if data not in RECORDED:
        raise RequestError(f"recorded examples are {', '.join(RECORDED)}; this loss needs {data}")
    if there is not None and data not in there:
        found = ", ".join(sorted(there))
        raise RequestError(f"this loss needs {_WANTED[data]}, and data.train has none; it can be read as {found}")


def view(data: str, examples: Sequence[Encoded], columns: Iterable[str] = ()) -> View:
    """The view a method needs, with the columns that it reads. RequestError when these examples have none.

    A soft label is a weight unless `columns` holds target; weights are never both.
    """
    check_view(data)
    rows, given = [], {"target"}
    for i, encoded in enumerate(examples):
        if data in encoded.example.kinds:
            rows.append(i)
        if encoded.example.margin is not None:
            given.add("margin")  # of any example, so that every batch has the same columns
    if not rows:
        raise RequestError(f"this loss needs {_WANTED[data]}, and the data has none")
    return View(data, examples, rows, mismatch(examples) if data == "labels" else {}, frozenset(given & set(columns)))


def mismatch(examples: Sequence[Encoded]) -> dict[tuple[int, int], tuple[int, int]]:
    """For each completion (example, place), a completion of another prompt, drawn once and from the data alone.

    The rows are shuffled by a fixed seed and each takes the next one in the circle that has another prompt, and with
    it is no longer than the longest row is anyway; so every method, seed, batch and world size sees the same partners.
    """
    prompts, rooms, longest = [], [], 0
    lengths: dict[tuple[int, int], int] = {}
    for i, encoded in enumerate(examples):
        prompts.append(key(encoded.example.question))
        rooms.append(-len(encoded.prompt))
        lengths.update({(i, k): len(encoded.completions[k]) for k in encoded.example.shown})
        longest = max(longest, encoded.length)
    if len(set(prompts)) < 2:
        raise RequestError("labels need completions under at least two different prompts, to mismatch some of them")
    places = list(lengths)
    order = [places[number] for number in np.random.default_rng(0).permutation(len(places))]
    found = {}
    for at, (i, k) in enumerate(order):
        circle = (order[(at + step) % len(order)] for step in range(1, len(order)))
        others = (place for place in circle if prompts[place[0]] != prompts[i])
        first = next(others)
        fits = lengths[first] <= longest + rooms[i]
        found[i, k] = first if fits else next((p for p in others if lengths[p] <= longest + rooms[i]), first)
    return found


Places = list[tuple[int, int]]


def _demonstrations(view: View, chosen: list[int]) -> tuple[list[int], Places]:
    return list(range(len(chosen))), [(i, 0) for i in chosen]


def _pairs(view: View, chosen: list[int]) -> tuple[list[int], Places]:
    groups = list(range(len(chosen)))
    best, worst = zip(*(view.examples[i].example.shown for i in chosen), strict=True)
    return groups * 2, [*zip(chosen, best, strict=True), *zip(chosen, worst, strict=True)]


def _labels(view: View, chosen: list[int]) -> tuple[list[int], Places]:
    labelled = [(g, i, k) for g, i in enumerate(chosen) for k in view.examples[i].example.shown]
    groups = [g for g, _, _ in labelled]
    return groups * 2, [(i, k) for _, i, k in labelled] + [view.partners[i, k] for _, i, k in labelled]


_BUILD = {"demonstrations": _demonstrations, "pairs": _pairs, "labels": _labels}
RECORDED = tuple(_BUILD)
_WANTED = {
    "demonstrations": "completions judged good",
    "pairs": "pairs (chosen and rejected)",
    "labels": "labelled completions",
}
