"""What a configuration may hold: YAML files that can be read, of a bounded size, and targets that may be called."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NoReturn

import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.sources_registry import SourcesRegistry
from hydra._internal.utils import get_args_parser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigResult, ConfigSource
from omegaconf import DictConfig, OmegaConf

from prefopt.config.own import check_own, check_resolved, entries
from prefopt.errors import RequestError, first_line, nearest

MOST_BYTES, MOST_VALUES = 2**20, 100_000  # of one file
TARGETS = {
    "loss": ("prefopt.objectives",),
    "optimizer": ("torch.optim", "bitsandbytes.optim"),
    "schedule": ("prefopt.schedules",),
}
NO_OPTION = "Config group override must be a string"  # as Hydra says it
PLUGINS = "prefopt.objectives"  # the entry-point group whose packages may be named too


def check_flags() -> None:
    """Hydra's own parser answers a wrong flag with its whole usage."""
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise RequestError(f"{message}\nsettings are key=value; --help lists the flags")

    setattr(parser, "error", refuse)  # noqa: B010  (what argparse calls before it would exit)
    if parser.parse_args().experimental_rerun:
        raise RequestError("--experimental-rerun reads a pickle, which can run code; give the settings again")


# ---------------------------------------------------------------- files


def config_dir() -> str:
    """`conf/`: inside the package in a wheel, beside it in a checkout."""
    packaged = Path(__file__).parents[1] / "conf"
    return str(packaged if packaged.is_dir() else Path(__file__).parents[2] / "conf")


def install() -> None:
    """From now on Hydra's reader of files says where a file is wrong, no alias can blow one up, and what Hydra composes
    for itself is looked at before Hydra acts on it.

    The classes stay Hydra's: other launchers carry its registry into processes that know no other.
    """
    Plugins.instance()  # loads Hydra's own readers anew, which must not come later
    reader = SourcesRegistry.instance().types["file"]
    setattr(reader, "load_config", _checked(reader))  # noqa: B010
    setattr(ConfigLoaderImpl, "load_configuration", _looked_at(ConfigLoaderImpl))  # noqa: B010


@functools.cache
def _looked_at(loader: type[ConfigLoaderImpl]) -> Callable[..., DictConfig]:
    load = loader.load_configuration

    def load_looked_at(self: ConfigLoaderImpl, *asked: Any, **named: Any) -> DictConfig:
        try:
            composed = load(self, *asked, **named)
        except ValueError as error:  # Hydra's own, of an override that names a group's place and no option
            if not str(error).startswith(NO_OPTION):
                raise
            raise HydraException(f"a group's option is a name, or several in brackets; {error}") from error
        check_own(composed)
        return composed

    return load_looked_at


@functools.cache
def _checked(reader: type[ConfigSource]) -> Callable[[FileConfigSource, str], ConfigResult]:
    load = reader.load_config

    def load_checked(source: FileConfigSource, config_path: str) -> ConfigResult:
        file = Path(source.path) / source._normalize_file_name(config_path)
        try:
            if file.is_file():
                _check_size(file)
            found = load(source, config_path)
            _check_search_path(found, file)
            return found
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            raise RequestError(f"{file}:{line}: not YAML: {error.problem or error.context}") from error
        except (RequestError, MemoryError):
            raise
        except Exception as error:  # PyYAML's constructors fail in ways of their own on what only looks like a value
            raise RequestError(f"{file}: cannot be read as YAML: {first_line(error)}") from error

    return load_checked


def _check_search_path(found: ConfigResult, file: Path) -> None:
    """Looking for configurations inside a package imports it."""
    named = OmegaConf.select(found.config, "hydra.searchpath") if isinstance(found.config, DictConfig) else None
    for place in [named] if isinstance(named, str) else named or []:
        if "://" in str(place) and not str(place).startswith("file://"):
            raise RequestError(f"{file}: hydra.searchpath: {place} is no folder; only folders are looked into")


def _check_size(file: Path) -> None:
    """Aliases let a file of a few lines stand for billions of values, each of which would be made."""
    size = file.stat().st_size
    if size > MOST_BYTES:
        raise RequestError(f"{file}: {size} bytes of YAML; at most {MOST_BYTES} are read")
    text = file.read_text("utf-8")
    if "&" not in text or "*" not in text:
        return
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    if _values(node, {}) > MOST_VALUES:
        raise RequestError(f"{file}: its aliases (*name) stand for over {MOST_VALUES} values, more than are read")


def _values(node: yaml.Node | None, known: dict[int, float]) -> float:
    """How many values a node stands for, aliases followed; infinite where it holds itself."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in known:
        known[id(node)] = float("inf")
        children = (part for item in node.value for part in (item if isinstance(item, tuple) else (item,)))
        known[id(node)] = 1 + sum(_values(child, known) for child in children)
    return known[id(node)]


# ---------------------------------------------------------------- targets


def check_targets(config: Mapping[str, Any]) -> None:
    """Refuse, before anything is imported, what is no method, optimizer or schedule. Nothing else is ever called."""
    for section in TARGETS:
        found = config.get(section)
        target = found.get("_target_") if isinstance(found, dict) else None
        if not isinstance(target, str):
            raise RequestError(f"{section} must be a section with a _target_, a dotted name; got {found!r:.80}")
        _check_name(section, target)
        below = (key for key, _ in entries(found, section) if key != f"{section}._target_")
        nested = next((key for key in below if key.endswith("._target_")), None)
        if nested:
            raise RequestError(f"{nested}: nothing below {section} is built; only {section}._target_ is")
        check_resolved(found, section)


def check_found(section: str, target: str) -> None:
    """Refuse a name that nothing has, and one that leads out of the package that it begins with."""
    import pydoc

    try:
        found = pydoc.locate(target)
    except pydoc.ErrorDuringImport as error:
        raise RequestError(f"{section}._target_={target}: {first_line(error)}") from error
    if found is None:
        parent, _, name = target.rpartition(".")
        hint = nearest(name, dir(pydoc.locate(parent)))
        raise RequestError(f"{section}._target_={target}: no such class or function{hint}")
    if not _within(str(getattr(found, "__module__", "")), section):
        raise RequestError(f"{section}._target_={target} leads out of {', '.join(_packages(section))}")


def _check_name(section: str, target: str) -> None:
    if not _within(target, section):
        accepted = [f"{package}.*" for package in _packages(section)]
        raise RequestError(
            f"{section}._target_={target} is not called{nearest(target, accepted)}\naccepted: {', '.join(accepted)}, "
            f"and packages with an entry point {PLUGINS}"
        )


def _within(name: str, section: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in _packages(section))


def _packages(section: str) -> list[str]:
    plugins = {entry.module.partition(".")[0] for entry in entry_points(group=PLUGINS)}
    return [*TARGETS[section], *sorted(plugins)]
