"""What a dataset is like before anything is trained on it: counts that a person should see, kept by no method."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from itertools import combinations
from typing import Any

from prefopt.data.examples import Encoded, Example, key

Item = tuple[int, int, int]  # a prompt and two of its completions, or one and 0, by their keys


def in_words(dropped: Mapping[str, int]) -> str:
    """`3 too long, 1 tie`: how many rows, and why."""
    return ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in dropped.items())


class Tally:
    """The rows of one split, seen one by one; texts are kept as 64-bit keys alone."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._seen: set[int] = set()
        self._votes: dict[Item, list[int]] = defaultdict(lambda: [0, 0])
        self._opinions: dict[Item, dict[str, int]] = defaultdict(dict)
        self._longest = 0

    def see(self, encoded: Encoded, cut: int = 0) -> None:
        """cut: how many of its completions lost their end; truncation may also shorten the prompt (-1)."""
        example, counts = encoded.example, self._counts
        counts["rows"] += 1
        counts["truncated"] += cut != 0
        counts["lost_end_tokens"] += max(cut, 0)
        counts["soft"] += example.target < 1
        content = key(example.content())
        counts["duplicates"] += content in self._seen
        self._seen.add(content)
        self._judge(example)
        self._measure(encoded)

    def _judge(self, example: Example) -> None:
        prompt = key(example.question)
        if example.is_pair:
            better, worse = (key(example.completions[k]) for k in example.shown)
            item, vote = (prompt, min(better, worse), max(better, worse)), int(better > worse)
        else:
            item, vote = (prompt, key(example.completions[0]), 0), int(example.good(0))
        self._votes[item][vote] += 1
        if example.annotator is not None:
            self._opinions[item][example.annotator] = vote

    def _measure(self, encoded: Encoded) -> None:
        example, counts = encoded.example, self._counts
        lengths = {place: len(encoded.completions[place]) for place in example.shown}
        counts["prompt_tokens"] += len(encoded.prompt)
        self._longest = max(self._longest, encoded.length)
        for place, length in lengths.items():
            side = "desirable" if example.good(place) else "undesirable"
            counts[side] += 1
            counts[f"{side}_tokens"] += length
        if example.is_pair:
            better, worse = lengths.values()
            counts["pairs"] += 1
            counts["halves_longer_wins"] += 2 * (better > worse) + (better == worse)

    def report(self) -> dict[str, Any]:
        """JSON. Means are tokens, shares lie in [0, 1]; None where nothing can be said."""
        counts = self._counts
        annotators, judged, agreement = self._agreement()
        return {
            **{name: counts[name] for name in ("rows", "pairs", "desirable", "undesirable", "soft")},
            "duplicates": counts["duplicates"],
            "contradictions": sum(min(votes) > 0 for votes in self._votes.values()),
            "cyclic_prompts": self._cycles(),
            "longer_wins": _share(counts["halves_longer_wins"], 2 * counts["pairs"]),
            "prompt_tokens": _share(counts["prompt_tokens"], counts["rows"]),
            "desirable_tokens": _share(counts["desirable_tokens"], counts["desirable"]),
            "undesirable_tokens": _share(counts["undesirable_tokens"], counts["undesirable"]),
            "longest": self._longest,
            "truncated": counts["truncated"],
            "lost_end_tokens": counts["lost_end_tokens"],
            "annotators": annotators,
            "judged_repeatedly": judged,
            "annotator_agreement": agreement,
        }

    def _cycles(self) -> int:
        """Prompts with a preference a > b > c > a; a pair judged both ways is a contradiction and no cycle."""
        graphs: dict[int, dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
        for (prompt, low, high), votes in self._votes.items():
            if high and min(votes) == 0:
                better, worse = (high, low) if votes[1] else (low, high)
                graphs[prompt][better].add(worse)
        return sum(map(_has_cycle, graphs.values()))

    def _agreement(self) -> tuple[int, int, float | None]:
        """(annotators, items that two or more of them judged, share of their pairs that agree on one)"""
        several = [list(votes.values()) for votes in self._opinions.values() if len(votes) > 1]
        agree = [a == b for votes in several for a, b in combinations(votes, 2)]
        named = {name for votes in self._opinions.values() for name in votes}
        return len(named), len(several), _share(sum(agree), len(agree))


def warnings(audit: dict[str, Any]) -> list[str]:
    """What a person should know before training, in sentences."""
    found = []
    for name, count in audit["leaks"].items():
        one, other = name.split("_")
        if count and one != "train":
            found.append(f"{_n(count, 'prompt')} of {one} also in {other}, which then reports what it has chosen by")
        elif count and not audit["dropped"].get("leak"):
            found.append(f"{_n(count, 'prompt')} of {one} also in {other} (data.on_leak=drop leaves them out of train)")
    train = audit["splits"]["train"]
    if train["duplicates"]:
        found.append(f"{_n(train['duplicates'], 'training row')} said twice")
    if train["contradictions"]:
        found.append(f"{_n(train['contradictions'], 'training judgement')} made both ways")
    if train["cyclic_prompts"]:
        found.append(f"{_n(train['cyclic_prompts'], 'training prompt')} with preferences in a circle")
    if train["longer_wins"] is not None and not 0.4 <= train["longer_wins"] <= 0.6:
        found.append(f"the longer answer wins {train['longer_wins']:.0%} of the training pairs: length is confounded")
    if train["lost_end_tokens"]:
        found.append(f"{_n(train['lost_end_tokens'], 'training completion')} cut before the end-of-turn token")
    return found


def _n(count: int, what: str) -> str:
    return f"{count} {what}{'s' if count > 1 else ''}"


def _has_cycle(graph: dict[int, set[int]]) -> bool:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError:
        return True
    return False


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None
