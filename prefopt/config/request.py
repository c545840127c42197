"""A request: composed by Hydra, checked, and the objects that it names built."""

from __future__ import annotations

import functools
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from prefopt.config.explain import explain, no_key
from prefopt.config.guard import check_flags, check_found, check_targets, config_dir, install
from prefopt.config.staged import gathered
from prefopt.data.origins import Origin, open_origin
from prefopt.errors import FAILED, INTERRUPTED, OK, WRONG, RequestError, check_text, first_line, refuse
from prefopt.files import at_home, check_can_be_made, check_can_be_named
from prefopt.models.files import check_local, need_bitsandbytes
from prefopt.progress import is_main_process
from prefopt.run import Finished, check_run_folder, judging_run
from prefopt.settings import Settings, TrainerSettings

if TYPE_CHECKING:
    from prefopt.objectives import Objective

Keys = TypeVar("Keys")
LEAST_LABELLED = 8  # prompts, so that some of them differ
BUILT = ("loss", "optimizer", "schedule", "strategy")
SECTIONS = (
    *("model", "data", "source", "reward", "guards", "trainer", "evaluation"),
    *("seed", "run_dir", "cache_dir", "debug"),
)


@dataclass(frozen=True)
class Request:
    """What was asked: typed settings, the objects built from `_target_`, and all of it as plain JSON."""

    settings: Settings
    origin: Origin
    objective: Objective
    optimizer: Callable[..., Any]
    schedule: Callable[[int, int], float]
    strategy: str
    plain: dict[str, Any]

    @property
    def on_policy(self) -> bool:
        """Whether the policy's own answers train."""
        return speaks_live(self.settings, self.objective)


def speaks_live(settings: Settings, objective: Objective) -> bool:
    from prefopt.data.views import RECORDED

    kind = settings.source.kind
    return kind == "rollouts" or (kind == "auto" and objective.needs.data not in RECORDED)


def command(config_name: str, task: Callable[[DictConfig], int]) -> int:
    """Run a command under Hydra with the arguments in sys.argv. Returns the exit code."""
    # oneDNN keeps a kernel for every shape it has met; a run meets thousands.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let errors through to here instead of printing and exiting
    install()
    code = OK

    def run(cfg: DictConfig) -> int:
        nonlocal code  # which is lost where another launcher runs this in a process of its own
        code = max(code, found := _answer(lambda: task(cfg), config_name, FAILED))
        return found

    def compose_and_run() -> int:
        check_text(sys.argv[1:])
        check_flags()
        if config_name == "train":
            sys.argv[1:] = gathered(sys.argv[1:])
        hydra.main(version_base="1.3", config_path=config_dir(), config_name=config_name)(run)()
        sweeps = sys.modules.get("prefopt.config.sweeps")
        return max(code, sweeps.exit_code if sweeps else OK)

    return _answer(compose_and_run, config_name, WRONG)


def _answer(work: Callable[[], int], config_name: str, otherwise: int) -> int:
    """The exit code of some work; a wrong request is explained. otherwise: the code of an error nobody thought of."""
    try:
        return work()
    except (RequestError, HydraException, OmegaConfBaseException) as error:
        if "debug=true" in sys.argv:
            traceback.print_exc()
        if isinstance(error, RequestError):
            return refuse(str(error))
        return refuse(explain(error, config_name, [a for a in sys.argv[1:] if not a.startswith("-")]))
    except Exception as error:
        if "debug=true" in sys.argv:
            traceback.print_exc()
        if isinstance(error, RecursionError) and otherwise == WRONG:
            return refuse("what was asked stands for itself: a file among its own defaults, or ${} under its own key")
        print(f"failed: {type(error).__name__}: {first_line(error)}\ndebug=true shows where", file=sys.stderr)
        return otherwise
    except KeyboardInterrupt:
        return INTERRUPTED


