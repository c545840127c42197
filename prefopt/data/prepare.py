"""Examples to encoded splits: what is kept, what is dropped and why, before any method is known."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from prefopt.data.audit import Tally, in_words
from prefopt.data.examples import Encoded, Example, digest, key
from prefopt.data.splits import SPLITS, Splits
from prefopt.data.store import Stored, writing
from prefopt.errors import RequestError
from prefopt.files import cached_folder, write_json
from prefopt.progress import track

VERSION = 2  # a change in what becomes of the same rows must change it: prepared data are found by it


class Encoder(Protocol):
    """Text to ids, see `render.Renderer`."""

    @property
    def end_ids(self) -> Sequence[int]:
        """What ends an answer."""

    @property
    def bos_id(self) -> int | None:
        """What begins a prompt, where anything does."""

    def encode(self, example: Example) -> Encoded: ...

    def foreign_tokens(self, example: Example) -> str: ...

    def key(self) -> str: ...


@dataclass(frozen=True)
class Recipe:
    """What decides which rows are kept, and how long they are. The same for every method."""

    max_length: int
    truncation: str = "drop"
    on_leak: str = "warn"


@dataclass(frozen=True)
class Dataset:
    """Encoded splits, the audit of how they came about, and the hashes of what they say and of their ids."""

    train: Sequence[Encoded]
    val: Sequence[Encoded]
    test: Sequence[Encoded]
    audit: dict[str, Any]
    data_hash: str
    tokens_hash: str
    gold: Callable[[str, str], float] | None = None

    def counts(self) -> dict[str, int]:
        """Training rows by label, for `Objective.warnings`."""
        train = self.audit["splits"]["train"]
        return {name: train[name] for name in ("desirable", "undesirable")}


def prepared(splits: Splits, fingerprint: str, encoder: Encoder, recipe: Recipe, cache: Path) -> Dataset:
    """The encoded splits, from the cache or made now. fingerprint: of what `splits` reads.

    Every process that wants the same rows at once waits for the first. RequestError when nothing is left.
    """
    parts = (str(VERSION), fingerprint, encoder.key(), str(splits.held_out), json.dumps(asdict(recipe)))
    folder = cached_folder(
        cache / "tokens" / digest(parts)[:20], lambda empty: _prepare(splits, encoder, recipe, empty)
    )
    found = json.loads((folder / "prepared.json").read_text("utf-8"))
    train, val, test = (Stored(folder / f"{name}.arrow") for name in SPLITS)
    return Dataset(train, val, test, found["audit"], found["data_hash"], found["tokens_hash"])


def _prepare(splits: Splits, encoder: Encoder, recipe: Recipe, folder: Path) -> None:
    leaked = splits.leaked
    if recipe.on_leak == "error":
        splits.refuse_leaks()
    dropped: Counter[str] = Counter()
    tallies = {name: Tally() for name in SPLITS}
    said, ids = ({name: hashlib.sha256() for name in SPLITS} for _ in range(2))
    with ExitStack() as stack:
        files = {name: stack.enter_context(writing(folder / f"{name}.arrow")) for name in SPLITS}
        for name, example in track(splits, "tokenising", splits.rows):
            leak = recipe.on_leak == "drop" and name == "train" and key(example.question) in leaked
            encoded, cut, reason = (None, 0, "leak") if leak else admit(example, encoder, recipe)
            if encoded is None:
                dropped[reason] += 1
                continue
            files[name].write(encoded)
            tallies[name].see(encoded, cut)
            said[name].update(f"{example.content()}\0".encode("utf-8", "surrogatepass"))
            ids[name].update(_ids(encoded))
    reports = {name: tally.report() for name, tally in tallies.items()}
    if splits.left_out():
        dropped["left_out_by_adapter"] = splits.left_out()
    rows_in = splits.rows + splits.left_out()
    _check(reports, splits.wanted, rows_in, dropped)
    audit = {
        "rows_in": rows_in,
        "rows_kept": sum(report["rows"] for report in reports.values()),
        "dropped": dict(sorted(dropped.items())),
        "leaked_prompts": len(leaked),
        "leaks": {
            f"{a}_{b}": len(splits.shared(a, b)) for a, b in (("train", "val"), ("train", "test"), ("val", "test"))
        },
        "splits": reports,
    }
    data_hash, tokens_hash = (digest(hashes[name].hexdigest() for name in SPLITS) for hashes in (said, ids))
    write_json(folder / "prepared.json", {"audit": audit, "data_hash": data_hash, "tokens_hash": tokens_hash})


def _ids(encoded: Encoded) -> bytes:
    """A row's ids, with where each text ends: the same text is other ids under another template or truncation."""
    texts = (encoded.prompt, *encoded.completions)
    return np.concatenate(([len(texts), *map(len, texts)], *texts)).astype("<i8").tobytes()


