"""A run folder that has ended, as the commands after training find it. Reads JSON only: wrong requests end quickly."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefopt.errors import RequestError, nearest
from prefopt.files import at_home, check_can_be_named
from prefopt.models.files import is_classifier
from prefopt.run.folder import ENDED, KEYS
from prefopt.run.held import held_config, held_summary

NEEDED = ("model", "data", "trainer", "evaluation", "loss")  # of every config.json, however old


@dataclass(frozen=True)
class Finished:
    """path: the run folder. config: its resolved request. key: the setting that named it, for messages."""

    path: Path
    config: dict[str, Any]
    summary: dict[str, Any]
    key: str = "run"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def adapted(self) -> bool:
        """Whether model/ is an adapter; a reward model's is merged when it is saved."""
        return (self.model / "adapter_config.json").is_file()

    @property
    def judges(self) -> bool:
        """Whether it trained a reward model that transformers loads as a sequence classifier."""
        return is_classifier(str(self.model), self.key)

    @property
    def forms(self) -> tuple[str, ...]:
        """What it can be exported as, the default first."""
        if self.adapted:
            return "merged", "adapter"
        return ("merged",) if self.config["model"].get("adapter") else ("full",)


def finished_run(folder: str, key: str = "run") -> Finished:
    """RequestError, with what was probably meant, where there is no run that has ended well."""
    path = _place(folder, key)
    if not (path / "summary.json").is_file() or not (path / "config.json").is_file():
        raise RequestError(f"{key}={folder}: no run there: no summary.json{_meant(path)}")
    named = f"{key}={folder}"
    config, summary = held_config(path / "config.json", named), held_summary(path / "summary.json", named)
    run = Finished(path, config, {**dict.fromkeys(KEYS), **summary}, key)
    status = run.summary.get("status")
    if status not in ENDED:
        way_out = "" if status == "failed" else "; the command that began it continues it"
        raise RequestError(f"{key}={folder}: this run is {status}, not finished{way_out}")
    if not run.model.is_dir():
        raise RequestError(f"{key}={folder}: its folder model/ is missing")
    missing = next((name for name in NEEDED if name not in config), None)
    if missing:
        raise RequestError(f"{named}: its config.json has no {missing}, so it is none of a run")
    if run.adapted and not config["model"].get("adapter"):
        raise RequestError(f"{key}={folder}: its model/ is an adapter, and by its config.json it trained none")
    return run


def run_of_model(name: str, key: str) -> Finished | None:
    """The run whose model/ a name is: what it saved reads text as the run did. None where it is no run's."""
    path = _place(name, key).absolute()
    held = path.name == "model" and (path.parent / "summary.json").is_file()
    return finished_run(str(path.parent), key) if held else None


def judging_run(name: str, key: str = "reward.name") -> Finished | None:
    """The run that trained a reward model, by its folder or its model/; None where the name is no run's, but perhaps
    another model's."""
    is_run = (_place(name, key) / "summary.json").is_file()
    run = finished_run(name, key) if is_run else run_of_model(name, key)
    if run is None:
        return None
    if not run.judges:
        raise RequestError(f"{key}={name}: this run trained loss={run.summary['loss']}, no reward model")
    return run


def _place(name: str, key: str) -> Path:
    path = at_home(name, key)
    check_can_be_named(path, f"{key}={name}")
    return path


def _meant(path: Path) -> str:
    """The run that this folder lies in or holds, else the sibling with the nearest name."""
    if (path.parent / "summary.json").is_file():
        return f"; did you mean {str(path.parent)!r}?"
    inside = sorted(file.parent for file in path.glob("*/summary.json"))
    if inside:
        return f"; did you mean {str(inside[-1])!r}?"
    beside = sorted(file.parent.name for file in path.parent.glob("*/summary.json"))
    return nearest(path.name, beside)
