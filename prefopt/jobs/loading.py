"""Opening what can speak: the model of a finished run, or any model of transformers, with how it reads text."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import transformers
from transformers import PreTrainedTokenizerBase

from prefopt.config import trained_settings
from prefopt.data.render import Renderer
from prefopt.errors import RequestError
from prefopt.models.adapter import adapter_file
from prefopt.models.base import Base
from prefopt.models.build import load_base
from prefopt.models.files import expanded, is_adapter, is_classifier, looks_like_path
from prefopt.models.policy import Policy
from prefopt.models.reward import load_reward
from prefopt.rewards.model import Judge
from prefopt.run import Finished, judging_run, run_of_model
from prefopt.settings import Settings


@dataclass(frozen=True)
class Opened:
    """base: the weights and, under an adapter, that adapter; nothing is loaded yet. settings: a run's, else None."""

    base: Base
    renderer: Renderer
    settings: Settings | None = None

    def policy(self) -> Policy:
        """Frozen, on the CPU. Ends an answer with any token that ends one in training."""
        name = self.base.name
        if is_classifier(name, self.base.key):
            raise RequestError(f"{self.base.key}={name} is a reward model, which cannot answer; judge with reward.name")
        policy = self.base.policy().eval()
        policy.end_ids = self.renderer.end_ids
        return policy


def open_run(run: Finished, base: str | None = None, dtype: str | None = None, chat: bool | None = None) -> Opened:
    """The policy that a run trained. base: where the base of its adapter lies now, if it has moved."""
    settings = trained_settings(run)
    dtype = dtype or settings.weights_dtype
    trust = settings.model.trust_remote_code
    if not run.adapted:
        if base is not None:
            raise RequestError(f"base={base}: {run.key}={run.path} holds whole weights and needs no base")
        found = load_base(str(run.model), dtype, trust, run.key)
    else:
        name = base or _base_name(run, settings)
        found = replace(load_base(name, dtype, trust, "base"), quant=settings.model.quant, adapter=str(run.model))
    return Opened(found, _renderer(found, settings, chat), settings)


def open_model(name: str, dtype: str | None = None, trust: bool = False, chat: bool | None = None) -> Opened:
    """A causal LM of transformers or an adapter of PEFT: a hub name or a folder, of which a run's model/ reads text as
    the run did. trust: run code that it brings."""
    base = load_base(name, dtype or "float32", trust, "model.name")
    run = run_of_model(name, "model.name")
    if run is not None:
        return Opened(base, _renderer(base, trained_settings(run), chat))
    turns = bool(base.tokenizer.chat_template) if chat is None else chat
    return Opened(base, Renderer(base.tokenizer, base.end_ids(), chat=_checked(turns, base.tokenizer)))


def open_judge(name: str, trust: bool = False, key: str = "reward.name", dtype: str | None = None) -> Judge:
    """A reward model: a run's folder, a hub name or another folder."""
    run = judging_run(name, key)
    model = load_reward(str(run.model) if run else name, dtype or "float32", trust, key)
    if run is not None:
        return Judge(model, _renderer(Base(str(run.model), model.tokenizer, key=key), trained_settings(run), None))
    ends = Base(expanded(name), model.tokenizer, trust_remote_code=trust, key=key).end_ids()
    return Judge(model, Renderer(model.tokenizer, ends, chat=bool(model.tokenizer.chat_template)))


def check_base(run: Finished, opened: Opened) -> None:
    """An adapter on other weights than it trained on is another model."""
    if not run.adapted:
        return
    start = started_from(run)
    if start is not None and not Path(start).is_dir():
        return  # its hash covers an adapter that is gone; the probe will tell
    found, expected = Base(opened.base.name, opened.base.tokenizer, adapter=start).hash(), run.summary["base_hash"]
    if found != expected:
        raise RequestError(
            f"base={opened.base.name} has other weights than the run stood on: {found[:12]}, not {str(expected)[:12]}"
            "\nbase=FOLDER names the right one"
        )


def started_from(run: Finished) -> str | None:
    """The adapter that the run continued, if it did."""
    if not run.adapted:
        return None
    model = trained_settings(run).model
    start, name = model.adapter.start, model.name
    if start is None and name and is_adapter(expanded(name)):
        start = name
    return expanded(start) if start else None


def quieten() -> None:
    """What the libraries say to developers is not for the person who runs this."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", module=r"lightning\..*")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(peft|transformers)\..*")


def _renderer(base: Base, settings: Settings, chat: bool | None) -> Renderer:
    turns = settings.takes_turns(base.tokenizer.chat_template) if chat is None else _checked(chat, base.tokenizer)
    return Renderer(base.tokenizer, base.end_ids(), chat=turns, templated=settings.data.templated and not turns)


def _checked(chat: bool, tokenizer: PreTrainedTokenizerBase) -> bool:
    if chat and not tokenizer.chat_template:
        raise RequestError(f"chat=true, but {tokenizer.name_or_path} has no chat template; chat=false completes text")
    return chat


def _base_name(run: Finished, settings: Settings) -> str:
    """What the run itself stood on. An adapter that it continued may name another base."""
    model, saved = settings.model, adapter_file(str(run.model), run.key).get("base_model_name_or_path")
    name = expanded(str(model.name if model.name and model.adapter.start else saved))
    if looks_like_path(name) and not Path(name).is_dir():
        raise RequestError(
            f"{run.key}={run.path} is an adapter of {name}, which is not there\nbase=FOLDER names where it lies now"
        )
    return name
