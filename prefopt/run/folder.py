"""The run folder: one process at a time, and everything in it whole at any moment."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from filelock import FileLock

from prefopt.errors import RequestError
from prefopt.files import (
    at_home,
    check_can_be_made,
    is_empty,
    locked,
    read_json,
    remove_temporaries,
    replacing,
    write_json,
)
from prefopt.progress import say
from prefopt.run.checkpoints import LAST, PREVIOUS, newest_sound
from prefopt.run.held import ENTRIES, SCHEMA, held_summary
from prefopt.scrub import scrubbed

ENDED = ("finished", "stopped")  # the states of a run that nothing is missing from
PACKAGES = ("prefopt", "torch", "lightning", "transformers", "peft", "tokenizers", "hydra-core", "numpy")
PLACES = ("run_dir", "cache_dir", "debug", "save_by")  # where a run lies and how long it may take, not what it is
KEYS = ("schema", *ENTRIES)  # of summary.json, in its order


class RunFolder:
    """`with RunFolder(path, plain_config) as run:` locks it, compares the config with the one it holds, and keeps
    `summary.json` true: it is written on every `save` and whatever happens.
    """

    def __init__(self, path: str | None, plain: dict[str, Any], main_process: bool = True) -> None:
        self.config = without_places(plain)
        named = path or _told_folder()
        self.path = Path(named).expanduser() if named else _new_folder(plain)
        self.main_process = main_process
        self._unnamed = not named
        self._lock: FileLock | None = None
        self.summary: dict[str, Any] = dict.fromkeys(KEYS)
        self._begun_here = False
        self._new_parents: list[Path] = []  # made for this folder, the innermost first

    def __enter__(self) -> RunFolder:
        if not self.main_process:
            self._hear()
            return self
        self._new_parents = [folder for folder in self.path.absolute().parents if not folder.exists()]
        if self._unnamed:
            self.path = _made(self.path)
        _check_held(self.path, self.config)
        self._lock = locked(self.path, "run_dir", "is training in it")
        try:
            self._open()
        except BaseException:
            self.discard()
            self._lock.release()
            raise
        return self

    def _hear(self) -> None:
        """A process that a launcher has started beside the main one leaves a finished run alone, as that does."""
        with suppress(RequestError):
            self.summary["status"] = read_json(self.path / "summary.json", "run_dir").get("status")

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.release()

    # ------------------------------------------------------------ places

    @property
    def checkpoint(self) -> Path:
        """Where the last one is saved; see `resume_from`."""
        return self.path / "checkpoints" / LAST

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.csv"

    @property
    def finished(self) -> bool:
        return self.summary["status"] in ENDED

    # ------------------------------------------------------------ summary

    def resume_from(self) -> Path | None:
        """The checkpoint that the run goes on from; None: it begins."""
        return newest_sound(self.checkpoint.parent, self.main_process)

    def resumed(self, step: int) -> None:
        if not self.main_process:
            return
        say(f"resuming {self.path} at step {step}")
        self.save(resumed_at=[*self.summary["resumed_at"], step], status="interrupted", error=None)

    def discard(self) -> bool:
        """Remove a folder that this process began for a request that turned out wrong. What has trained stays."""
        trained = (self.metrics, self.checkpoint, self.checkpoint.with_name(PREVIOUS))
        wrong = self.main_process and self._begun_here and not any(path.exists() for path in trained)
        if wrong:
            shutil.rmtree(self.path, ignore_errors=True)
            with suppress(OSError):  # another run lies there by now
                for folder in self._new_parents:
                    folder.rmdir()
        return wrong

    def save(self, **entries: Any) -> None:
        unknown = set(entries) - set(KEYS)
        if unknown:
            raise KeyError(f"summary.json has no key {sorted(unknown)}")
        changed = {**self.summary, **_finite(scrubbed(entries))}
        if self.main_process:
            write_json(self.path / "summary.json", changed)
        self.summary = changed

    def fail_beside(self, error: str) -> None:
        """Another rank's last word: the main process may be killed for it, and cannot write it down then."""
        file = self.path / "summary.json"
        with suppress(RequestError, OSError):
            held = read_json(file, "run_dir")
            if held.get("status") == "interrupted":
                write_json(file, {**held, "status": "failed", "error": scrubbed(error)})

    def _open(self) -> None:
        """Continue what the folder holds, or begin. Another request's folder is refused with the key that differs."""
        held = self.path / "config.json"
        if held.is_file():
            _check_held(self.path, self.config)
            if (self.path / "summary.json").is_file():
                file, named = self.path / "summary.json", f"run_dir={self.path}"
                self.summary.update(held_summary(file, named, "\nname a new run_dir"))
        self._begun_here = not held.is_file()
        if not self.finished:
            for folder in (self.path, self.checkpoint.parent):
                remove_temporaries(folder)
        if self.summary["schema"] is None:  # new, or killed before its first summary was whole
            self._begin(held)
        elif not self.finished:
            (self.path / "error.txt").unlink(missing_ok=True)
            self.save(status="interrupted", error=None)

    def _begin(self, held: Path) -> None:
        write_json(held, self.config)
        with replacing(self.path / "config.yaml") as temporary:
            from omegaconf import OmegaConf

            temporary.write_text(OmegaConf.to_yaml(OmegaConf.create(self.config)), "utf-8")
        self.save(
            schema=SCHEMA,
            status="interrupted",  # what a run that is killed without a word must say
            command=shlex.join(["python", "-m", "prefopt.train", *sys.argv[1:]]),
            seed=self.config.get("seed"),
            config_hash=config_hash(self.config),
            resumed_at=[],
            versions=versions(),
            git=git_revision(),
        )


