"""Reference log-probs on disk: found by content, whole or not there, computed once whoever asks."""

from __future__ import annotations

import contextlib
import errno
import threading
from dataclasses import replace

import pytest
import torch

from prefopt.models.policy import Policy
from prefopt.models.reference import FrozenCopy, reference_logps
from prefopt.records import Batch
from prefopt.scoring import score, store
from prefopt.scoring.store import ReferenceStore, keys
from tests.scoring.test_forest import batch_of
from tests.toy import toy_model

ROWS = batch_of([(4, [3, 5], False), (2, [1, 6], False), (4, [2], True)])


class Speaker:
    """Says what the toy model says, and counts how often and in how many rows it was asked."""

    def __init__(self) -> None:
        self.model, self.asked = Policy(toy_model()), 0

    @contextlib.contextmanager
    def __call__(self):
        self.asked += 1
        yield self.model


def test_what_is_read_is_what_was_said(tmp_path):
    speaker = Speaker()
    assert ReferenceStore(tmp_path).logps(ROWS) is None
    assert ReferenceStore(tmp_path).fill([ROWS], 1, speaker) == len(ROWS)
    read, said = ReferenceStore(tmp_path).logps(ROWS), score(speaker.model, ROWS)
    assert read.dtype == torch.float64
    torch.testing.assert_close(read, said.logps, rtol=0, atol=1e-12)
    # In another order, under other prompts' numbers, and only some of them.
    some = Batch.of("pairs", ROWS.prompts()[:1], [ROWS.completions()[i] for i in _rows_of(0)[::-1]], [0, 0])
    own = score(speaker.model, some)
    torch.testing.assert_close(ReferenceStore(tmp_path).logps(some), own.logps, rtol=0, atol=1e-12)


def _rows_of(group: int) -> list[int]:
    return [i for i, g in enumerate(ROWS.group.tolist()) if g == group]


def test_computed_once(tmp_path):
    """Loss, β and seed are no part of a row; what is there is not asked again, what is new alone is."""
    speaker, known = Speaker(), ReferenceStore(tmp_path)
    known.fill([ROWS], 1, speaker)
    assert ReferenceStore(tmp_path).fill([ROWS, ROWS], 2, speaker) == 0
    assert speaker.asked == 1
    more = batch_of([(4, [3], False), (3, [2, 2], False)], seed=1)
    both = Batch.of(
        "pairs",
        [*ROWS.prompts(), *more.prompts()],
        [*ROWS.completions(), *more.completions()],
        [*ROWS.group.tolist(), *(more.group + len(ROWS.prompt_lengths)).tolist()],
    )
    assert known.fill([both], 1, speaker) == len(more)
    assert ReferenceStore(tmp_path).logps(both) is not None


def test_other_tokens_miss(tmp_path):
    ReferenceStore(tmp_path).fill([ROWS], 1, Speaker())
    prompts = ROWS.prompt_ids.clone()
    prompts[0] = (prompts[0] + 1) % 5
    assert ReferenceStore(tmp_path).logps(replace(ROWS, prompt_ids=prompts)) is None
    # A token that moves from the prompt's end to the completion's beginning makes another row.
    a = Batch.of("pairs", [torch.tensor([1, 2])], [torch.tensor([3])], [0])
    b = Batch.of("pairs", [torch.tensor([1])], [torch.tensor([2, 3])], [0])
    assert keys(a) != keys(b)


@pytest.mark.parametrize("part", [1, 7, 10**6])
def test_parts(part, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "PART", part)
    batches = [
        Batch.of("pairs", [ROWS.prompts()[g]], [c], [0]) for g, c in zip(ROWS.group, ROWS.completions(), strict=True)
    ]
    speaker = Speaker()
    ReferenceStore(tmp_path).fill(batches, len(batches), speaker)
    assert len(list(tmp_path.glob("*.safetensors"))) == {1: 5, 7: 2, 10**6: 1}[part]
    found = ReferenceStore(tmp_path).logps(ROWS)
    torch.testing.assert_close(found, score(speaker.model, ROWS).logps, rtol=0, atol=1e-12)


