"""What Hydra or OmegaConf refused, in our words."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from prefopt.config.guard import config_dir
from prefopt.errors import first_line, nearest

MOST_RUNS = 1000  # of a sweep, that are looked through for the first that is wrong


def explain(error: BaseException, config_name: str, overrides: Iterable[str]) -> str:
    """What Hydra or OmegaConf refused, in one or two lines with the nearest accepted word."""
    if isinstance(error, MissingConfigException):
        return _no_option(error)
    if not str(error) and error.__cause__ is not None:
        return explain(error.__cause__, config_name, overrides)
    text = str(error)
    if isinstance(error, OverrideParseException):
        accepted = "key=value, with quotes around what is text"
        return f"{error.override}: cannot be read: {first_line(error)}\naccepted: {accepted}"
    if text.startswith("Ambiguous value for argument"):
        return f"{first_line(error).split(chr(39))[1]}: one value at a time; quotes make a text of it, brackets a list"
    typed = getattr(error, "object_type", None)
    if isinstance(error, ConfigKeyError) and is_dataclass(typed):
        return no_key(str(error.full_key), [field.name for field in fields(typed)])
    overrides = _one_run(config_name, list(overrides))
    wrong_key = re.search(r"Could not override '([^']+)'", text)
    if wrong_key:
        key = wrong_key[1]
        rest = [override for override in overrides if override.split("=")[0].lstrip("+~") != key]
    if wrong_key and "No match in the defaults list" in text:
        inside = [f"{key}.{name}" for name in _keys_beside(f"{key}.", config_name, rest)]
        if inside:
            return f"{key}: no options of it here, only keys\naccepted: {', '.join(inside)}"
        groups = sorted(folder.name for folder in Path(config_dir()).iterdir() if folder.is_dir())
        return no_key(key.split("@")[0], groups)
    if wrong_key:
        known = _keys_beside(key, config_name, rest)
        while not known and "." in key:  # nor is there what it was looked for under
            key = key.rpartition(".")[0]
            known = _keys_beside(key, config_name, rest)
        if key != wrong_key[1] and key in known:
            return _not_chosen(wrong_key[1], key)
        return no_key(key, known)
    full_key = getattr(error, "full_key", None)
    return f"{full_key}: {first_line(error)}" if full_key else first_line(error)


def points(overrides: list[str]) -> list[list[str]]:
    """The runs that the overrides of a sweep ask for: "a=1,2 b=3" is ["a=1", "b=3"] and ["a=2", "b=3"]."""
    parsed = OverridesParser.create().parse_overrides(overrides)
    return [point for batch in BasicSweeper.split_arguments(parsed, None) for point in batch]


def _one_run(config_name: str, overrides: list[str]) -> list[str]:
    """Of a sweep the first run that cannot be composed."""
    try:
        if math.prod(_runs(override) for override in overrides) > MOST_RUNS:
            return overrides
        found = points([_of_interval(override) for override in overrides])
    except (HydraException, OmegaConfBaseException):
        return overrides
    if len(found) == 1:
        return found[0]
    return next((point for point in found if not _composes(config_name, point)), overrides)


def _runs(override: str) -> int:
    """How many runs an override asks for, counted no further than needed: a range may hold billions."""
    parsed = OverridesParser.create().parse_override(override)
    if not parsed.is_sweep_override() or parsed.is_interval_sweep():
        return 1
    return sum(1 for _ in islice(parsed.sweep_iterator(), MOST_RUNS + 1))


def _of_interval(override: str) -> str:
    """An interval, which nothing composes with, becomes its lower end."""
    parsed = OverridesParser.create().parse_override(override)
    return f"{parsed.get_key_element()}={parsed.value().start}" if parsed.is_interval_sweep() else override


def _composes(config_name: str, overrides: list[str]) -> bool:
    try:
        with initialize_config_dir(config_dir(), version_base="1.3"):
            compose(config_name, overrides)
    except (HydraException, OmegaConfBaseException):
        return False
    return True


def _no_option(error: MissingConfigException) -> str:
    name = error.missing_cfg_file or "?"
    group, _, option = name.rpartition("/")
    if error.options is None:
        return first_line(error)
    options = sorted(set(error.options))
    return f"{group}={option}: no such option{nearest(option, options)}\naccepted: {', '.join(options)}"


def _not_chosen(key: str, parent: str) -> str:
    """A key below what is null: the group that it belongs to has no option yet."""
    options = sorted(file.stem for file in (Path(config_dir()) / parent).glob("*.yaml"))
    way_out = f"; choose it first, e.g. {parent}={options[-1]}\naccepted: {', '.join(options)}" if options else ""
    return f"{key}: {parent} is null{way_out}"


def no_key(key: str, known: Iterable[Any]) -> str:
    parent, _, last = key.rpartition(".")
    known = sorted(map(str, known))
    near = nearest(last, known)
    return f"{key}: no such key{near}\naccepted{f' under {parent}' if parent else ''}: {', '.join(known)}"


def _keys_beside(key: str, config_name: str, overrides: list[str]) -> list[str]:
    """The keys that stand where `key` was looked for."""
    try:
        with initialize_config_dir(config_dir(), version_base="1.3"):
            cfg = compose(config_name, overrides)
        parent = key.rpartition(".")[0]
        node = OmegaConf.select(cfg, parent) if parent else cfg
    except (HydraException, OmegaConfBaseException):
        return []
    return [str(name) for name in node if not str(name).startswith("_")] if isinstance(node, DictConfig) else []
