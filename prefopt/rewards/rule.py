"""Rules: answers that can be checked without a model."""

from __future__ import annotations

import importlib
import json
import math
import pkgutil
import re
import sys
from collections.abc import Callable, Sequence
from numbers import Real
from types import ModuleType
from typing import Any

import numpy as np

from prefopt.errors import RequestError, first_line, nearest
from prefopt.rewards.base import Answer, Judged, Stateless


class Rule(Stateless):
    """What a function of one answer says."""

    def __init__(self, worth: Callable[[Answer], float]) -> None:
        self.worth = worth

    def __call__(self, answers: Sequence[Answer]) -> Judged:
        return Judged(np.array([self.worth(answer) for answer in answers], dtype=np.float64), {})


def exact(key: str) -> Callable[[Answer], float]:
    """1 if the answer is the recorded one, white space around both aside. key: for messages, here and below."""

    def worth(answer: Answer) -> float:
        if answer.wanted is None:
            asked = json.dumps(answer.prompt)
            raise RequestError(f"{key}.rule=exact: no completion is recorded for the prompt {asked:.200}")
        return float(answer.text.strip() == answer.wanted.strip())

    return worth


def regex(pattern: str) -> Callable[[Answer], float]:
    """1 where the pattern is found in the answer."""
    found = re.compile(pattern)
    return lambda answer: float(found.search(answer.text) is not None)


def function(name: str, key: str) -> Callable[[Answer], float]:
    """A function of the user's, "package.module:name": a number for (prompt=, text=, wanted=)."""
    key = f"{key}.function={name}"
    called = _found(name, key)

    def worth(answer: Answer) -> float:
        try:
            value = called(prompt=answer.prompt, text=answer.text, wanted=answer.wanted)
        except (Exception, SystemExit) as error:  # sys.exit would pass for an interrupted run
            what = f"{type(error).__name__}: {first_line(error)}"
            raise RequestError(f"{key} failed on the answer {answer.text!r:.80}: {what}") from error
        if not isinstance(value, Real | np.bool_) or not math.isfinite(value):
            raise RequestError(f"{key} must return a finite number; got {value!r:.80} for {answer.text!r:.80}")
        return float(value)

    return worth


def _found(name: str, key: str) -> Callable[..., Any]:
    module, _, last = name.partition(":")
    found = getattr(_imported(module, key), last, None)
    if not callable(found):
        what = "no such function" if found is None else "it cannot be called"
        there = [other for other, value in vars(sys.modules[module]).items() if callable(value)]
        raise RequestError(f"{key}: {what} in {module}{nearest(last, there)}")
    return found


def _imported(module: str, key: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is None or not f"{module}.".startswith(f"{missing}."):  # it is there, and fails
            raise RequestError(f"{key}: {module} cannot be imported: {first_line(error)}") from error
        near = nearest(missing, _beside(missing))
        raise RequestError(f"{key}: no module {missing}{near}\nPYTHONPATH names folders to look in") from error


def _beside(module: str) -> list[str]:
    """The modules that stand where one was looked for, by their whole names."""
    parent = module.rpartition(".")[0]
    paths = getattr(sys.modules[parent], "__path__", []) if parent else None
    return [f"{parent}.{other.name}".lstrip(".") for other in pkgutil.iter_modules(paths)]