def test_a_damaged_part_is_computed_again(tmp_path, capsys):
    ReferenceStore(tmp_path).fill([ROWS], 1, Speaker())
    (path,) = tmp_path.glob("*.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    for damaged in (bytes(content), bytes(content[:-40]), b""):
        path.write_bytes(damaged)
        assert ReferenceStore(tmp_path).logps(ROWS) is None
        assert "is damaged and computed again" in capsys.readouterr().err
        assert ReferenceStore(tmp_path).fill([ROWS], 1, Speaker()) == len(ROWS)


@pytest.mark.parametrize("part", [1, 10**6])
def test_a_fill_that_is_interrupted_leaves_what_it_has(part, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "PART", part)
    first = Batch.of("pairs", ROWS.prompts()[:1], [ROWS.completions()[_rows_of(0)[0]]], [0])

    def dying():
        yield first
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ReferenceStore(tmp_path).fill(dying(), 2, Speaker())
    assert [p.suffix for p in tmp_path.iterdir() if p.name != ".lock"] == [".safetensors"]
    assert ReferenceStore(tmp_path).fill([ROWS], 1, Speaker()) == len(ROWS) - 1


def test_what_is_complete_needs_no_writing(tmp_path, monkeypatch, capsys):
    """And where nothing can be written, rows stay missing, which is said."""
    ReferenceStore(tmp_path).fill([ROWS], 1, Speaker())

    def denied(self, timeout):
        raise PermissionError(errno.EACCES, "denied", str(tmp_path))

    monkeypatch.setattr(store.FileLock, "acquire", denied)
    assert ReferenceStore(tmp_path).fill([ROWS], 1, Speaker()) == 0
    assert capsys.readouterr().err == ""
    speaker = Speaker()
    assert ReferenceStore(tmp_path / "other").fill([ROWS], 1, speaker) == 0
    assert speaker.asked == 0
    assert "are not kept" in capsys.readouterr().err


def test_a_part_that_cannot_be_read_now_stays(tmp_path, monkeypatch, capsys):
    ReferenceStore(tmp_path).fill([ROWS], 1, Speaker())

    def unreadable(*_, **__):
        raise OSError(errno.EMFILE, "too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(store, "safe_open", unreadable)
        assert ReferenceStore(tmp_path).logps(ROWS) is None
    assert "cannot be read" in capsys.readouterr().err
    assert ReferenceStore(tmp_path).logps(ROWS) is not None


def test_two_at_once(tmp_path, capsys):
    """The second waits for the first and asks nobody."""
    inside, done = threading.Event(), threading.Event()

    class Slow(Speaker):
        def __call__(self):
            inside.set()
            done.wait(10)
            return super().__call__()

    first, second = Slow(), Speaker()
    one = threading.Thread(target=lambda: ReferenceStore(tmp_path).fill([ROWS], 1, first))
    one.start()
    inside.wait(10)
    other = ReferenceStore(tmp_path)
    two = threading.Thread(target=lambda: other.fill([ROWS], 1, second))
    two.start()
    two.join(0.3)
    assert two.is_alive()
    done.set()
    one.join(20)
    two.join(20)
    assert (first.asked, second.asked) == (1, 0)
    assert other.logps(ROWS) is not None
    assert "waiting for it" in capsys.readouterr().err


def test_a_reference_reads_its_store(tmp_path):
    """Nothing is loaded for rows that are there; others are asked of the model."""
    loaded = []

    def load():
        loaded.append(1)
        return Policy(toy_model())

    reference = FrozenCopy(load)
    reference.store = ReferenceStore(tmp_path)
    reference.store.fill([ROWS], 1, Speaker())
    read = reference_logps(reference, ROWS)
    assert not loaded
    other = batch_of([(3, [2, 2], False)], seed=4)
    torch.testing.assert_close(read, score(Policy(toy_model()), ROWS).logps, rtol=0, atol=1e-12)
    assert reference_logps(reference, other).shape == (2, 2)
    assert loaded


def test_keys_that_begin_alike():
    """64 of a key's 128 bits find the place, all of them the row."""
    part = store._Part(torch.tensor([[1, 2], [1, 7], [4, 0]]), torch.tensor([0, 1, 3, 6]), torch.arange(6.0))
    assert part.get((1, 7)).tolist() == [1.0, 2.0]
    assert part.get((1, 2)).tolist() == [0.0]
    assert part.get((1, 5)) is None
    assert part.get((5, 0)) is None
