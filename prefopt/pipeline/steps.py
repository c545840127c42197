"""The runs of a pipeline in their order: a stage is written down once, and every round makes a step of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefopt.files import read_json
from prefopt.run import ENDED
from prefopt.settings.pipelines import FRESH, NAMED, PipelineSettings, StageSettings, key_of
from prefopt.sweep.processes import quoted

PAIRS = ("train", "val", "test")  # the files of fresh pairs


@dataclass(frozen=True)
class Step:
    """One run of a stage. where: by name the folders of earlier stages as this one means them. start: the folder of
    the run whose model it starts from. pairs: of the fresh pairs that it learns from. samples: it is no run, but makes
    such pairs for its stage."""

    stage: StageSettings
    folder: Path
    round: int
    where: dict[str, Path]
    start: Path | None = None
    pairs: Path | None = None
    samples: bool = False

    @property
    def name(self) -> str:
        return FRESH if self.samples else self.stage.name

    def status(self) -> str | None:
        """What its folder says; a run that was never begun says nothing."""
        if self.samples:  # its folder appears when it is whole
            return ENDED[0] if self.folder.is_dir() else None
        return self.summary().get("status")

    @property
    def done(self) -> bool:
        return self.status() in ENDED

    def summary(self) -> dict[str, Any]:
        file = self.folder / "summary.json"
        return read_json(file, f"pipeline_dir={self.folder}") if file.is_file() else {}

    def words(self, asked: Sequence[str], own: dict[str, list[str]]) -> list[str]:
        """The stage's, with the folders that it names, what is asked of all, and what of this one. Who samples is not
        who will learn from it."""
        words, mine = self.stage.words, own.get(self.stage.name, [])
        if self.samples:
            words, mine = _without_model(words), [*_without_model(mine), *own.get(FRESH, [])]
        return [*(self._placed(word) for word in words), *asked, *mine]

    def follows(self, own: Sequence[str], asked: Mapping[str, Any], writer: dict[str, Any] | None) -> dict[str, Any]:
        """Keys and values by which it goes on from what lies in other folders; they come after all words.

        own: the words for this stage alone, which may name a model to begin with. asked: what all words ask for.
        writer: who wrote the pairs of the controlled world, which `model` no longer says.
        """
        found: dict[str, Any] = {} if writer is None else {"data.writer": writer}
        given = self.round == 1 and "model.name" in {key_of(word) for word in own}
        if self.start is not None and not given:
            found |= _from_model(self.start / "model", asked)
        if self.pairs is not None:
            found |= {f"data.{key}": value for key, value in _pairs_of(self.pairs).items()}
        return found

    def _placed(self, word: str) -> str:
        key, _, value = word.partition("=")
        if value.startswith("[") and value.endswith("]"):
            return f"{key}=[{','.join(self._place(entry.strip()) for entry in value[1:-1].split(','))}]"
        return f"{key}={self._place(value)}" if value else word

    def _place(self, value: str) -> str:
        said = NAMED.sub(lambda name: str(self.where[name[1]]), value)
        return value if said == value else quoted(said)


def _without_model(words: Sequence[str]) -> list[str]:
    return [word for word in words if key_of(word).partition(".")[0] != "model"]


def steps_of(settings: PipelineSettings, folder: Path) -> list[Step]:
    """Of all rounds. After a round the name of the first stage means the last one: its policy is what goes on. A stage
    that learns from fresh pairs of that policy starts from its own last model."""
    found: list[Step] = []
    where: dict[str, Path] = {}
    first, last = settings.stages[0].name, settings.stages[-1].name

    def add(stage: StageSettings, turn: int, start: Path | None, **more: Any) -> Path:
        name = FRESH if more.get("samples") else stage.name
        found.append(Step(stage, folder / f"{len(found) + 1}-{name}", turn, dict(where), start, **more))
        return found[-1].folder

    for turn in range(1, settings.rounds + 1):
        for stage in settings.stages if turn == 1 else settings.stages[1:]:
            start, pairs = where.get(stage.start or ""), None
            if stage.fresh and turn > 1:
                pairs = add(stage, turn, where[first], samples=True)
                start = where[stage.name]
            where[stage.name] = add(stage, turn, start, pairs=pairs)
        where[first] = where[last]
    return found


def _from_model(folder: Path, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The model of another step in the place of the one that was asked for; all else of `model` stays."""
    found = {"model.tiny": None, "model.name": str(folder)}
    if asked["model"]["adapter"] is not None:
        found["model.adapter.start"] = None
    if asked["model"]["tiny"] is not None and asked["data"]["prompts"] == "auto":
        found["data.prompts"] = "text"  # a tiny model goes on as it began, whatever its tokenizer has
    return found


def _pairs_of(folder: Path) -> dict[str, Any]:
    """The section data with these rows in the place of any others."""
    none = dict.fromkeys(("name", "subset", "revision", "columns", "world", "writer"))
    files = {split: str(folder / f"{split}.jsonl") for split in PAIRS}
    return {"kind": "jsonl", "group": False, **none, **files}


def in_words(follows: dict[str, Any]) -> list[str]:
    return [f"{key}={_value(value)}" for key, value in follows.items()]


def _value(value: Any) -> str:
    """As Hydra reads it."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_value(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, bool) or value is None:
        return {None: "null", False: "false", True: "true"}[value]
    return quoted(value) if isinstance(value, str) else repr(value)
