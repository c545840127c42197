"""What a pipeline may be asked; conf/pipeline/ explains the keys and holds their defaults."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from prefopt.errors import RequestError, nearest
from prefopt.settings.checks import require

FRESH = "fresh"  # the stage that samples and judges pairs for the next round
NAMED = re.compile(r"\{([A-Za-z_]\w*)\}")  # the folder of an earlier stage


@dataclass(kw_only=True)
class StageSettings:
    name: str
    words: list[str]
    start: str | None = None
    fresh: bool = False

    def __post_init__(self) -> None:
        free = self.name.isidentifier() and self.name not in (FRESH, "stages", "rounds")
        require(free, "pipeline.stages: name", f"a word other than {FRESH}, stages and rounds", self.name)

    @property
    def keys(self) -> frozenset[str]:
        """What its words set."""
        return frozenset(key_of(word) for word in self.words)


@dataclass(kw_only=True)
class PipelineSettings:
    stages: list[StageSettings] = field(default_factory=list)
    rounds: int = 1

    def __post_init__(self) -> None:
        require(self.rounds >= 1, "pipeline.rounds", "at least 1", self.rounds)
        require(len(self.stages) > 1, "pipeline.stages", "at least two", [stage.name for stage in self.stages])
        earlier: list[str] = []
        for stage in self.stages:
            require(stage.name not in earlier, "pipeline.stages: name", "another one for every stage", stage.name)
            named = [*NAMED.findall(" ".join(stage.words)), *([stage.start] if stage.start else [])]
            for name in named:
                if name not in earlier:
                    known = f"\naccepted: {', '.join(earlier) or 'none, this is the first'}"
                    raise RequestError(
                        f"pipeline.stages: {stage.name} names {name}, no earlier stage{nearest(name, earlier)}{known}"
                    )
            earlier.append(stage.name)

    @property
    def names(self) -> list[str]:
        """What words may be for."""
        samples = [FRESH] if any(stage.fresh for stage in self.stages) else []
        return [*(stage.name for stage in self.stages), *samples]


def key_of(word: str) -> str:
    """ "+loss.beta=0.1" is loss.beta."""
    return word.lstrip("+~").partition("=")[0].partition("@")[0]
