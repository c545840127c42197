"""From a request to the source of a policy's own answers."""

from __future__ import annotations

from functools import partial

import torch

from prefopt.config import Request
from prefopt.data.prepare import Dataset
from prefopt.data.render import Renderer
from prefopt.errors import RequestError
from prefopt.jobs.annotator import build_annotator
from prefopt.models.base import Base
from prefopt.models.policy import Policy
from prefopt.progress import say
from prefopt.rewards import Calibrating
from prefopt.rollouts import RolloutPlan, Rollouts
from prefopt.rollouts.kl import AdaptiveKL
from prefopt.rollouts.source import Speaking
from prefopt.scoring import generate
from prefopt.settings import RewardSettings, Settings, SourceSettings


def build_rollouts(request: Request, base: Base, renderer: Renderer, dataset: Dataset) -> Rollouts:
    settings = request.settings
    source, data, trainer = settings.source, settings.data, settings.trainer
    if not len(dataset.train):
        raise RequestError("data.train holds no prompts that could be answered")
    _check_room(source, base, dataset)
    if source.temperature != 1 or source.top_p != 1:
        say(
            f"warning: source.temperature={source.temperature:g} source.top_p={source.top_p:g}: answers come from "
            "another distribution than the log-probs that train"
        )
    order = (data.batch_size, trainer.max_steps, trainer.max_epochs, settings.seed)
    plan = RolloutPlan.of_rollouts(len(dataset.train), *order, source.prompts or data.batch_size, source.passes)

    def annotator(reward: RewardSettings) -> Calibrating:
        return build_annotator(reward, dataset.gold, chat=bool(base.tokenizer.chat_template))

    speaking = Speaking(
        samples=source.samples,
        pair=source.pair,
        sampler=partial(sample, source),
        annotator=annotator(settings.reward),
        text=renderer.text,
        watch=annotator(watched) if (watched := _watched(settings, dataset)) else None,
    )
    adaptive = None if source.kl_target is None else AdaptiveKL(source.kl_target, source.kl_horizon)
    return Rollouts(dataset.train, plan, speaking, data.micro_batch_size, adaptive)


def sample(
    source: SourceSettings,
    policy: Policy,
    prompts: list[torch.Tensor],
    generator: torch.Generator,
    quiet: bool = True,
) -> list[torch.Tensor]:
    """The sampler of this process. quiet: without a progress bar."""
    return generate(
        policy,
        prompts,
        max_new_tokens=source.max_new_tokens,
        min_new_tokens=source.min_new_tokens,
        temperature=source.temperature,
        top_p=source.top_p,
        generator=generator,
        batch_size=source.batch_size,
        quiet=quiet,
    )


def _watched(settings: Settings, dataset: Dataset) -> RewardSettings | None:
    """Who judges the answers without being optimised."""
    reward, name = settings.reward, settings.source.watch
    if name == "auto":
        name = "gold" if dataset.gold is not None and reward.kind != "gold" else None
    if name is None:
        return None
    return reward.as_it_is("gold") if name == "gold" else reward.as_it_is("model", name)


def _check_room(source: SourceSettings, base: Base, dataset: Dataset) -> None:
    """Prompt and longest answer must fit the model's positions."""
    room = getattr(base.config(), "max_position_embeddings", None)
    longest = max(len(encoded.prompt) for encoded in dataset.train)
    if room is not None and longest + source.max_new_tokens > room:
        raise RequestError(
            f"source.max_new_tokens={source.max_new_tokens}: after the longest prompt, {longest} tokens, the model has "
            f"room for {room - longest}"
        )
