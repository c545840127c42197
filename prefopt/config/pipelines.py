"""What `pipeline=` asks for: the requests of its steps, every one checked before the first begins."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from prefopt.config.explain import explain, no_key
from prefopt.config.request import build_request
from prefopt.config.staged import GATHERED, by_stage
from prefopt.config.sweeps import hydra_flags
from prefopt.config.typed import read_settings, without_hydra
from prefopt.errors import RequestError, first_line
from prefopt.files import at_home
from prefopt.pipeline.ledger import Ledger, check_folder
from prefopt.pipeline.runner import Work, run
from prefopt.pipeline.steps import Step, in_words, steps_of
from prefopt.reports.stages import print_stages
from prefopt.settings.pipelines import FRESH, PipelineSettings, key_of

PLACES = ("pipeline", "pipeline_dir")


def run_pipeline(cfg: DictConfig) -> int:
    """Check, then run what is not finished. Returns the exit code."""
    asked = Asked.of(cfg)
    check_folder(asked.folder, asked.name)
    works = sound_works(asked)
    steps = [work.step for work in works]
    with Ledger(asked.folder, asked.name, steps) as ledger:
        code = run(works, ledger)
        print_stages(asked.folder, [(step.folder.name, ledger.status(step), step.summary()) for step in steps])
    return code


@dataclass(frozen=True)
class Asked:
    """A pipeline and where it runs. words: for all of its stages. own: by name those for one."""

    name: str
    folder: Path
    settings: PipelineSettings
    words: list[str]
    own: dict[str, list[str]]

    @classmethod
    def of(cls, cfg: DictConfig) -> Asked:
        """What the running Hydra application was asked."""
        hydra = HydraConfig.get()
        name = str(hydra.runtime.choices["pipeline"])
        if hydra.mode == RunMode.MULTIRUN:
            raise RequestError(f"pipeline={name} is several runs, one after another: start it by itself, without -m")
        if cfg.run_dir is not None:
            raise RequestError("run_dir is each stage's own in a pipeline; name pipeline_dir instead")
        if cfg.save_by is not None:
            raise RequestError(
                f"save_by={cfg.save_by} counts from the start of one run; a pipeline saves on SIGTERM or SIGINT"
            )
        settings, own = _typed(cfg.pipeline)
        words = [word for word in hydra.overrides.task if key_of(word).partition(".")[0] not in PLACES]
        _refuse_for_all(words, settings)
        folder = cfg.pipeline_dir or f"pipelines/{time.strftime('%Y-%m-%d_%H-%M-%S')}-{name}"
        return cls(
            name, at_home(str(folder), "pipeline_dir").absolute(), settings, words, by_stage(own, settings.names)
        )


def _typed(cfg: DictConfig) -> tuple[PipelineSettings, list[str]]:
    """What conf/pipeline/ says, and the words for single stages."""
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    own = plain.pop(GATHERED, [])
    known = [field.name for field in fields(PipelineSettings)]
    for key in plain:
        if key not in known:
            raise RequestError(no_key(f"pipeline.{key}", known))
    try:
        found = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(PipelineSettings), plain))
    except OmegaConfBaseException as error:
        raise RequestError(f"pipeline.{error.full_key}: {first_line(error)}") from error
    assert isinstance(found, PipelineSettings)
    return found, own


def _refuse_for_all(words: Sequence[str], settings: PipelineSettings) -> None:
    """What one stage says of itself cannot be said for all of them at once."""
    for word in words:
        key = key_of(word)
        stage = next((stage.name for stage in settings.stages if key in stage.keys), None)
        if stage is not None:
            raise RequestError(
                f"{word}: the stages differ in {key}; name the stage: pipeline.{stage}.{word.lstrip('+~')}"
            )


# ---------------------------------------------------------------- requests


@dataclass(frozen=True)
class _Composed:
    """A step with its words, and what Hydra made of them."""

    step: Step
    words: list[str]
    cfg: DictConfig
    choices: Mapping[str, str | None]


def sound_works(asked: Asked) -> list[Work]:
    """The steps with their words. RequestError where one of them cannot run, as far as it can be told before what it
    goes on from is there."""
    steps = steps_of(asked.settings, asked.folder)
    first = _composed(asked, steps[0], None)
    writer: Any = OmegaConf.select(first.cfg, "data.writer")
    writer = None if writer is None else OmegaConf.to_container(writer, resolve=True)
    composed = [first, *(_composed(asked, step, writer) for step in steps[1:])]
    telling = [one for one in composed if _tells(one.step)]
    for one in telling:  # what a word alone is wrong in, of every stage, before torch is loaded for the first
        with _named(one.step, one.words):
            read_settings(one.cfg)
    for one in telling:
        with _named(one.step, one.words):
            _check(one, asked)
    flags = hydra_flags()
    return [Work(one.step, [*flags, *one.words]) for one in composed]


def _tells(step: Step) -> bool:
    """Whether its request says more than those of the first round, which are the same but for folders: one that holds
    a run must hold this one."""
    if step.samples:
        return step.round == 2 or step.folder.exists()
    return step.round == 1 or (step.folder.exists() and (step.pairs is None or step.pairs.is_dir()))


def _composed(asked: Asked, step: Step, writer: dict[str, Any] | None) -> _Composed:
    words = step.words(asked.words, asked.own)
    with _named(step, words):
        cfg = compose(HydraConfig.get().job.config_name, words, return_hydra_config=True)
    choices = without_hydra(cfg)
    follows = step.follows(asked.own.get(step.stage.name, []), cfg, writer)
    for key, value in {**follows, "run_dir": str(step.folder)}.items():
        OmegaConf.update(cfg, key, value, merge=False)
    return _Composed(step, [*words, *in_words(follows)], cfg, choices)


def _check(one: _Composed, asked: Asked) -> None:
    request = build_request(one.cfg, one.choices, awaited=asked.folder)
    if one.step.samples and request.settings.reward.kind == "gold" and request.settings.data.world is None:
        raise RequestError(
            f"pipeline.rounds={asked.settings.rounds}: nobody judges fresh pairs: the true reward is known in the "
            f"controlled world only\nname a judge: pipeline.{FRESH}.reward=model pipeline.{FRESH}.reward.name=RUN"
        )


@contextmanager
def _named(step: Step, words: Sequence[str]) -> Iterator[None]:
    """What is wrong with a step's request, with its name."""
    try:
        yield
    except (RequestError, HydraException, OmegaConfBaseException) as error:
        GlobalHydra.instance().clear()  # what is accepted is found by composing anew; nothing else will be
        wrong = str(error) if isinstance(error, RequestError) else explain(error, "train", words)
        first, *more = wrong.splitlines()
        raise RequestError("\n".join([f"{first} (stage: {step.name})", *more])) from error
