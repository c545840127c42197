"""Answers of all methods to the same prompts, side by side, within what a page may weigh."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prefopt.reports.compare.settings import Method

LONGEST = 1500  # characters of a text
BUDGET = 1_000_000  # characters of all of them


@dataclass(frozen=True)
class Answer:
    name: str
    greedy: str
    sampled: str


@dataclass(frozen=True)
class Prompt:
    text: str
    answers: list[Answer]


@dataclass(frozen=True)
class SideBySide:
    prompts: list[Prompt]
    asked: int


def side_by_side(methods: Sequence[Method]) -> SideBySide:
    """Of every method's best setting the first seed, and the base that the first of them saw; as many prompts as a
    page can carry."""
    sides = [(method.best.name, rows) for method in methods if (rows := method.best.runs[0].samples)]
    asked = min((len(rows) for _, rows in sides), default=0)
    found: list[Prompt] = []
    spent = 0
    for i in range(asked):
        base = sides[0][1][i]
        answers = [_answer("base", base, "base_"), *(_answer(name, rows[i], "") for name, rows in sides)]
        prompt = Prompt(_cut(prompt_text(base.get("prompt"))), answers)
        spent += len(prompt.text) + sum(len(a.greedy) + len(a.sampled) for a in answers)
        if found and spent > BUDGET:
            break
        found.append(prompt)
    return SideBySide(found, asked)


def prompt_text(prompt: Any) -> str:
    """Messages as role and text."""
    if isinstance(prompt, str):
        return prompt
    messages = prompt if isinstance(prompt, list) else []
    return "\n".join(f"{m.get('role')}: {m.get('content')}" for m in messages if isinstance(m, dict))


def _answer(name: str, row: dict[str, Any], prefix: str) -> Answer:
    sampled = row.get(f"{prefix}sampled") or [""]
    return Answer(name, _cut(str(row.get(f"{prefix}greedy") or "")), _cut(str(sampled[0])))


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} […]"