def without_places(plain: dict[str, Any]) -> dict[str, Any]:
    """The part of a request that makes a run what it is, as its folder may tell it."""
    return scrubbed({key: value for key, value in plain.items() if key not in PLACES})


def check_run_folder(path: str, plain: dict[str, Any]) -> None:
    """Refuse, before anything heavy is loaded, a folder that cannot hold this run. Nothing is touched."""
    folder = at_home(path, "run_dir")
    check_can_be_made(folder, "run_dir")
    _check_held(folder, without_places(plain))


def _check_held(path: Path, config: dict[str, Any]) -> None:
    """Refuse a folder of other files, or of another request, with the key that differs."""
    if not path.is_dir():
        return
    if (path / "config.json").is_file():
        different = _difference(scrubbed(_held_json(path, "config.json")), config)
        if different:
            raise RequestError(f"run_dir={path} holds another run: {different}\nname a new run_dir, or none")
    elif not is_empty(path, besides=".lock"):
        raise RequestError(f"run_dir={path} holds other files and no run; name a new or empty folder")


def _held_json(path: Path, name: str) -> dict[str, Any]:
    return read_json(path / name, f"run_dir={path}", "\nname a new run_dir")


def _finite(value: Any) -> Any:
    """JSON has no nan: a number that is none becomes null."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def config_hash(config: Any) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def comparable_hash(config: dict[str, Any], stands_on: dict[str, str], steps: int) -> str:
    """Of what must be equal for two runs to stand in one table: data, base, order, budget, evaluation. Not the seed:
    seeds are what a comparison averages over. stands_on: the hashes of the rows, of their ids and of the base."""
    order, shown = comparable_settings(config)
    return config_hash([stands_on, order, steps, shown])


def comparable_settings(config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of data and of evaluation that must be equal for that."""
    data, evaluation = config.get("data", {}), config.get("evaluation", {})
    order = {key: data.get(key) for key in ("batch_size", "batch_tokens", "max_length")}
    return order, {key: value for key, value in evaluation.items() if key != "batch_size"}


def versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def git_revision() -> str | None:
    """Revision of the checkout this code runs from, "+" when it was changed; None outside one."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return None
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        dirty = subprocess.run(["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")


def peak_memory_bytes() -> int:
    """Peak resident size of this process, or the GPU's peak allocation."""
    import resource

    import torch

    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _told_folder() -> str | None:
    """To the processes that a distributed run starts: their own clock would name another."""
    return os.environ.get("PREFOPT_RUN_DIR") if "LOCAL_RANK" in os.environ else None


def _new_folder(plain: dict[str, Any]) -> Path:
    """runs/<time>-<loss>, in the current folder."""
    loss = re.sub(r"\W+", "", str(plain.get("loss", {}).get("_target_", "run")).rpartition(".")[2]).lower()
    return (Path("runs") / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}-{loss}").absolute()


def _made(folder: Path) -> Path:
    """It, or another of its names: of runs of one loss that begin in the same second each makes a folder of its own."""
    name, number = folder, 0
    while True:
        try:
            name.mkdir(parents=True)
        except FileExistsError:
            name, number = folder.with_name(f"{folder.name}-{os.getpid()}-{number}"), number + 1
        except OSError as error:
            raise RequestError(f"run_dir={name}: cannot be written: {error.strerror or error}") from error
        else:
            os.environ["PREFOPT_RUN_DIR"] = str(name)
            return name


def _difference(held: Any, asked: Any, key: str = "") -> str:
    """The first key at which two configs differ, with both values."""
    if isinstance(held, dict) and isinstance(asked, dict):
        for name in sorted({*held, *asked}):
            found = _difference(held.get(name), asked.get(name), f"{key}.{name}".lstrip("."))
            if found:
                return found
        return ""
    return "" if held == asked else f"{key} is {held!r} there and {asked!r} here"
