"""The checkpoints in a run folder, and which of them a run goes on from.

`last.ckpt` takes its name only when it is whole, and what had the name before is `previous.ckpt`: at every moment one
of the two is whole.
"""

from __future__ import annotations

import errno
import zipfile
from pathlib import Path

from prefopt.progress import say

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
FAILURES = {"MemoryError", "OutOfMemoryError", "AcceleratorError", "DistError"}
# What torch says in a RuntimeError where memory, maps or file handles have run out.
EXHAUSTED = ("unable to mmap", "unable to open file", "can't allocate memory", "not enough memory")
UNREADABLE = {LAST: "unreadable.ckpt", PREVIOUS: "unreadable-previous.ckpt"}


def sound(path: Path) -> bool:
    """Whether all bytes of a checkpoint are those that were written, and load without running code.

    torch.load does not look at the checksums of the archive that it reads: most flipped bits become other weights.
    Raises what `exhausted` knows, or OSError, where they cannot be read at this moment, which is no fault of theirs.
    """
    import torch

    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                return False
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except OSError as error:
        if error.errno != errno.EINVAL:  # damaged bytes point to places before the file
            raise
        return False
    except Exception as error:  # whatever zipfile or torch make of bytes that are no checkpoint
        if exhausted(error):
            raise
        return False
    return True


def exhausted(error: Exception) -> bool:
    """Whether the machine has failed, and not what it was to read."""
    names = {kind.__name__ for kind in type(error).__mro__}  # which of them there are depends on torch's version
    return bool(names & FAILURES) or any(words in str(error) for words in EXHAUSTED)


def newest_sound(folder: Path, main_process: bool) -> Path | None:
    """The last checkpoint, or where that is damaged the one before it; None: there is none to go on from.

    main_process: whether to say so, and to put a damaged one aside, where no save will take it for the previous one.
    """
    damaged = False
    for path in (folder / LAST, folder / PREVIOUS):
        if not path.is_file():
            continue
        if sound(path):
            if damaged:
                say(f"going on from {path.name}, the checkpoint before it")
            return path
        damaged = True
        if main_process:
            aside = UNREADABLE[path.name]
            say(f"warning: {path} is damaged: put aside as {aside}")
            path.replace(folder / aside)
    if damaged:
        say("warning: no sound checkpoint is left: the run begins anew")
    return None
