"""Reference log-probs on disk: computed once per completion, read by every run that holds itself against the same
weights.

A folder belongs to the weights and the precision they spoke in; a row is found by its token ids. So the loss, β, the
seed, the order and the split do not matter to it, and another template or truncation asks for other rows.
"""

from __future__ import annotations

import errno
import hashlib
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from prefopt.files import replacing
from prefopt.models.policy import Policy
from prefopt.progress import say, track
from prefopt.records import Batch
from prefopt.scoring.score import score

VERSION = 1  # a way to score that differs by more than rounding, or to write, must change it: the key holds it
PART = 2**22  # tokens of a file: what a fill has written when it is killed is what the next one need not compute

Speaker = Callable[[], AbstractContextManager[Policy]]


class ReferenceStore:
    """Log-probs of completions under prompts, token by token, mapped into memory from the parts in `folder`.

    A part is a safetensors file: keys [M, 2], starts [M + 1], logps [tokens] in nats. It appears whole or not at all;
    one that does not add up is removed, and its rows are computed again.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._parts: dict[Path, _Part] = {}
        self._read()

    def logps(self, batch: Batch) -> Tensor | None:
        """[N, T] nats, 0 beyond a row's end; None where a row is not here."""
        found = [self._get(key) for key in keys(batch)]
        if any(values is None for values in found):
            return None
        return pad_sequence([values for values in found if values is not None], True).to(batch.group.device)

    def fill(self, batches: Iterable[Batch], total: int, speaker: Speaker) -> int:
        """Compute what is not here yet; returns how many rows that was. One process at a time does so: another one that
        wants the same waits, and finds it here. The speaker is only asked when there is something to say, and nothing
        is written when there is not. Where nothing can be written, rows stay missing."""
        batches = iter(batches)
        first = next((batch for batch in batches if self._without_known(batch, _New()) is not None), None)
        if first is None:
            return 0
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._alone():
                self._read()
                return self._fill(chain([first], batches), total, speaker)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            say(f"reference log-probs are not kept, and computed in every step: {error.filename} cannot be written to")
            return 0

    @contextmanager
    def _alone(self) -> Iterator[None]:
        lock = FileLock(self.folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say("another run is computing reference log-probs: waiting for it")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    @torch.no_grad()
    def _fill(self, batches: Iterable[Batch], total: int, speaker: Speaker) -> int:
        made, new = 0, _New()
        try:
            for batch in track(batches, "reference log-probs", total):
                wanted = self._without_known(batch, new)
                if wanted is None:
                    continue
                with speaker() as policy:
                    scores = score(policy, wanted.to(policy.device))
                rows = zip(keys(wanted), scores.logps.cpu(), wanted.completion_lengths.tolist(), strict=True)
                for key, values, length in rows:
                    new.add(key, values[:length])
                made += len(wanted)
                if new.tokens >= PART:
                    self._write(new)
                    new = _New()
        finally:  # an interrupted pass need not begin again
            self._write(new)
        return made

    def _without_known(self, batch: Batch, new: _New) -> Batch | None:
        """The rows of a batch that are neither here nor about to be, each once."""
        prompts, completions, groups = batch.prompts(), batch.completions(), batch.group.tolist()
        rows = {k: r for r, k in enumerate(keys(batch)) if k not in new.rows and self._get(k) is None}
        if not rows:
            return None
        used = {group: i for i, group in enumerate(dict.fromkeys(groups[r] for r in rows.values()))}
        wanted = [completions[r] for r in rows.values()]
        return Batch.of("rollouts", [prompts[g] for g in used], wanted, [used[groups[r]] for r in rows.values()])

    def _get(self, key: Key) -> Tensor | None:
        return next((v for v in (part.get(key) for part in self._parts.values()) if v is not None), None)

    def _write(self, new: _New) -> None:
        if not new.rows:
            return
        tensors = new.tensors()
        sums = {name: _checksum(tensor) for name, tensor in tensors.items()}
        path = self.folder / f"{sums['keys']}{sums['logps']}.safetensors"
        with replacing(path) as temporary:
            save_file(tensors, temporary, metadata=sums)
        self._parts[path] = _Part.read(path)

    def _read(self) -> None:
        for path in sorted(self.folder.glob("[!.]*.safetensors")):
            if path not in self._parts:
                try:
                    self._parts[path] = _Part.read(path)
                except OSError as error:  # no fault of the file's
                    say(f"warning: {path} cannot be read, its rows are computed again: {error.strerror or error}")
                except (SafetensorError, ValueError, KeyError, TypeError) as error:
                    say(f"warning: {path} is damaged and computed again: {error}")
                    with suppress(OSError):
                        path.unlink(missing_ok=True)


Key = tuple[int, int]


def keys(batch: Batch) -> list[Key]:
    """128 bits of each row's prompt and completion ids."""
    prompts, completions = ([_bytes(ids) for ids in texts] for texts in (batch.prompts(), batch.completions()))
    return [_key(prompts[g], completions[r]) for r, g in enumerate(batch.group.tolist())]


def _bytes(ids: Tensor) -> bytes:
    return ids.cpu().numpy().astype(np.int64, copy=False).tobytes()


def _key(prompt: bytes, completion: bytes) -> Key:
    found = hashlib.blake2b(len(prompt).to_bytes(8, "little") + prompt + completion, digest_size=16).digest()
    return int.from_bytes(found[:8], "little", signed=True), int.from_bytes(found[8:], "little", signed=True)


class _New:
    """Rows of a part to be."""

    def __init__(self) -> None:
        self.rows: dict[Key, Tensor] = {}
        self.tokens = 0

    def add(self, key: Key, values: Tensor) -> None:
        self.rows[key] = values.clone()
        self.tokens += len(values)

    def tensors(self) -> dict[str, Tensor]:
        order = sorted(self.rows)
        lengths = torch.tensor([0] + [len(self.rows[key]) for key in order])
        logps = torch.cat([self.rows[key] for key in order])
        return {"keys": torch.tensor(order), "starts": lengths.cumsum(0), "logps": logps}


class _Part:
    """A file of rows, found by bisection."""

    def __init__(self, keys: Tensor, starts: Tensor, logps: Tensor) -> None:
        self._first, self._second = keys.numpy().T
        self._starts, self._logps = starts.numpy(), logps

    @classmethod
    def read(cls, path: Path) -> _Part:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in ("keys", "starts", "logps")}
            wrong = [name for name, tensor in tensors.items() if file.metadata()[name] != _checksum(tensor)]
        if wrong:
            raise ValueError(f"its {wrong[0]} are not those that were written")
        return cls(**tensors)

    def get(self, key: Key) -> Tensor | None:
        at = int(np.searchsorted(self._first, key[0]))
        while at < len(self._first) and self._first[at] == key[0]:
            if self._second[at] == key[1]:
                return self._logps[self._starts[at] : self._starts[at + 1]]
            at += 1
        return None


def _checksum(tensor: Tensor) -> str:
    return f"{zlib.crc32(tensor.contiguous().numpy().data):08x}"
