"""A request: composed by Hydra, checked, and the objects that it names built."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from prefopt.config.checks import check_devices, check_finite, check_places, check_source
from prefopt.config.explain import explain
from prefopt.config.guard import check_targets, config_dir, install
from prefopt.config.own import check_resolved
from prefopt.config.strategy import check_combination, read_strategy
from prefopt.config.typed import SECTIONS, built, read_settings, with_an_end, without_hydra
from prefopt.data.origins import Origin, open_origin
from prefopt.errors import RequestError, first_line
from prefopt.run import Finished
from prefopt.settings import Settings, StrategySettings

if TYPE_CHECKING:
    from prefopt.objectives import Objective


@dataclass(frozen=True)
class Request:
    """What was asked: typed settings, the objects built from `_target_`, and all of it as plain JSON."""

    settings: Settings
    origin: Origin
    objective: Objective
    optimizer: Callable[..., Any]
    schedule: Callable[[int, int], float]
    strategy: StrategySettings
    plain: dict[str, Any]

    @property
    def on_policy(self) -> bool:
        """Whether the policy's own answers train."""
        return speaks_live(self.settings, self.objective)


def speaks_live(settings: Settings, objective: Objective) -> bool:
    kind = settings.source.kind
    return kind == "rollouts" or (kind == "auto" and objective.needs.data == "rollouts")


def compose_request(overrides: list[str], config_name: str = "train") -> Request:
    """A request composed in Python, as the command line would. RequestError when it is wrong."""
    install()
    try:
        with initialize_config_dir(config_dir(), version_base="1.3"):
            cfg = compose(config_name, overrides, return_hydra_config=True)
        return build_request(cfg, without_hydra(cfg))
    except (HydraException, OmegaConfBaseException) as error:
        raise RequestError(explain(error, config_name, overrides)) from error


def build_request(
    cfg: DictConfig, choices: Mapping[str, str | None] | None = None, awaited: Path | None = None
) -> Request:
    """Check types and ranges, then build what `_target_` names. RequestError names the key.

    choices: the option taken from each config group; those of the running Hydra application unless given. awaited: a
    folder in which models may lie by the time that the request is answered.
    """
    settings = read_settings(cfg)
    with with_an_end():
        plain: Any = OmegaConf.to_container(cfg, resolve=True)
    check_targets(plain)
    check_places(settings, plain, awaited)
    origin = open_origin(settings.data, Path(settings.cache_dir).expanduser())
    origin.check()
    strategy = read_strategy(cfg.strategy)
    import torch  # only once the request is well formed

    check_devices(settings.trainer)
    objective = build_objective(cfg, settings.data.soft)
    live = speaks_live(settings, objective)
    check_combination(settings, strategy, objective.needs, live)
    check_source(settings, origin, objective, live)
    preset = (HydraConfig.get().runtime.choices if choices is None else choices).get("preset")
    if preset and not str(preset).startswith(f"{objective.name}_"):
        raise RequestError(f"preset={preset} is not for loss={objective.name}; name the loss before the underscore")
    optimizer, schedule = built(cfg, "optimizer"), built(cfg, "schedule")
    try:
        optimizer([torch.nn.Parameter(torch.zeros(1))])
        float(schedule(0, 1))
    except Exception as error:  # each says what is wrong with its options in its own way
        raise RequestError(f"optimizer or schedule: {first_line(error)}") from error
    check_finite(plain)
    return Request(
        settings=settings,
        origin=origin,
        objective=objective,
        optimizer=optimizer,
        schedule=schedule,
        strategy=strategy,
        plain=plain,
    )


def build_objective(cfg: DictConfig, soft: str) -> Objective:
    """The method that `loss` names. soft: `data.soft`."""
    from prefopt.objectives import Objective

    objective = built(cfg, "loss")
    if not isinstance(objective, Objective):
        raise RequestError(f"loss._target_={cfg.loss.get('_target_')} is no Objective; see CONTRIBUTING, «Add a loss»")
    _soften(objective, soft)
    return objective


def trained_settings(run: Finished, trust: bool = False) -> Settings:
    """The typed request that a run answered. Keys that were added since have their defaults. trust: whether who asks
    now runs code that models bring along; what the run was told of that is another person's word."""
    places = {"run_dir": str(run.path), "cache_dir": "", "save_by": None, "debug": False}
    told = {**places, "model": {"trust_remote_code": trust}}
    try:
        check_resolved(run.config, "")
        asked = OmegaConf.merge(_defaults(), run.config, told)
        assert isinstance(asked, DictConfig)
        return read_settings(asked)
    except (RequestError, OmegaConfBaseException, KeyError, TypeError, ValueError) as error:
        made = (run.summary.get("versions") or {}).get("prefopt")
        reason = first_line(error)
        raise RequestError(
            f"{run.key}={run.path}: its config.json, written by prefopt {made}, is not read here: {reason}"
        ) from error


@functools.cache
def _defaults() -> DictConfig:
    """What a request is that names nothing."""
    install()
    running, GlobalHydra.instance().hydra = GlobalHydra.instance().hydra, None  # of the command that asks
    try:
        with initialize_config_dir(config_dir(), version_base="1.3"):
            return OmegaConf.masked_copy(compose("train"), list(SECTIONS))
    finally:
        GlobalHydra.instance().hydra = running


def trained_objective(run: Finished, soft: str) -> Objective:
    """The method that a run trained by. soft: what a soft label is to it, as `data.soft`."""
    check_targets(run.config)
    beta = (run.summary.get("rollouts") or {}).get("beta")  # that has followed a target of KL
    try:
        found: Any = build_objective(OmegaConf.create(run.config), soft)
        return found if beta is None else replace(found, beta=beta)
    except (RequestError, OmegaConfBaseException, TypeError, ValueError) as error:
        raise RequestError(f"{run.key}={run.path}: what it trained by cannot be built: {first_line(error)}") from error


def _soften(objective: Objective, soft: str) -> None:
    """A soft label is either what a loss aims at or its row's weight, never both."""
    if soft == "weight":
        objective.refine(columns=objective.needs.columns - {"target"})
    elif "target" not in objective.needs.columns:
        raise RequestError(f"data.soft=target: loss={objective.name} takes no soft target; data.soft=weight is for any")
