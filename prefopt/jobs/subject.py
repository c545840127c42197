"""Who `prefopt evaluate` measures, opened: a run's policy and what it started from, a reward model, any causal LM."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from prefopt.config import trained_objective, trained_settings
from prefopt.data.origins import Origin, open_origin
from prefopt.data.render import Renderer
from prefopt.errors import RequestError, first_line
from prefopt.jobs.assemble import plain_base
from prefopt.jobs.loading import Opened, check_base, open_judge, open_model, open_run, started_from
from prefopt.jobs.precision import settle
from prefopt.models.adapter import adapter_file
from prefopt.models.base import Base
from prefopt.models.build import other_model
from prefopt.models.files import expanded, is_classifier
from prefopt.models.policy import Policy
from prefopt.models.reference import AdapterOff, FrozenCopy, Reference
from prefopt.objectives import Objective
from prefopt.run import Finished
from prefopt.settings import DataSettings, EvaluateSettings, Settings


@dataclass(frozen=True)
class Rows:
    """What is evaluated on: those that were named, else the run's own."""

    data: DataSettings
    origin: Origin


@dataclass(frozen=True)
class Subject:
    """method: that trained it; None of another model. base: whom it is held against, if anybody. precision: Lightning's
    name of that of its products."""

    name: str
    policy: Policy
    renderer: Renderer
    method: Objective | None
    base: Reference | None
    precision: Any = "32-true"


def open_subject(asked: EvaluateSettings, run: Finished | None, rows: Rows) -> Subject:
    if run is not None:
        settings, method = trained_settings(run), trained_objective(run, rows.data.soft)
        precision = _precision(asked, run, settings)
        if not run.judges:
            return _trained(asked, run, rows, method, precision)
        if asked.base:
            raise RequestError(f"base={asked.base}: {run.key}={run.path} holds whole weights and needs no base")
        return _judge(asked, str(run.path), "run", asked.model.dtype or settings.weights_dtype, method, precision)
    name, trust = expanded(str(asked.model.name)), asked.model.trust_remote_code
    if is_classifier(name, "model.name"):
        return _judge(asked, name, "model.name", asked.model.dtype or "float32")
    opened = open_model(name, asked.model.dtype, trust)
    base = other_model(asked.reference, "reference", opened.base, trust) if asked.reference else None
    return Subject(name, opened.policy(), reading(opened.renderer, asked.data), None, base)


def _judge(
    asked: EvaluateSettings,
    name: str,
    key: str,
    dtype: str,
    method: Objective | None = None,
    precision: Any = "32-true",
) -> Subject:
    """A reward model, which nothing is held against."""
    if asked.reference:
        raise RequestError(f"reference={asked.reference}: a reward model has no log-probs to hold against it")
    judge = open_judge(name, asked.model.trust_remote_code, key, dtype)
    return Subject(name, judge.model.policy, reading(judge.renderer, asked.data), method, None, precision)


def _trained(asked: EvaluateSettings, run: Finished, rows: Rows, method: Objective, precision: Any) -> Subject:
    """A policy, held against what it started from."""
    opened = open_run(run, asked.base, asked.model.dtype, trust=asked.model.trust_remote_code)
    policy = opened.policy()
    heads = run.model / "heads.safetensors"
    if heads.is_file():
        policy = Policy(policy.model, method.needs.heads, opened.renderer.end_ids).eval()
        policy.heads.load_state_dict(load_file(heads))
    if asked.reference:
        trust = opened.base.trust_remote_code
        base: Reference = other_model(asked.reference, "reference", opened.base, trust)
    else:
        base = start_of(asked, run, opened, policy, rows)
    return Subject(str(run.path), policy, reading(opened.renderer, asked.data), method, base, precision)


def _precision(asked: EvaluateSettings, run: Finished, settings: Settings) -> Any:
    """What the run trained in, in force from now on."""
    trainer = replace(settings.trainer, devices=1, accelerator=asked.device)
    settle(trainer, run.summary["precision"])
    return replace(settings, trainer=trainer).lightning_precision


def start_of(asked: EvaluateSettings, run: Finished, opened: Opened, policy: Policy, rows: Rows) -> Reference:
    """What the run started from, at the least cost; RequestError where it is not that any more."""
    if run.adapted:
        check_base(run, opened)
        start = replace(opened.base, adapter=started_from(run))
        if start.adapter is None and adapter_file(str(run.model), run.key).get("bias") == "none":
            return AdapterOff(policy)
    else:
        start = _whole_start(asked, run, rows)
    start = replace(start, ends=opened.renderer.end_ids)
    return FrozenCopy(start.policy, f"what the run started from, {start.name}")


def _whole_start(asked: EvaluateSettings, run: Finished, rows: Rows) -> Base:
    """Loaded again, or fitted again to the run's own rows where they are not in the cache."""
    settings = replace(trained_settings(run, asked.model.trust_remote_code), cache_dir=asked.cache_dir)
    origin = rows.origin if asked.data is None else open_origin(settings.data, Path(asked.cache_dir).expanduser())
    try:
        start = plain_base(settings, origin)
        found, expected = start.hash(), run.summary["base_hash"]
        if found != expected:
            raise RequestError(f"its weights were {str(expected)[:12]} and are now {found[:12]}")
    except RequestError as error:
        raise RequestError(
            f"run={run.path}: what it started from is not there any more: {first_line(error)}"
            "\nreference=FOLDER names a model to hold it against"
        ) from error
    return start


def reading(renderer: Renderer, data: DataSettings | None) -> Renderer:
    """How text is read: as the model read it, unless the data say how their prompts are meant."""
    if data is None or (data.prompts == "auto" and not data.templated):
        return renderer
    chat, tokenizer = data.prompts == "chat", renderer.tokenizer
    if chat and not tokenizer.chat_template:
        raise RequestError(f"data.prompts=chat: {tokenizer.name_or_path} has no chat template; take data.prompts=text")
    return Renderer(tokenizer, renderer.end_ids, chat=chat, templated=data.templated)
