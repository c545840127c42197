"""A pipeline's folder: one folder for each of its steps, and pipeline.json, which says how each of them stands."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from prefopt.errors import RequestError
from prefopt.files import check_can_be_made, read_json, write_json
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
        self._lock = FileLock(folder / ".lock")

    def __enter__(self) -> Ledger:
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise RequestError(f"pipeline_dir={self.folder}: another process runs this pipeline") from None
        try:
            self._recall()
        except BaseException:
            self._lock.release()
            raise
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
    if not held and folder.is_dir() and any(entry.name != ".lock" for entry in folder.iterdir()):
        raise RequestError(f"pipeline_dir={folder} holds other files and no pipeline; name a new or empty folder")


def _held(folder: Path) -> dict[str, Any]:
    file = folder / FILE
    return read_json(file, f"pipeline_dir={folder}", "\nname a new pipeline_dir") if file.is_file() else {}