def _check(reports: dict[str, dict[str, Any]], wanted: Sequence[str], rows: int, dropped: Counter[str]) -> None:
    reasons = in_words(dict(dropped.most_common())) or "it was empty"
    if not reports[wanted[0]]["rows"]:
        what = "training" if wanted[0] == "train" else wanted[0]
        raise RequestError(f"no {what} row is left of {rows}: {reasons}")
    for name in wanted:
        if not reports[name]["rows"]:
            raise RequestError(f"no {name} row is left: give data.{name}, or more prompts to cut it from ({reasons})")
        if 0 < reports[name]["pairs"] < reports[name]["rows"]:
            raise RequestError(f"data.{name} mixes pairs and labelled completions; give one kind")


def admit(example: Example, encoder: Encoder, recipe: Recipe) -> tuple[Encoded | None, int, str]:
    """(row as ids or None, what `truncated` says was cut, why it cannot be learnt from)."""
    if example.is_tie:
        return None, 0, "identical_pair" if len(set(example.completions)) == 1 < len(example.completions) else "tie"
    if encoder.foreign_tokens(example):
        return None, 0, "contains_special_token"
    whole = encoder.encode(example)
    encoded, cut = truncated(whole, recipe, encoder.bos_id)
    reason = fault(whole, encoder.end_ids) or ("too_long" if encoded.length > recipe.max_length else fault(encoded))
    return (None, 0, reason) if reason else (encoded, cut, "")


def fault(encoded: Encoded, end_ids: Sequence[int] = ()) -> str:
    """Why a row cannot be learnt from, whatever its length, or nothing."""
    if not all(map(len, encoded.completions)):
        return "empty_completion"
    ends = set(end_ids)
    if any(ends.intersection(completion[:-1].tolist()) for completion in encoded.completions):
        return "contains_end_token"  # a completion has one end, and a sampled one stops there
    if encoded.example.is_pair and encoded.completions[0].tolist() == encoded.completions[-1].tolist():
        return "identical_pair"
    return ""


def truncated(encoded: Encoded, recipe: Recipe, bos_id: int | None = None) -> tuple[Encoded, int]:
    """A row cut to `max_length` tokens, both sides of a pair by the same rule, and what was cut.

    truncate_completion: what of a completion stands beyond goes, its end-of-turn token with it; returns how many
    completions lost theirs. truncate_prompt_left: the oldest part of the prompt goes, but for its BOS; returns -1.
    drop: nothing is cut.
    """
    over = encoded.length - recipe.max_length
    if recipe.truncation == "drop" or over <= 0:
        return encoded, 0
    prompt = encoded.prompt
    if recipe.truncation == "truncate_prompt_left":
        kept = int(prompt[0] == bos_id)
        room = len(prompt) - kept - over
        cut = np.concatenate((prompt[:kept], prompt[-room:])) if room > 0 else prompt
        return replace(encoded, prompt=cut), -1
    room = max(recipe.max_length - len(prompt), 0)
    lost = sum(len(encoded.completions[k]) > room for k in encoded.example.shown)
    return replace(encoded, completions=tuple(c[:room] for c in encoded.completions)), lost