def compose_request(overrides: list[str], config_name: str = "train") -> Request:
    """A request composed in Python, as the command line would. RequestError when it is wrong."""
    install()
    try:
        with initialize_config_dir(config_dir(), version_base="1.3"):
            cfg = compose(config_name, overrides, return_hydra_config=True)
        choices = dict(cfg.hydra.runtime.choices)
        OmegaConf.set_struct(cfg, False)
        del cfg["hydra"]
        return build_request(cfg, choices)
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
    with _with_an_end():
        plain: Any = OmegaConf.to_container(cfg, resolve=True)
    check_targets(plain)
    _check_places(settings, plain, awaited)
    origin = open_origin(settings.data, Path(settings.cache_dir).expanduser())
    origin.check()
    if cfg.strategy.name == "auto" and settings.trainer.devices > 1:
        raise RequestError(
            f"trainer.devices={settings.trainer.devices} needs strategy=ddp; strategy=single is one device"
        )
    import torch  # only once the request is well formed

    _check_devices(settings.trainer)
    objective = build_objective(cfg, settings.data.soft)
    _check_source(settings, origin, objective)
    preset = (HydraConfig.get().runtime.choices if choices is None else choices).get("preset")
    if preset and not str(preset).startswith(f"{objective.name}_"):
        raise RequestError(f"preset={preset} is not for loss={objective.name}; name the loss before the underscore")
    optimizer, schedule = _instantiate(cfg, "optimizer"), _instantiate(cfg, "schedule")
    try:
        optimizer([torch.nn.Parameter(torch.zeros(1))])
        float(schedule(0, 1))
    except Exception as error:  # each says what is wrong with its options in its own way
        raise RequestError(f"optimizer or schedule: {first_line(error)}") from error
    return Request(
        settings=settings,
        origin=origin,
        objective=objective,
        optimizer=optimizer,
        schedule=schedule,
        strategy=cfg.strategy.name,
        plain=plain,
    )


def build_objective(cfg: DictConfig, soft: str) -> Objective:
    """The method that `loss` names. soft: `data.soft`."""
    from prefopt.objectives import Objective

    objective = _instantiate(cfg, "loss")
    if not isinstance(objective, Objective):
        raise RequestError(f"loss._target_={cfg.loss.get('_target_')} is no Objective; see CONTRIBUTING, «Add a loss»")
    _soften(objective, soft)
    return objective


def trained_settings(run: Finished) -> Settings:
    """The typed request that a run answered. Keys that were added since have their defaults."""
    places = {"run_dir": str(run.path), "cache_dir": "", "debug": False}
    try:
        asked = OmegaConf.merge(_defaults(), run.config, places)
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


def _check_places(settings: Settings, plain: dict[str, Any], awaited: Path | None) -> None:
    """What can be told of the folders before anything heavy is loaded: nothing is written, and the hub not asked."""
    cache = at_home(settings.cache_dir, "cache_dir")
    check_can_be_named(cache, f"cache_dir={settings.cache_dir}")
    if not cache.is_dir():  # one that is there may be complete, and needs no writing
        check_can_be_made(cache, "cache_dir")
    if is_main_process():
        check_run_folder(settings.run_dir, plain)
    model = settings.model
    for key, name in (("model.name", model.name), ("model.reference_name", model.reference_name)):
        if name and not _within(name, awaited):
            check_local(name, key)
    watch = settings.source.watch
    watching = [("source.watch", watch)] if watch not in (None, "auto", "gold") else []
    for key, name in [*settings.reward.models(), *watching]:
        if not _within(name, awaited) and judging_run(name, key) is None:
            check_local(name, key)
    if model.quant is not None:
        need_bitsandbytes()


def _within(name: str, folder: Path | None) -> bool:
    return folder is not None and folder in Path(name).parents


def _check_source(settings: Settings, origin: Origin, objective: Objective) -> None:
    """Whether the loss can learn from who speaks."""
    from prefopt.data.views import RECORDED, check_view

    source, data, needs = settings.source, settings.data, objective.needs
    if not speaks_live(settings, objective):
        if needs.data not in RECORDED:
            raise RequestError(
                f"source=recorded: loss={objective.name} learns from its own answers; take source=rollouts"
            )
        return check_view(needs.data, origin.kinds())
    if "lm" not in needs.heads:
        raise RequestError(f"source=rollouts: loss={objective.name} trains nothing that answers; take source=recorded")
    least = 2 if needs.data in RECORDED else needs.answers
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
    if source.kl_target is not None and (needs.data in RECORDED or not getattr(objective, "beta", 0)):
        raise RequestError("source.kl_target: this loss has no KL coefficient loss.beta above 0 that could follow it")
    return None


