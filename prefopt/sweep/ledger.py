"""A sweep's folder: one run folder for each of its jobs, and sweep.json, which says how each of them stands."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from prefopt.errors import RequestError
from prefopt.files import check_schema, locked, read_json, remove_temporaries, write_json
from prefopt.run import ENDED, config_hash, without_places
from prefopt.scrub import scrubbed

SCHEMA = 1
PENDING, RUNNING, FINISHED, FAILED, INTERRUPTED = "pending", "running", "finished", "failed", "interrupted"


@dataclass
class Job:
    """One run of a sweep. key: the hash of its resolved config. seconds: of all its attempts."""

    key: str
    name: str
    overrides: list[str]
    devices: int = 1
    on_cpu: bool = False
    status: str = PENDING
    exit_code: int | None = None
    seconds: float = 0.0

    @classmethod
    def of(
        cls, overrides: Sequence[str], own: Sequence[str], plain: dict[str, Any], devices: int, on_cpu: bool = False
    ) -> Job:
        """own: the overrides that the sweep gave it; plain: the resolved request."""
        key = config_hash(without_places(plain))[:12]
        words = [_word(scrubbed(override)) for override in own]
        stem = re.sub(r"[^\w.-]+", "_", "-".join(word for word in words if word))[:80].strip("-_") or "run"
        return cls(key, f"{stem}-{key[:6]}", list(overrides), devices, on_cpu)

    @property
    def gpus(self) -> int:
        """That it needs where there are any."""
        return 0 if self.on_cpu else self.devices


def _word(override: str) -> str:
    """What of an override belongs into a folder's name: "loss=dpo" is dpo, "loss.beta=0.1" is beta0.1."""
    name, _, value = override.lstrip("+~").partition("=")
    value = value.rpartition("/")[2]
    return value if name in ("loss", "model", "data", "preset") else f"{name.rpartition('.')[2]}{value}"


@dataclass
class Ledger:
    """`with Ledger(folder) as ledger:` locks the sweep. Every change of a job is written at once."""

    folder: Path
    jobs: dict[str, Job] = field(default_factory=dict)

    def __enter__(self) -> Ledger:
        self._lock = locked(self.folder, "sweep_dir", "runs this sweep")
        try:
            self._recall()
        except BaseException:
            self._lock.release()
            raise
        for folder in (self.folder, self.folder / "logs"):
            remove_temporaries(folder)
        return self

    def _recall(self) -> None:
        """What earlier attempts left."""
        if not self._file.is_file():
            return
        named, way_out = f"sweep_dir={self.folder}", "\nname a new sweep_dir"
        held = read_json(self._file, named, way_out)
        check_schema(held, SCHEMA, f"{named}: its {self._file.name}", way_out)
        try:
            self.jobs = {entry["key"]: Job(**entry) for entry in held["jobs"]}
        except (KeyError, TypeError) as error:
            raise RequestError(f"{named}: its {self._file.name} is no sweep's{way_out}") from error

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def add(self, jobs: Iterable[Job]) -> list[Job]:
        """The jobs as they stand: those that the sweep knows keep their folder, and what their run folder says of how
        they ended is what counts. Equal ones are one."""
        asked = {}
        for job in jobs:
            asked[job.key] = self.jobs.setdefault(job.key, job)
            asked[job.key].overrides = job.overrides  # as they were given: the file holds them scrubbed
        for job in asked.values():
            ended = self.summary(job).get("status")
            job.status = FINISHED if ended in ENDED else PENDING
        self.write()
        return list(asked.values())

    def run_dir(self, job: Job) -> Path:
        return self.folder / job.name

    def log(self, job: Job) -> Path:
        return self.folder / "logs" / f"{job.name}.log"

    def summary(self, job: Job) -> dict[str, Any]:
        try:
            return json.loads((self.run_dir(job) / "summary.json").read_text("utf-8"))
        except (OSError, ValueError):
            return {}

    def write(self) -> None:
        write_json(self._file, scrubbed({"schema": SCHEMA, "jobs": [asdict(job) for job in self.jobs.values()]}))

    @property
    def _file(self) -> Path:
        return self.folder / "sweep.json"
