"""Words for one stage of a pipeline: what Hydra has no key for, until the stage is composed by itself."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

from prefopt.errors import RequestError, nearest
from prefopt.settings.pipelines import key_of
from prefopt.sweep.processes import quoted

GATHERED = "_words"
OWN = re.compile(r"([+~]{0,2})pipeline\.(\w+)\.(.+)", re.DOTALL)
EACH = ("loss", "preset")  # the words for all are composed by themselves first, with a loss that is no stage's


def gathered(arguments: Sequence[str]) -> list[str]:
    """The command line as Hydra reads it: words for one stage become a list under `pipeline`."""
    own = {place for place, word in enumerate(arguments) if OWN.fullmatch(word)}
    if not any(word.startswith("pipeline=") for word in arguments):
        if own:
            raise RequestError(f"{arguments[min(own)]}: no pipeline is named; take one, e.g. pipeline=rlhf")
        return list(arguments)
    found = []
    for place, word in enumerate(arguments):
        if place not in own:
            _refuse_of_each(word)
            found.append(word)
        elif place == min(own):
            found.append(f"+pipeline.{GATHERED}=[{','.join(quoted(arguments[i]) for i in sorted(own))}]")
    return found


def by_stage(own: Sequence[str], stages: Sequence[str]) -> dict[str, list[str]]:
    """ "+pipeline.ppo.model.x=1" is the word "+model.x=1" of ppo."""
    found: dict[str, list[str]] = defaultdict(list)
    for word in own:
        parts = OWN.fullmatch(word)
        assert parts is not None  # `gathered` has found it
        sign, name, rest = parts.groups()
        if name not in stages:
            accepted = ", ".join(stages)
            raise RequestError(f"pipeline.{name}: no such stage{nearest(name, stages)}\naccepted: {accepted}")
        found[name].append(sign + rest)
    return dict(found)


def _refuse_of_each(word: str) -> None:
    if key_of(word).partition(".")[0] in EACH:
        said = word.lstrip("+~")
        raise RequestError(f"{word}: every stage has a loss of its own; name the stage: pipeline.STAGE.{said}")
