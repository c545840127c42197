"""Which rows train and which are held out: a function of the prompts alone, found in one pass that keeps no text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from prefopt.data.examples import Example, key
from prefopt.errors import RequestError

SPLITS = ("train", "val", "test")
Salted = dict[int, tuple[int, int]]  # a prompt's key to where it stands in the order of each cut


@dataclass(frozen=True)
class Splits:
    """Rows that come with the split they were given for; a split that has none is cut from another.

    `held_out` of the training prompts become val, half of the val prompts become test. A prompt's rows stay together,
    and the cut depends on nothing but the prompts. read: all rows, in their order; called once per pass. left_out: how
    many further rows the last pass left out. wanted: those that must hold rows.
    """

    read: Callable[[], Iterable[tuple[str, Example]]]
    held_out: float
    left_out: Callable[[], int] = lambda: 0
    wanted: tuple[str, ...] = SPLITS

    def __iter__(self) -> Iterator[tuple[str, Example]]:
        """(split, example) of every row."""
        to_val, to_test = self._cuts
        for name, example in self.read():
            prompt = key(example.question)
            if name == "train" and prompt in to_val:
                name = "val"
            if name == "val" and prompt in to_test:
                name = "test"
            yield name, example

    def train(self, leaked: bool = True) -> Iterator[Example]:
        """The training rows. leaked: those too whose prompt is held out."""
        for name, example in self:
            if name == "train" and (leaked or key(example.question) not in self.leaked):
                yield example

    @property
    def rows(self) -> int:
        return self._survey[0]

    @property
    def leaked(self) -> frozenset[int]:
        """Keys of the training prompts that are held out too."""
        return self.shared("train", "val") | self.shared("train", "test")

    def refuse_leaks(self) -> None:
        if self.leaked:
            raise RequestError(
                f"data.on_leak=error: {len(self.leaked)} training prompts stand in the held-out rows too"
            )

    def refuse_empty(self) -> None:
        """Too few prompts to hold any out."""
        for name in self.wanted:
            if not self._prompts[name]:
                raise RequestError(f"no {name} row is left: give data.{name}, or more prompts to cut it from")

    def shared(self, one: str, other: str) -> frozenset[int]:
        """Keys of the prompts that stand in both splits."""
        return self._prompts[one] & self._prompts[other]

    @cached_property
    def _survey(self) -> tuple[int, dict[str, Salted]]:
        rows, prompts = 0, {name: Salted() for name in SPLITS}
        for name, example in self.read():
            text = example.question
            rows += 1
            prompts[name].setdefault(key(text), (key(f"held out\0{text}"), key(f"test\0{text}")))
        return rows, prompts

    @cached_property
    def _cuts(self) -> tuple[frozenset[int], frozenset[int]]:
        """(training prompts that become val, val prompts that become test)"""
        _, prompts = self._survey
        to_val = to_test = frozenset[int]()
        val = prompts["val"]
        if not val:
            to_val = _cut(prompts["train"], self.held_out, least=2 if prompts["test"] else 4, salt=0)
            val = {prompt: prompts["train"][prompt] for prompt in to_val}
        if not prompts["test"]:
            to_test = _cut(val, 0.5, least=2, salt=1)
        return to_val, to_test

    @cached_property
    def _prompts(self) -> dict[str, frozenset[int]]:
        """Keys of each split's prompts, after the cuts."""
        to_val, to_test = self._cuts
        given = {name: frozenset(prompts) for name, prompts in self._survey[1].items()}
        val = given["val"] | to_val
        return {"train": given["train"] - to_val, "val": val - to_test, "test": given["test"] | to_test}


def _cut(prompts: Salted, share: float, least: int, salt: int) -> frozenset[int]:
    """Those whose hash falls under `share`, but so that each side gets `least`, or half of them all."""
    order = sorted(prompts, key=lambda prompt: prompts[prompt][salt])
    n = sum(prompts[prompt][salt] < share * 2**64 for prompt in order)
    few = min(least, len(order) // 2)
    return frozenset(order[: min(max(n, few), len(order) - max(few, 1))]) if order else frozenset()
