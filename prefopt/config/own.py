"""Hydra's own sections: what it calls and sets because of them, before anybody has looked at the request."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from prefopt.errors import RequestError, first_line

LOGGING = ("hydra_logging", "job_logging")
PLUGINS = ("launcher", "sweeper")  # whose own `_target_` Hydra holds against the plug-ins that are installed


def check_own(composed: DictConfig) -> None:
    """RequestError where Hydra would call or set what is named in its sections, whoever named it: a file, a package
    that a file is put into, or the command line."""
    held: Any = OmegaConf.to_container(composed)
    held = held["hydra"]
    for name in ("callbacks", "job.env_set"):
        if _found(held, name) != {}:
            raise RequestError(f"hydra.{name} is Hydra's own and must stay empty: it would be run, or be set, unseen")
    for name in LOGGING:
        if _found(held, name) not in _shipped(name).values():
            accepted = ", ".join(f"hydra/{name}={option}" for option in sorted(_shipped(name)))
            raise RequestError(f"hydra.{name} is none of Hydra's own; others can call anything\naccepted: {accepted}")
    for name in PLUGINS:
        held[name] = _resolved(composed, name)
    for path, _ in entries(held, "hydra"):
        if path.endswith(("._target_", ".()")):
            raise RequestError(f"{path}: nothing below hydra is built but its launcher and its sweeper")


def entries(held: Any, path: str) -> Iterator[tuple[str, Any]]:
    """("a.b.0", value) of everything in a section, however deep."""
    children = held.items() if isinstance(held, dict) else enumerate(held) if isinstance(held, list) else ()
    for key, value in children:
        name = f"{path}.{key}".lstrip(".")
        yield name, value
        yield from entries(value, name)


def check_resolved(held: Any, path: str) -> None:
    """Refuse text that would be looked up: a file may have escaped it, and then it stands for a section or a secret."""
    for name, value in entries(held, path):
        if isinstance(value, str) and "${" in value:
            raise RequestError(f"{name}={value:.80}: ${{}} is not followed there; write what it stands for")


def _found(held: Any, name: str) -> Any:
    """None where the section, or one above it, is no section."""
    for part in name.split("."):
        held = held.get(part) if isinstance(held, dict) else None
    return held


def _resolved(composed: DictConfig, name: str) -> dict[Any, Any]:
    """A plug-in's section as Hydra will build it, but for its own `_target_`."""
    try:
        found = OmegaConf.to_container(composed.hydra[name], resolve=True)
    except OmegaConfBaseException as error:
        raise RequestError(f"hydra.{name}: {first_line(error)}") from error
    check_resolved(found, f"hydra.{name}")
    return {key: value for key, value in found.items() if key != "_target_"} if isinstance(found, dict) else {}


@functools.cache
def _shipped(name: str) -> dict[str, Any]:
    """The options of a section that come with Hydra."""
    files = (Path(hydra.__file__).parent / "conf" / "hydra" / name).glob("*.yaml")
    return {file.stem: yaml.safe_load(file.read_text("utf-8")) for file in files}
