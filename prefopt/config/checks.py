"""Whether a request that is well formed can be met: by this machine, by the folders, by who speaks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefopt.config.own import entries
from prefopt.data.origins import Origin
from prefopt.errors import RequestError
from prefopt.files import at_home, check_can_be_made, check_can_be_named
from prefopt.models.files import check_local, need_bitsandbytes
from prefopt.run import check_run_folder, judging_run
from prefopt.settings import Settings, TrainerSettings

if TYPE_CHECKING:
    from prefopt.objectives import Objective

LEAST_LABELLED = 8  # prompts, so that some of them differ


def check_finite(plain: dict[str, Any]) -> None:
    """A run folder's JSON holds no other number, and nothing is computed with one."""
    for key, value in entries(plain, ""):
        if isinstance(value, float) and not math.isfinite(value):
            raise RequestError(f"{key} must be a finite number; got {value}")


def check_places(settings: Settings, plain: dict[str, Any], awaited: Path | None) -> None:
    """What can be told of the folders before anything heavy is loaded: nothing is written, and the hub not asked."""
    cache = at_home(settings.cache_dir, "cache_dir")
    check_can_be_named(cache, f"cache_dir={settings.cache_dir}")
    if not cache.is_dir():  # one that is there may be complete, and needs no writing
        check_can_be_made(cache, "cache_dir")
    if settings.run_dir:  # on every rank: one that a launcher started would wait for a refused main one
        check_run_folder(settings.run_dir, plain)
    model = settings.model
    for key, name in (("model.name", model.name), ("model.reference_name", model.reference_name)):
        if name and not _within(name, awaited):
            check_local(name, key)
    for key, name in settings.judges():
        if not _within(name, awaited) and judging_run(name, key) is None:
            check_local(name, key)
    if model.quant is not None:
        need_bitsandbytes()


def _within(name: str, folder: Path | None) -> bool:
    return folder is not None and folder in Path(name).parents


def check_source(settings: Settings, origin: Origin, objective: Objective, live: bool) -> None:
    """Whether the loss can learn from who speaks. live: the policy itself."""
    from prefopt.data.views import RECORDED, check_view

    needs, there = objective.needs, (*RECORDED, "rollouts")
    if needs.data not in there:
        raise RequestError(
            f"loss={objective.name} needs {needs.data}, which no source has; accepted: {', '.join(there)}"
        )
    if not live:
        if needs.data == "rollouts":
            raise RequestError(
                f"source=recorded: loss={objective.name} learns from its own answers; take source=rollouts"
            )
        return check_view(needs.data, origin.kinds())
    return _check_own_answers(settings, objective)


def _check_own_answers(settings: Settings, objective: Objective) -> None:
    source, data, needs = settings.source, settings.data, objective.needs
    as_recorded = needs.data != "rollouts"  # what the loss takes them for
    if "lm" not in needs.heads:
        raise RequestError(f"source=rollouts: loss={objective.name} trains nothing that answers; take source=recorded")
    adapter = settings.model.adapter
    if not as_recorded and adapter is not None and adapter.dropout:
        raise RequestError(
            f"model.adapter.dropout must be 0: loss={objective.name} holds the policy against the one that answered, "
            f"which is asked without dropout; got {adapter.dropout:g}"
        )
    least = 2 if as_recorded else needs.answers
    if source.samples < least:
        raise RequestError(
            f"source.samples must be at least {least}: loss={objective.name} compares a prompt's answers"
        )
    if data.world is None:
        _refuse_gold(settings)
    if settings.trainer.devices > 1 and settings.reward.scales():
        raise RequestError("reward.scale must be none with trainer.devices > 1: each would keep statistics of its own")
    if data.batch_tokens is not None:
        raise RequestError("data.batch_tokens must be null with source=rollouts: how long answers get is not known")
    devices, together = settings.trainer.devices, source.prompts or data.batch_size
    if data.batch_size < devices:
        raise RequestError(f"data.batch_size must be at least trainer.devices={devices} with source=rollouts")
    if source.prompts is not None and source.prompts < data.batch_size:
        raise RequestError(f"source.prompts must be at least data.batch_size={data.batch_size}; got {source.prompts}")
    if needs.data == "labels" and together < LEAST_LABELLED:
        raise RequestError(
            f"source.prompts must be at least {LEAST_LABELLED}: loss={objective.name} holds answers against those to "
            f"other prompts; got {together}"
        )
    if source.kl_target is not None and together * source.samples >= 5 * source.kl_horizon:
        raise RequestError(
            f"source.kl_horizon must be above {together * source.samples / 5:g}, a fifth of a collection's answers, "
            f"or loss.beta could fall below 0; got {source.kl_horizon:g}"
        )
    if source.kl_target is not None and (as_recorded or not getattr(objective, "beta", 0)):
        raise RequestError("source.kl_target: this loss has no KL coefficient loss.beta above 0 that could follow it")


def _refuse_gold(settings: Settings) -> None:
    """Outside of the controlled world."""
    asked = settings.reward.asks_gold()
    if not asked and settings.source.watch != "gold":
        return
    key, model = ("source.watch", "source.watch=RUN") if not asked else (asked, f"{asked}=model")
    if asked == "reward.kind":
        key, model = "reward", "reward=model reward.name=RUN"
    raise RequestError(f"{key}=gold is known in the controlled world only; take {model}")


def check_devices(trainer: TrainerSettings) -> None:
    """As many processes as wanted on CPU; on anything else a device each."""
    import torch

    count = torch.cuda.device_count()
    on_cpu = trainer.accelerator == "cpu" or (trainer.accelerator == "auto" and not count)
    if trainer.devices > count and not on_cpu:
        raise RequestError(
            f"trainer.devices={trainer.devices} with trainer.accelerator={trainer.accelerator}: this machine has "
            f"{count}\naccepted: at most that many, or trainer.accelerator=cpu"
        )
