"""Where examples come from: the user's files, the hub, or the controlled world. No text is kept in memory."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from prefopt.data.containers import read_rows
from prefopt.data.examples import KINDS, Example, digest
from prefopt.data.shapes import examples_of
from prefopt.data.splits import SPLITS, Splits
from prefopt.data.world import World, label, temperature_for
from prefopt.errors import RequestError
from prefopt.files import cached_folder
from prefopt.settings import DataSettings
from prefopt.settings.checks import one_of, require

VERSION = 2  # a change in what the same files mean must change it: prepared data are found by it
WORLD_VERSION = 2  # likewise of the pairs that are sampled from the same world
LONGEST = 16  # tokens of the world's longest answer, its end token included, rounded up
Write = Callable[[list[str], int, int], list[str]]  # (prompts, most new tokens, seed) to answers
Writer = Callable[[], tuple[str, Write]]  # the name of some weights, and answers sampled from them


@dataclass(frozen=True)
class Found:
    """Rows in their splits, the hash of what was read, and what a person should be told of it."""

    splits: Splits
    fingerprint: str
    notes: list[str]
    gold: Callable[[str, str], float] | None = None  # (prompt, completion) to the true reward


class Origin(Protocol):
    def check(self) -> None:
        """Read everything once, before anything heavy is loaded. RequestError at the first row that is wrong."""

    def kinds(self) -> frozenset[str] | None:
        """What its rows can be shown as: demonstrations, pairs, labels. After `check`; None: not fetched yet."""

    def demonstrations(self) -> Iterable[Example]:
        """Training demonstrations, one completion each: what a tiny base is fitted to."""

    def find(self, writer: Writer) -> Found:
        """Everything. writer: called only where completions are written for the data."""


def open_origin(settings: DataSettings, cache: Path, splits: Sequence[str] = SPLITS) -> Origin:
    """RequestError where what it needs is not given, or what it does not read is.

    splits: of recorded rows those that are read. The first must be there; the others are cut from it where they miss.
    """
    one_of(settings.kind, "data.kind", tuple(ORIGINS))
    named = (settings.kind == "hub") == bool(settings.name)
    require(named, "data.name", "a data set of the hub, with data=hub and only there", settings.name)
    return ORIGINS[settings.kind](settings, cache, tuple(splits))


def _controlled(settings: DataSettings, cache: Path, splits: tuple[str, ...]) -> Origin:
    for name in SPLITS:
        path = getattr(settings, name)
        require(path is None, f"data.{name}", "left out of the controlled world; files go with data=jsonl", path)
    return Controlled(settings, cache)


def _files(settings: DataSettings, cache: Path, splits: tuple[str, ...]) -> Origin:
    key, first = f"data.{splits[0]}", getattr(settings, splits[0])
    require(bool(first), key, f"a file of pairs or labels, e.g. {key}=pairs.jsonl", first)
    files = {name: path for name in splits if (path := getattr(settings, name))}
    tables: Tables = {name: (path, partial(read_rows, path, f"data.{name}")) for name, path in files.items()}
    return Recorded(settings, lambda: (tables, partial(_bytes_hash, files)), splits)


def _hub(settings: DataSettings, cache: Path, splits: tuple[str, ...]) -> Origin:
    from prefopt.data.hub import hub_tables

    left_out = Counter[str]()
    return Recorded(settings, partial(hub_tables, settings, left_out, splits), splits, local=False, left_out=left_out)


ORIGINS = {"controlled": _controlled, "jsonl": _files, "hub": _hub}  # by data.kind


Tables = dict[str, tuple[str, Callable[[], Iterable[tuple[str, Any]]]]]  # by split: a name, and ("where", row) of each


@dataclass(frozen=True)
class Recorded:
    """Tables of rows, by the split that they were given for. wanted: the splits that must hold rows. left_out: by
    table, rows that never become examples."""

    settings: DataSettings
    open: Callable[[], tuple[Tables, Callable[[], str]]]  # the tables, and how to hash what they hold
    wanted: tuple[str, ...] = SPLITS
    local: bool = True
    left_out: Counter[str] = field(default_factory=Counter)
    _notes: dict[str, str] = field(default_factory=dict)
    _seen: dict[str, Counter[str]] = field(default_factory=dict)  # by table, why rows are of no use; "" for the others
    _kinds: set[str] = field(default_factory=set)

    @cached_property
    def _opened(self) -> tuple[Tables, Callable[[], str]]:
        return self.open()

    @cached_property
    def _splits(self) -> Splits:
        return Splits(self._read, self.settings.held_out, self.left_out.total, self.wanted)

    def _read(self) -> Iterator[tuple[str, Example]]:
        for name, (title, rows) in self._opened[0].items():
            shape: list[str] = []
            count = 0
            seen = self._seen[name] = Counter[str]()
            found = examples_of(f"data.{name}={title}", rows(), shape.append, self.settings.columns)
            for example in joined(found) if self.settings.group else found:
                count += 1
                reason = _useless(example)
                seen[reason] += 1
                if not reason:
                    self._kinds.update(example.kinds)
                yield name, example
            what = "prompts" if self.settings.group else "rows"
            self._notes[name] = f"data.{name}: {count} {what} of {title}, read as {shape[0]}"

    def check(self) -> None:
        """What has to be fetched is checked when it is."""
        if not self.local:
            return
        _ = self._splits.rows
        for name, seen in self._seen.items():
            if not seen[""]:
                found = ", ".join(f"{count} {reason}" for reason, count in seen.most_common() if reason)
                raise RequestError(f"data.{name}={self._opened[0][name][0]}: no row can be learnt from: {found}")
        self._splits.refuse_empty()
        if self.settings.on_leak == "error":
            self._splits.refuse_leaks()

    def kinds(self) -> frozenset[str] | None:
        return frozenset(self._kinds) if self.local else None

    def demonstrations(self) -> Iterator[Example]:
        """The best completion of each training row, if it was judged good."""
        found = False
        for example in self._splits.train(leaked=self.settings.on_leak != "drop"):
            if example.good(0) and not example.is_tie and example.completions[0]:
                found = True
                yield replace(example, completions=(example.completions[0],), scores=(1.0,))
        if not found:
            raise RequestError("data.train holds no completion judged good; a tiny base has nothing to be fitted to")

    def find(self, writer: Writer) -> Found:
        read = json.dumps([self.settings.columns, self.settings.group], sort_keys=True)
        parts = (str(VERSION), self._opened[1](), read)
        _ = self._splits.rows  # read at least once, for the notes
        return Found(self._splits, digest(parts), list(self._notes.values()))


@dataclass(frozen=True)
class Controlled:
    """The controlled world: pairs sampled from the reference policy, labelled by Bradley-Terry on the gold reward.

    The temperature makes annotators agree with the gold order in `world.agreement` of the training pairs on average;
    held-out pairs stand under unseen prompts, half of which are val and half test.
    """

    settings: DataSettings
    cache: Path

    @cached_property
    def world(self) -> World:
        w = self.settings.world
        try:
            return World(subjects=w.subjects, modifiers=w.modifiers, held_out=w.held_out, seed=self.settings.seed)
        except ValueError as error:
            raise RequestError(str(error)) from error

    def check(self) -> None:
        _ = self.world

    def kinds(self) -> frozenset[str]:
        return frozenset(KINDS)

    def demonstrations(self) -> list[Example]:
        shown = self.world.demonstrations(self.settings.world.demonstrations, self.settings.seed)
        return [Example(prompt=prompt, completions=(answer,), scores=(1.0,)) for prompt, answer in shown]

    def find(self, writer: Writer) -> Found:
        """Sampled once per writer and settings, then read from the cache."""
        name, write = writer()
        key = digest([name, json.dumps(asdict(self.settings.world)), str(self.settings.seed), str(WORLD_VERSION)])[:20]
        folder = cached_folder(self.cache / "world" / key, lambda empty: self._sample(write, empty))
        splits = Splits(lambda: _read_world(folder / "pairs.jsonl"), self.settings.held_out)
        return Found(splits, key, [f"controlled world: {self.settings.world.pairs} training pairs"], self.world.gold)

    def _sample(self, write: Write, folder: Path) -> None:
        w, seed = self.settings.world, self.settings.seed
        held = self.world.held_out_prompts
        prompts = {"train": self.world.train_prompts, "val": held[::2], "test": held[1::2]}
        sizes = {"train": w.pairs, "val": w.val_pairs, "test": w.held_out_pairs}
        asked = [(name, prompt) for name in SPLITS for prompt in _spread(prompts[name], sizes[name])]
        answers = write([prompt for _, prompt in asked for _ in range(2)], LONGEST, seed)
        gold = np.array([self.world.gold(asked[i // 2][1], answer) for i, answer in enumerate(answers)])
        first, second = gold[::2], gold[1::2]
        try:
            temperature = temperature_for(np.abs(first - second)[: w.pairs], w.agreement)
        except ValueError as error:
            raise RequestError(f"data.world.agreement: {error}; is the writer fitted long enough?") from error
        prefer_first = label(first, second, temperature, np.random.default_rng(seed))
        with (folder / "pairs.jsonl").open("w", encoding="utf-8") as stream:
            for i, (name, prompt) in enumerate(asked):
                order = (2 * i, 2 * i + 1) if prefer_first[i] else (2 * i + 1, 2 * i)
                pair = {"split": name, "prompt": prompt, "completions": [answers[k] for k in order]}
                stream.write(json.dumps({**pair, "gold": [float(gold[k]) for k in order]}) + "\n")


def joined(examples: Iterable[Example]) -> Iterator[Example]:
    """Labelled completions of one prompt, where they stand together, as one ranking: scored by how good they are."""
    for _, group in groupby(examples, key=lambda example: example.question):
        rows = list(group)
        if any(row.is_pair for row in rows):
            raise RequestError(f"{rows[0].source}: data.group=true joins labelled completions; these rows are pairs")
        goodness = {i: row.target if row.good(0) else 1 - row.target for i, row in enumerate(rows)}
        order = sorted(goodness, key=lambda i: -goodness[i])
        yield (
            replace(
                rows[0],
                completions=tuple(rows[i].completions[0] for i in order),
                scores=tuple(goodness[i] for i in order),
                weight=sum(row.weight for row in rows) / len(rows),
                target=1.0,
            )
            if len(rows) > 1
            else replace(rows[0], target=0.5)
        )  # one alone is compared with nothing: a tie, left out


def _read_world(path: Path) -> Iterator[tuple[str, Example]]:
    with path.open(encoding="utf-8") as stream:
        for row in map(json.loads, stream):
            completions, gold = tuple(row["completions"]), tuple(row["gold"])
            yield row["split"], Example(prompt=row["prompt"], completions=completions, scores=(1.0, 0.0), gold=gold)


def _useless(example: Example) -> str:
    """Why a row cannot be learnt from, whatever the tokenizer, or nothing."""
    if not all(example.completions):
        return "empty completion"
    if example.is_pair and example.completions[0] == example.completions[-1]:
        return "identical pair"
    return "tie" if example.is_tie else ""


def _bytes_hash(files: dict[str, str]) -> str:
    """sha256 of the files' bytes, and of which split each is; their names do not matter."""
    found = []
    for name, path in files.items():
        with Path(path).expanduser().open("rb") as stream:
            found += [
                name,
                Path(path).name.partition(".")[2].lower(),
                hashlib.file_digest(stream, "sha256").hexdigest(),
            ]
    return digest(found)


def _spread(prompts: Sequence[str], n: int) -> list[str]:
    """n prompts, each as often as the others."""
    return [prompts[i % len(prompts)] for i in range(n)]
