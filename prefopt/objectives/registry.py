"""Names for objectives: filled by a decorator, so that adding a method edits no list."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import fields
from importlib.metadata import entry_points
from typing import Any, TypeVar

from prefopt.errors import nearest
from prefopt.objectives.base import Objective

C = TypeVar("C", bound=type[Objective])
_CLASSES: dict[str, type[Objective]] = {}


def register(name: str) -> Callable[[C], C]:
    """Class decorator: make `create(name, …)` build this class. A name taken by another class is refused."""

    def enter(cls: C) -> C:
        owner = _CLASSES.get(name)
        if owner is not None and (owner.__module__, owner.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"objective {name!r} is already {owner.__module__}.{owner.__qualname__}")
        cls.name = name
        _CLASSES[name] = cls
        return cls

    return enter


def names() -> list[str]:
    """Every registered name, sorted."""
    _load()
    return sorted(_CLASSES)


def get(name: str) -> type[Objective]:
    """The class of a name. ValueError with the nearest match when there is none."""
    _load()
    if name in _CLASSES:
        return _CLASSES[name]
    raise ValueError(f"no objective {name!r}{nearest(name, _CLASSES) or '.'} There are: {', '.join(sorted(_CLASSES))}")


def create(name: str, **options: Any) -> Objective:
    """`create("dpo", beta=0.1)`. ValueError for an unknown name, option or value."""
    cls = get(name)
    accepted = [field.name for field in fields(cls)]
    for key in options:
        if key not in accepted:
            hint = nearest(key, accepted) or "."
            raise ValueError(f"{name} has no option {key!r}{hint} It takes: {', '.join(accepted)}")
    return cls(**options)


@functools.cache
def _load() -> None:
    """Import every module of this folder, then those that installed packages offer under `prefopt.objectives`."""
    package = importlib.import_module(__package__)
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{__package__}.{module.name}")
    for plugin in entry_points(group="prefopt.objectives"):
        plugin.load()
