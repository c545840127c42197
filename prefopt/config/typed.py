"""Composed keys as the schema has them, and the objects that they name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, TypeVar

from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf, open_dict

from prefopt.config.explain import no_key
from prefopt.config.guard import check_found
from prefopt.errors import RequestError, first_line
from prefopt.settings import BUILT, Settings

Keys = TypeVar("Keys")
SECTIONS = tuple(field.name for field in fields(Settings))


def without_hydra(cfg: DictConfig) -> dict[str, str | None]:
    """Takes Hydra's own section out of what was composed. Returns the option that each group was given."""
    choices = dict(cfg.hydra.runtime.choices)
    OmegaConf.set_struct(cfg, False)
    del cfg["hydra"]
    return choices


def read_settings(cfg: DictConfig) -> Settings:
    """The typed sections; every key is checked against the schema. Takes out what only sweeps and pipelines read."""
    with open_dict(cfg):
        cfg.pop("sweep_dir", None)
        if cfg.pop("sweep", None) is not None:
            raise RequestError("sweep= names many runs: start them with -m")
        if cfg.pop("pipeline", None) is not None:
            raise RequestError("pipeline= is several runs, one after another: start it by itself, without -m")
        if (folder := cfg.pop("pipeline_dir", None)) is not None:
            raise RequestError(f"pipeline_dir={folder} is for a pipeline; name one, e.g. pipeline=rlhf")
    for key in cfg:
        if key not in (*SECTIONS, *BUILT):
            raise RequestError(no_key(str(key), (*SECTIONS, *BUILT)))
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
    with with_an_end():
        OmegaConf.resolve(cfg)
        found = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), cfg))
    assert isinstance(found, schema)
    return found


@contextmanager
def with_an_end() -> Iterator[None]:
    """RequestError where a section holds itself, or a number is larger than any that is computed with."""
    try:
        yield
    except RecursionError as error:
        raise RequestError("a section stands for itself by ${}, or holds more sections than are read") from error
    except OverflowError as error:
        raise RequestError(f"a number is too large to be computed with: {first_line(error)}") from error


def built(cfg: DictConfig, section: str) -> Any:
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