def _refuse_gold(settings: Settings) -> None:
    """Outside of the controlled world."""
    asked = settings.reward.asks_gold()
    if not asked and settings.source.watch != "gold":
        return
    key, model = ("source.watch", "source.watch=RUN") if not asked else (asked, f"{asked}=model")
    if asked == "reward.kind":
        key, model = "reward", "reward=model reward.name=RUN"
    raise RequestError(f"{key}=gold is known in the controlled world only; take {model}")


def _check_devices(trainer: TrainerSettings) -> None:
    """As many processes as wanted on CPU; on anything else a device each."""
    import torch

    there = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    there["gpu"] = there["cuda"] or there["mps"]
    if trainer.accelerator == "auto" and there["gpu"]:
        there["auto"] = there["gpu"]
    count = there.get(trainer.accelerator)
    if count is not None and trainer.devices > count:
        raise RequestError(
            f"trainer.devices={trainer.devices} with trainer.accelerator={trainer.accelerator}: this machine has "
            f"{count}\naccepted: at most that many, or trainer.accelerator=cpu"
        )


def _soften(objective: Objective, soft: str) -> None:
    """A soft label is either what a loss aims at or its row's weight, never both."""
    if soft == "weight":
        objective.refine(columns=objective.needs.columns - {"target"})
    elif "target" not in objective.needs.columns:
        raise RequestError(f"data.soft=target: loss={objective.name} takes no soft target; data.soft=weight is for any")


def read_settings(cfg: DictConfig) -> Settings:
    """The typed sections; every key is checked against the schema. Takes out what only a command with -m reads."""
    with open_dict(cfg):
        cfg.pop("sweep_dir", None)
        if cfg.pop("sweep", None) is not None:
            raise RequestError("sweep= names many runs: start them with -m")
        if cfg.pop("pipeline", None) is not None:
            raise RequestError("pipeline= is several runs, one after another: start it by itself, without -m")
        if (folder := cfg.pop("pipeline_dir", None)) is not None:
            raise RequestError(f"pipeline_dir={folder} is for a pipeline; name one, e.g. pipeline=rlhf")
    for section, known in (("", (*SECTIONS, *BUILT)), ("strategy", ("name",))):
        node = cfg[section] if section else cfg
        if not isinstance(node, DictConfig):
            raise RequestError(f"{section} must be a section; got {node!r:.80}")
        for key in node:
            if key not in known:
                raise RequestError(no_key(f"{section}.{key!s}".lstrip("."), known))
    return _typed(Settings, OmegaConf.create({name: cfg[name] for name in SECTIONS}))


def read_keys(cfg: DictConfig, schema: type[Keys]) -> Keys:
    """The keys of a command that trains nothing, held against its schema."""
    known = [field.name for field in fields(schema)]  # type: ignore[arg-type]
    for key in cfg:
        if key not in known:
            raise RequestError(no_key(str(key), known))
    return _typed(schema, cfg)


def _typed(schema: type[Keys], cfg: DictConfig) -> Keys:
    """The keys as the schema has them, each of its type, in its range and without anything to look up."""
    with _with_an_end():
        OmegaConf.resolve(cfg)
        found = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), cfg))
    assert isinstance(found, schema)
    return found


@contextmanager
def _with_an_end() -> Iterator[None]:
    """RequestError where a section holds itself, or a number is larger than any that is computed with."""
    try:
        yield
    except RecursionError as error:
        raise RequestError("a section stands for itself by ${}, or holds more sections than are read") from error
    except OverflowError as error:
        raise RequestError(f"a number is too large to be computed with: {first_line(error)}") from error


def _instantiate(cfg: DictConfig, section: str) -> Any:
    """Build a section's `_target_`; what its constructor refuses is the user's to mend."""
    from hydra.utils import instantiate

    check_found(section, cfg[section]._target_)
    try:
        return instantiate(cfg[section], _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(cause))
        if unknown:
            known = [key for key in cfg[section] if not str(key).startswith("_") and key != unknown[1]]
            raise RequestError(no_key(f"{section}.{unknown[1]}", known)) from error
        if isinstance(cause, ValueError):
            raise RequestError(str(cause)) from error
        raise RequestError(f"{section}: {first_line(error)}") from error
    except (TypeError, ValueError) as error:  # of _partial_, _recursive_ and _convert_
        raise RequestError(f"{section}: {first_line(error)}") from error
