"""An example: one row of a dataset, whatever shape it came in, and its ids once it is rendered."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

KINDS = ("demonstrations", "pairs", "labels")
Message = dict[str, str]
Text = str | tuple[Message, ...] | list[Message]


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A prompt and its judged completions.

    Two or more completions come with falling scores: the first is the best and the last the worst, and these two are
    its pair; equal scores there are a tie. A single one is a label: its score is 1 (desirable) or 0. target: the
    probability that the judgement is right, 1 unless the label is soft. gold: the true reward of each completion,
    where a world knows it. source: "file:line", for messages.
    """

    prompt: Text
    completions: tuple[str, ...]
    scores: tuple[float, ...]
    weight: float = 1.0
    target: float = 1.0
    margin: float | None = None
    annotator: str | None = None
    slice: str | None = None
    gold: tuple[float, ...] | None = None
    source: str = ""

    @property
    def is_pair(self) -> bool:
        return len(self.completions) > 1

    @property
    def is_tie(self) -> bool:
        return self.target == 0.5 or (self.is_pair and self.scores[0] == self.scores[-1])

    @property
    def kinds(self) -> frozenset[str]:
        """What it can be shown as."""
        fits = {"demonstrations": self.good(0), "pairs": self.is_pair, "labels": True}
        return frozenset(kind for kind in KINDS if fits[kind])

    @property
    def confidence(self) -> float:
        """The weight of a soft label p is |2p - 1|: 0 where it says nothing."""
        return self.weight * abs(2 * self.target - 1)

    @property
    def shown(self) -> tuple[int, ...]:
        """The places of the completions that a method sees: of a ranking, the best and the worst."""
        return (0, len(self.completions) - 1) if self.is_pair else (0,)

    def good(self, place: int) -> bool:
        """Whether the completion was judged good: the better one of a pair, a desirable label."""
        return place == 0 if self.is_pair else self.scores[0] > 0

    @property
    def prompt_text(self) -> str:
        return self.prompt if isinstance(self.prompt, str) else json.dumps(list(self.prompt), ensure_ascii=False)

    @property
    def question(self) -> str:
        """What tells prompts apart: a single message of the user asks what its text asks."""
        if not isinstance(self.prompt, str) and [message["role"] for message in self.prompt] == ["user"]:
            return self.prompt[0]["content"]
        return self.prompt_text

    def content(self) -> str:
        """What the example says, for hashes; where it stood in a file does not matter."""
        judged = (self.completions, self.scores, self.weight, self.target, self.margin, self.annotator, self.slice)
        return json.dumps((self.prompt_text, *judged), ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class Encoded:
    """An example as ids. The boundary of prompt and completion is where one array ends and the other begins."""

    example: Example
    prompt: np.ndarray  # [p]
    completions: tuple[np.ndarray, ...]  # K of [t], the end-of-turn token included

    @property
    def length(self) -> int:
        """Tokens of the prompt and the longest completion that is shown."""
        return len(self.prompt) + max(len(self.completions[k]) for k in self.example.shown)

    @property
    def tokens(self) -> int:
        """Tokens of the prompt and of every completion that is shown."""
        return len(self.prompt) + sum(len(self.completions[k]) for k in self.example.shown)


def digest(contents: Iterable[str]) -> str:
    """sha256 over texts in their order."""
    found = hashlib.sha256()
    for content in contents:
        found.update(content.encode("utf-8", "surrogatepass"))
        found.update(b"\0")
    return found.hexdigest()


def key(text: str) -> int:
    """64 bits of a text's sha256: what is compared where whole texts would not fit in memory."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")
