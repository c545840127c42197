"""Writing so that nothing is ever half there: everything appears under its name at once or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from prefopt.errors import RequestError, first_line

TEMPORARY = ".prefopt"  # how the hidden names end that `replacing` and `replacing_folder` give
TELLING = ("summary.json", "lineage.json")  # the files by which a folder is known to be what it should


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place when the block ends well, and is gone when it does not. Its
    content is on the disk before it has the name, so that a power cut leaves no empty file under it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=TEMPORARY, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o666 & ~_umask())
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Wait until what a file holds, or which names a folder has, would outlast a power cut."""
    with suppress(OSError) if path.is_dir() else nullcontext():  # not every file system can promise it of a folder
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def is_temporary(path: Path) -> bool:
    """Whether it is a file or folder of `replacing` or `replacing_folder`."""
    return path.name.startswith(".") and path.name.endswith(TEMPORARY)


def remove_temporaries(folder: Path, of: str = "") -> None:
    """What a kill has left of them; only where nobody else may be writing. of: what alone was written there."""
    for entry in folder.iterdir() if folder.is_dir() else ():
        if is_temporary(entry) and entry.name.startswith(f".{of}." if of else "."):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def is_empty(folder: Path, besides: str = "") -> bool:
    """Whether nothing lies in a folder, or it is not there. besides: the name of what does not count; what a kill has
    left does not either."""
    return not folder.is_dir() or all(entry.name == besides or is_temporary(entry) for entry in folder.iterdir())


def _umask() -> int:
    """Temporary files are private; what takes its place under a name has the permissions the user gives."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def at_home(path: str | Path, key: str) -> Path:
    """A path as it was written, with `~` as the home folder. RequestError where it names a user who has none here."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise RequestError(f"{key}={path}: no home folder of that name; name the folder from / on") from error


def check_can_be_named(path: Path, named: str) -> None:
    """Refuse what no file system can be asked for, such as a name of a thousand letters. named: "key=path"."""
    try:
        with suppress(FileNotFoundError, NotADirectoryError):
            path.lstat()
    except (OSError, ValueError) as error:
        raise RequestError(f"{named:.200}: {getattr(error, 'strerror', None) or error}") from error


def check_can_be_made(folder: Path, key: str) -> None:
    """Refuse a folder that is none, or that cannot be made or written to. Nothing is touched."""
    try:
        with suppress(FileNotFoundError, NotADirectoryError):
            folder.lstat()
        there = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
        if not there.is_dir():
            raise RequestError(f"{key}={folder}: {there} is a file; name a folder")
        may = os.access(there, os.W_OK | os.X_OK)
    except (OSError, ValueError) as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError(f"{key}={folder}: cannot be made: {getattr(error, 'strerror', None) or error}") from error
    if not may:
        raise RequestError(f"{key}={folder}: {there} cannot be written to; name another folder")


def check_can_be_replaced(folder: Path, key: str) -> None:
    """Refuse a folder with files whose place no other can take; see `replacing_folder`. Nothing is touched."""
    place = folder.resolve()
    if os.path.ismount(place) or Path.cwd().is_relative_to(place):
        raise RequestError(
            f"{key}={folder} cannot be replaced: it is a mount point, or this command was started in it; "
            "name another folder"
        )
    if not os.access(place.parent, os.W_OK | os.X_OK):
        raise RequestError(f"{key}={folder}: {place.parent} cannot be written to; name another folder")


def read_json(file: Path, named: str, way_out: str = "") -> dict[str, Any]:
    """The object that a JSON file holds; one that was cut or overwritten is refused. named: "run=runs/mine"."""
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RequestError(f"{named}: its {file.name} cannot be read: {first_line(error)}{way_out}") from error
    if not isinstance(found, dict):
        raise RequestError(f"{named}: its {file.name} is no object{way_out}")
    return found


def check_schema(held: dict[str, Any], known: int, named: str, way_out: str) -> None:
    """Refuse what another version of prefopt has written. named: "run=runs/mine: its summary.json"."""
    if held.get("schema") not in (None, known):
        what = f"{named} has schema {held['schema']!r:.80}"
        raise RequestError(f"{what}, and this version of prefopt reads {known}{way_out}")


def write_json(path: Path, content: Any) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """JSON lines."""
    with replacing(path) as temporary:
        temporary.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


def append_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """JSON lines after those that are there; see `stepped_lines` for what a kill may leave of them."""
    with path.open("a", encoding="utf-8") as stream:
        stream.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def keep_lines_until(path: Path, step: int) -> None:
    """Of stepped lines those up to a step: a run that resumes there writes the others again. None left, no file."""
    kept = [line for line in stepped_lines(path) if line["step"] <= step]
    if kept:
        write_lines(path, kept)
    else:
        path.unlink(missing_ok=True)


def stepped_lines(path: Path) -> list[dict[str, Any]]:
    """JSON lines with the optimiser step that they are of; a kill or a full disk may have left a part of one, which is
    not read. [] where there is no file."""
    found = path.read_text("utf-8", "replace").split("\n")[:-1] if path.exists() else []  # splitlines splits texts too
    return [looked for line in found if (looked := _stepped(line)) is not None]


def _stepped(line: str) -> dict[str, Any] | None:
    with suppress(ValueError):
        found = json.loads(line)
        return found if isinstance(found, dict) and isinstance(found.get("step"), int) else None
    return None


def locked(folder: Path, key: str, busy: str) -> FileLock:
    """The lock on a folder, which is made where it is missing. busy: what another process that holds it does there.

    Raises RequestError where it is held, or where the folder cannot be made.
    """
    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise RequestError(f"{key}={folder}: another process {busy}") from None
    except OSError as error:
        raise RequestError(f"{key}={folder}: cannot be written: {error.strerror or error}") from error
    return lock


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """An empty folder that takes the place of `folder` when the block ends well, and is gone when it does not.

    Folders above it that are missing are made only then, so that a failure leaves nothing at all. One that is there and
    empty stays: it may be a mount point, and what is above it closed to us.
    """
    folder = folder.resolve()
    with (_filling if folder.is_dir() and is_empty(folder) else _swapping)(folder) as temporary:
        yield temporary
        for path in temporary.rglob("*"):
            _sync(path)


@contextmanager
def _swapping(folder: Path) -> Iterator[Path]:
    """What `folder` holds goes at the moment at which the other is there."""
    above = next(parent for parent in folder.parents if parent.is_dir())
    temporary, aside = (Path(tempfile.mkdtemp(TEMPORARY, f".{folder.name}.", above)) for _ in range(2))
    try:
        yield temporary
        os.chmod(temporary, 0o777 & ~_umask())
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.is_dir():
            os.replace(folder, aside / "old")
        os.replace(temporary, folder)
        _sync(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def _filling(folder: Path) -> Iterator[Path]:
    """What was made is moved up into an empty folder, what tells that it is whole at the end."""
    remove_temporaries(folder)
    temporary = Path(tempfile.mkdtemp(TEMPORARY, ".", folder))
    try:
        yield temporary
        for entry in sorted(temporary.iterdir(), key=lambda entry: entry.name in TELLING):
            os.replace(entry, folder / entry.name)
        _sync(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def cached_folder(folder: Path, make: Callable[[Path], None]) -> Path:
    """`folder`, made by `make(empty folder)` unless it is there. Processes that want it at once wait for the first."""
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        remove_temporaries(folder.parent, of=folder.name)
        if not folder.is_dir():
            with replacing_folder(folder) as temporary:
                make(temporary)
    return folder
