"""A pipeline's folder: one folder for each of its steps, and pipeline.json, which says how each of them stands."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefopt.errors import RequestError
from prefopt.files import (
    check_can_be_made,
    check_schema,
    is_empty,
    locked,
    read_json,
    remove_temporaries,
    write_json,
)
from prefopt.pipeline.steps import Step

SCHEMA = 1
FILE = "pipeline.json"


class Ledger:
    """`with Ledger(folder, name, steps) as ledger:` locks the pipeline. Every change is written at once."""

    def __init__(self, folder: Path, name: str, steps: Sequence[Step]) -> None:
        self.folder, self.name = folder, name
        self.entries: dict[Path, dict[str, Any]] = {
            step.folder: {
                "stage": step.name,
                "round": step.round,
                "folder": step.folder.name,
                "status": step.status() or "pending",
                "exit_code": None,
                "seconds": 0.0,
            }
            for step in steps
        }

    def __enter__(self) -> Ledger:
        self._lock = locked(self.folder, "pipeline_dir", "runs this pipeline")
        try:
            self._recall()
        except BaseException:
            self._lock.release()
            raise
        remove_temporaries(self.folder)
        self.write()
        return self

    def _recall(self) -> None:
        """What earlier attempts took."""
        stages = _held(self.folder).get("stages", [])
        try:
            for held in stages:
                entry = self.entries.get(self.folder / held["folder"])
                if entry is not None:
                    entry["seconds"], entry["exit_code"] = float(held["seconds"]), held["exit_code"]
        except (KeyError, TypeError, ValueError) as error:
            named = f"pipeline_dir={self.folder}"
            raise RequestError(f"{named}: its {FILE} is no pipeline's\nname a new pipeline_dir") from error

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def note(self, step: Step, status: str, exit_code: int | None = None, seconds: float = 0.0) -> None:
        entry = self.entries[step.folder]
        entry["status"], entry["exit_code"] = status, exit_code
        entry["seconds"] += seconds
        self.write()

    def status(self, step: Step) -> str:
        return self.entries[step.folder]["status"]

    def write(self) -> None:
        content = {"schema": SCHEMA, "pipeline": self.name, "stages": list(self.entries.values())}
        write_json(self.folder / FILE, content)


def check_folder(folder: Path, name: str) -> None:
    """Refuse a folder that cannot hold this pipeline. Nothing is touched."""
    check_can_be_made(folder, "pipeline_dir")
    held = _held(folder)
    if held and held.get("pipeline") != name:
        other = held.get("pipeline")
        raise RequestError(f"pipeline_dir={folder} holds another pipeline: {other}; name a new pipeline_dir")
    if not held and not is_empty(folder, besides=".lock"):
        raise RequestError(f"pipeline_dir={folder} holds other files and no pipeline; name a new or empty folder")


def _held(folder: Path) -> dict[str, Any]:
    file, named, way_out = folder / FILE, f"pipeline_dir={folder}", "\nname a new pipeline_dir"
    if not file.is_file():
        return {}
    held = read_json(file, named, way_out)
    check_schema(held, SCHEMA, f"{named}: its {FILE}", way_out)
    return held
