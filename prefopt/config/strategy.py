"""The section `strategy` of a request, and whether what was asked for runs together."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from prefopt.config.explain import no_key
from prefopt.errors import RequestError, first_line
from prefopt.models.files import expanded, is_adapter, need_deepspeed
from prefopt.settings import Settings, StrategySettings
from prefopt.settings.support import case_of, check_support, family_of

if TYPE_CHECKING:
    from prefopt.objectives import Needs


def read_strategy(section: DictConfig) -> StrategySettings:
    """DeepSpeed's has keys of its own; every other is a name."""
    if not isinstance(section, DictConfig):
        raise RequestError(f"strategy must be a section; got {section!r:.80}")
    every = [field.name for field in fields(StrategySettings)]
    known = every if section.get("name") == "deepspeed" else ["name"]
    for key in section:
        if key not in known:
            raise RequestError(no_key(f"strategy.{key!s}", known))
    try:
        found = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(StrategySettings), section))
    except OmegaConfBaseException as error:
        raise RequestError(f"strategy.{error.full_key}: {first_line(error)}") from error
    assert isinstance(found, StrategySettings)
    return found


def check_combination(settings: Settings, strategy: StrategySettings, needs: Needs, live: bool) -> None:
    """RequestError where something that was asked for does not run with the rest. live: on answers of its own."""
    import torch

    trainer = settings.trainer
    cuda = trainer.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    family = family_of(needs.heads, needs.reference, live)
    case = case_of(settings.model, strategy, trainer, family, needs.reference, cuda)
    name = settings.model.name
    if name and Path(expanded(name)).is_dir() and is_adapter(expanded(name)):  # it goes on, as model.adapter.start does
        case = replace(case, keeps_start=True)
    check_support(case)
    if settings.save_by is not None and not strategy.saves:
        raise RequestError(
            f"save_by={settings.save_by}: strategy={strategy.name} saves nothing, its runs begin again; take "
            "save_by=null or strategy=fsdp"
        )
    if strategy.name == "deepspeed":
        need_deepspeed()
