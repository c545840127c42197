"""Checkpoints on disk: whole under their names at every moment, and a damaged one told from a sound one."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import stat
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from prefopt.callbacks import steps
from prefopt.callbacks.steps import rows_until
from prefopt.callbacks.storage import Storage
from prefopt.errors import RequestError
from prefopt.evaluate import check_out
from prefopt.files import (
    append_lines,
    cached_folder,
    check_can_be_replaced,
    keep_lines_until,
    replacing,
    replacing_folder,
    stepped_lines,
    write_json,
)
from prefopt.module import _restore_rng, _rng_state
from prefopt.objectives import create
from prefopt.run import RunFolder, check_run_folder
from prefopt.run.checkpoints import LAST, PREVIOUS, UNREADABLE, newest_sound, sound
from prefopt.run.folder import _made
from tests.test_selfcheck import steps_of
from tests.toy import train_toy

PLAIN = {"loss": {"_target_": "x"}, "seed": 0}


def checkpoint(step: int) -> dict:
    return {"step": step, "weights": torch.arange(500.0) + step, "names": [f"name {i}" for i in range(50)]}


def save(folder, step: int) -> None:
    Storage().save_checkpoint(checkpoint(step), folder / LAST)


def step_of(path) -> int:
    return torch.load(path, weights_only=True)["step"]


def test_the_one_before_is_kept(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step)
    assert sorted(os.listdir(tmp_path)) == [LAST, PREVIOUS]
    assert (step_of(tmp_path / LAST), step_of(tmp_path / PREVIOUS)) == (3, 2)
    found = Storage().load_checkpoint(tmp_path / LAST, weights_only=True)
    assert torch.equal(found["weights"], checkpoint(3)["weights"])


def test_a_sound_one_at_every_moment(tmp_path, monkeypatch):
    """Killed before or after any change of a name: the newest that is whole is no older than the last but one."""
    save(tmp_path, 1)
    save(tmp_path, 2)
    seen = []

    def watched(old, new, move=os.replace):
        seen.append(step_of(newest_sound(tmp_path, False)))
        move(old, new)
        seen.append(step_of(newest_sound(tmp_path, False)))

    monkeypatch.setattr("os.replace", watched)
    save(tmp_path, 3)
    assert seen == [2, 2, 2, 3]


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    """torch says it in words about its archive; the system's are passed on."""
    save(tmp_path, 1)
    save(tmp_path, 2)

    def full(content, file):
        file.write(b"half")
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")  # noqa: B904

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left on device"):
        save(tmp_path, 3)
    assert sorted(os.listdir(tmp_path)) == [LAST, PREVIOUS]
    assert (step_of(tmp_path / LAST), step_of(tmp_path / PREVIOUS)) == (2, 1)


def test_damage_is_noticed(tmp_path):
    """A flipped bit anywhere that is not padding between the archive's parts, and any end that is missing."""
    save(tmp_path, 1)
    whole, path, draw = (tmp_path / LAST).read_bytes(), tmp_path / "damaged", random.Random(0)
    shutil.copy(tmp_path / LAST, path)
    assert sound(path)
    for _ in range(40):
        place = draw.randrange(len(whole))
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << draw.randrange(8)]) + whole[place + 1 :])
        if sound(path):
            found = torch.load(path, weights_only=True)
            assert torch.equal(found.pop("weights"), checkpoint(1)["weights"]), place
            assert found == {"step": 1, "names": checkpoint(1)["names"]}, place
    start = whole.index(np.arange(1, 501, dtype=np.float32).tobytes())
    path.write_bytes(whole[: start + 9] + bytes([whole[start + 9] ^ 64]) + whole[start + 10 :])
    assert not sound(path)
    torch.load(path, weights_only=True)  # which notices nothing
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert not sound(path), length


def test_a_damaged_one_is_put_aside(tmp_path, capsys):
    save(tmp_path, 1)
    save(tmp_path, 2)
    (tmp_path / LAST).write_bytes((tmp_path / LAST).read_bytes()[:-200])
    assert newest_sound(tmp_path, False) == tmp_path / PREVIOUS
    assert sorted(os.listdir(tmp_path)) == [LAST, PREVIOUS], "another rank moves nothing"
    assert newest_sound(tmp_path, True) == tmp_path / PREVIOUS
    assert sorted(os.listdir(tmp_path)) == [PREVIOUS, UNREADABLE[LAST]]
    assert "last.ckpt is damaged: put aside as unreadable.ckpt" in capsys.readouterr().err
    save(tmp_path, 3)  # must not take the damaged one for the previous
    assert (step_of(tmp_path / LAST), step_of(tmp_path / PREVIOUS)) == (3, 1)


def test_none_is_left(tmp_path, capsys):
    assert newest_sound(tmp_path / "nowhere", True) is None
    assert capsys.readouterr().err == ""
    for name in (LAST, PREVIOUS):
        (tmp_path / name).write_bytes(b"half")
    assert newest_sound(tmp_path, True) is None
    assert "begins anew" in capsys.readouterr().err


def killed_in(context, path) -> None:
    """What `replacing` or `replacing_folder` leaves when the process is killed inside."""
    with context(path) as temporary:
        kept = shutil.copytree if temporary.is_dir() else shutil.copy
        (temporary / "weights" if temporary.is_dir() else temporary).write_bytes(b"half")
        kept(temporary, path.with_name("kept"))
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.with_name("kept").rename(temporary)


@pytest.mark.parametrize("begun", [False, True])
def test_what_a_kill_leaves_is_removed(tmp_path, begun):
    """Files and folders that were to take a name, in a folder that has no run yet and in one that has."""
    run = tmp_path / "run"
    if begun:
        with RunFolder(str(run), PLAIN):
            pass
    killed_in(replacing, run / "summary.json" if begun else run / "config.json")
    killed_in(replacing, run / "checkpoints/last.ckpt")
    killed_in(replacing_folder, run / "model")
    hidden = [path for path in run.rglob(".*") if path.name != ".lock"]
    assert len(hidden) == 3
    if not begun:
        (run / "checkpoints").rename(tmp_path / "checkpoints")  # none without a config
    check_run_folder(str(run), PLAIN)
    with RunFolder(str(run), PLAIN) as opened:
        assert not [path for path in run.rglob(".*") if path.name != ".lock"]
        assert opened.summary["status"] == "interrupted"


def test_what_a_kill_leaves_in_the_cache_goes_when_it_is_made_again(tmp_path):
    killed_in(replacing_folder, tmp_path / "tokens-1")
    killed_in(replacing_folder, tmp_path / "tokens-10")
    of_another = {path.name for path in tmp_path.glob(".tokens-10.*")}
    assert (len(of_another), len(list(tmp_path.glob(".tokens-1.*")))) == (1, 1)
    cached_folder(tmp_path / "tokens-1", lambda folder: (folder / "rows").write_text("1"))
    found = {path.name for path in tmp_path.iterdir() if path.name != "tokens-1.lock"}
    assert found == {"tokens-1", *of_another}


@pytest.mark.parametrize("named", ["as it is", "by a link", "from inside"])
def test_an_empty_folder_stays_and_is_filled(named, tmp_path, monkeypatch):
    """It may be a mount point, or lie where nothing else can be made."""
    out = tmp_path / "out"
    out.mkdir()
    killed_in(replacing_folder, out / "earlier")
    check_out(out)  # what a kill left there does not count, and goes
    (tmp_path / "link").symlink_to(out)
    monkeypatch.chdir(out)
    folder = {"as it is": out, "by a link": tmp_path / "link", "from inside": Path(".")}[named]
    place, beside = out.stat().st_ino, sorted(os.listdir(tmp_path))
    with replacing_folder(folder) as temporary:
        assert sorted(os.listdir(tmp_path)) == beside
        assert os.listdir(out) == [temporary.name]
        (temporary / "summary.json").write_text("{}")
        (temporary / "model").mkdir()
        (temporary / "model/weights").write_text("1")
    assert sorted(os.listdir(out)) == ["model", "summary.json"]
    assert (out / "model/weights").read_text() == "1"
    assert out.stat().st_ino == place
    assert (tmp_path / "link").is_symlink()


def test_what_tells_that_a_folder_is_whole_comes_last_and_a_failure_leaves_it_empty(tmp_path, monkeypatch):
    out, moved = tmp_path / "out", []
    out.mkdir()
    monkeypatch.setattr("os.replace", lambda old, new, move=os.replace: moved.append(Path(new).name) or move(old, new))

    def fails():
        with replacing_folder(out) as temporary:
            (temporary / "summary.json").write_text("{}")
            raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        fails()
    assert (os.listdir(out), moved) == ([], [])
    with replacing_folder(out) as temporary:
        for name in ("summary.json", "test.jsonl", "a", "z"):
            (temporary / name).write_text("{}")
    assert sorted(moved[:-1]) == ["a", "test.jsonl", "z"]
    assert moved[-1] == "summary.json"


@pytest.mark.parametrize("linked", [False, True])
def test_a_folder_that_holds_something_is_swapped_at_once(linked, tmp_path, monkeypatch):
    out, moved = tmp_path / "out", []
    out.mkdir()
    (out / "old").touch()
    (tmp_path / "link").symlink_to(out)
    monkeypatch.setattr("os.replace", lambda old, new, move=os.replace: moved.append(Path(new).name) or move(old, new))
    with replacing_folder(tmp_path / "link" if linked else out) as temporary:
        for name in ("new", "newer"):
            (temporary / name).touch()
        assert os.listdir(out) == ["old"]
    assert sorted(os.listdir(out)) == ["new", "newer"]
    assert moved == ["old", "out"]
    assert sorted(os.listdir(tmp_path)) == ["link", "out"]
    assert (tmp_path / "link").is_symlink()


def test_a_folder_that_cannot_be_swapped_is_refused(tmp_path, monkeypatch):
    """Before any work: a mount point, one that a shell stands in, one in a folder that is closed to us."""
    (tmp_path / "out/deep").mkdir(parents=True)
    check_can_be_replaced(tmp_path / "out", "out")
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path / "out/deep")
        for named in (".", "..", tmp_path / "out"):
            with pytest.raises(RequestError, match="cannot be replaced: it is a mount point, or this command"):
                check_can_be_replaced(Path(named), "out")
    with monkeypatch.context() as patch:
        patch.setattr("os.path.ismount", lambda path: str(path).endswith("out"))
        with pytest.raises(RequestError, match=r"out=.* cannot be replaced"):
            check_can_be_replaced(tmp_path / "out", "out")
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path.resolve())
    with pytest.raises(RequestError, match=f"{tmp_path.name} cannot be written to; name another folder"):
        check_can_be_replaced(tmp_path / "out", "out")


def test_content_is_on_the_disk_before_it_has_the_name(tmp_path, monkeypatch):
    """Whatever a power cut leaves under a name is whole: a file, both checkpoints, a folder."""
    synced: dict[int, int] = {}  # bytes by inode
    moved: list[str] = []

    def sync(handle, really=os.fsync):
        synced[os.fstat(handle).st_ino] = os.fstat(handle).st_size
        really(handle)

    def move(old, new, really=os.replace):
        hidden = [path for path in tmp_path.glob(".*.prefopt") if path.is_file()]
        for path in (Path(old), *hidden, *Path(old).rglob("*")):
            if path.is_file():
                found = path.stat()
                assert synced.get(found.st_ino) == found.st_size, (path, new)
        moved.append(Path(new).name)
        synced.pop(Path(new).parent.stat().st_ino, None)
        really(old, new)

    monkeypatch.setattr("os.fsync", sync)
    monkeypatch.setattr("os.replace", move)
    write_json(tmp_path / "summary.json", {"seed": 0})
    save(tmp_path, 1)
    save(tmp_path, 2)
    assert tmp_path.stat().st_ino in synced, "the names are on the disk, too"
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "new", tmp_path / "empty"):
        with replacing_folder(folder) as temporary:
            (temporary / "model").mkdir()
            (temporary / "model/weights").write_bytes(b"weights")
            (temporary / "summary.json").write_text("{}")
    assert moved == ["summary.json", LAST, PREVIOUS, LAST, "new", "model", "summary.json"]
    assert {tmp_path.stat().st_ino, (tmp_path / "empty").stat().st_ino} <= set(synced)


@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_the_system_cannot_promise(what, tmp_path, monkeypatch):
    """A file whose content may be lost is not written; a folder's names are a matter of the file system."""

    def sync(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode) == (what == "folder"):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr("os.fsync", sync)
    with pytest.raises(OSError, match="Invalid") if what == "file" else nullcontext():
        write_json(tmp_path / "summary.json", {})
    assert os.listdir(tmp_path) == ([] if what == "file" else ["summary.json"])


def test_runs_of_one_second_have_folders_of_their_own(tmp_path, monkeypatch):
    """Jobs of one loss that a launcher starts at once, each named by the clock; one that is refused leaves none."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFOPT_RUN_DIR", "")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr("prefopt.run.folder.time.strftime", lambda *_: "2026-01-01_00-00-00")
    seeds = [{**PLAIN, "seed": seed} for seed in range(3)]
    first, second, beside = (RunFolder(None, plain, plain["seed"] < 2) for plain in seeds)
    with first, second, beside:
        assert first.path == tmp_path / "runs/2026-01-01_00-00-00-x"
        assert os.environ["PREFOPT_RUN_DIR"] == str(second.path) != str(first.path)
        assert [json.loads((run.path / "config.json").read_text())["seed"] for run in (first, second)] == [0, 1]
        assert len(os.listdir("runs")) == 2, "another rank makes none"
        monkeypatch.setenv("LOCAL_RANK", "1")
        assert RunFolder(None, seeds[1], main_process=False).path == second.path
        assert second.discard()
        assert os.listdir("runs") == [first.path.name]
        assert first.discard()
        assert os.listdir() == []


def test_of_those_who_want_a_name_at_once_one_has_it(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(_made, [tmp_path / "runs/dpo"] * 40))
    assert len(set(found)) == len(os.listdir(tmp_path / "runs")) == 40
    assert tmp_path / "runs/dpo" in found


def test_a_place_that_takes_no_run_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    Path("runs").write_text("a file")
    with pytest.raises(RequestError, match=r"run_dir=.*cannot be written: Not a directory"):
        RunFolder(None, PLAIN).__enter__()


def test_another_rank_leaves_its_reason(tmp_path):
    """The main process may be killed before it can say anything; what it has said stands."""
    with RunFolder(str(tmp_path / "run"), PLAIN) as run, RunFolder(str(tmp_path / "run"), PLAIN, False) as beside:
        beside.fail_beside("RuntimeError: out of memory")
        held = json.loads((run.path / "summary.json").read_text())
        assert (held["status"], held["error"]) == ("failed", "RuntimeError: out of memory")
        assert held["config_hash"] == run.summary["config_hash"]
        run.save(status="finished")
        beside.fail_beside("too late")
        assert json.loads((run.path / "summary.json").read_text())["error"] is None


@pytest.mark.parametrize("name", ["notes.txt", ".notes.settings", ".config.json.k3jd9x_q"])
def test_files_of_others_are_not_ours_to_remove(tmp_path, name):
    (tmp_path / name).write_text("mine")
    for refused in (
        lambda: check_run_folder(str(tmp_path), PLAIN),
        lambda: RunFolder(str(tmp_path), PLAIN).__enter__(),
    ):
        with pytest.raises(RequestError, match="holds other files and no run"):
            refused()
    assert (tmp_path / name).read_text() == "mine"


def test_rows_are_cut_back_to_a_step():
    table = "step,loss\r\n1,0.5\r\n2,0.4\r\n3,0.3\r\n"
    assert rows_until(table, 2) == "step,loss\r\n1,0.5\r\n2,0.4\r\n"
    assert rows_until(table, 0) == "step,loss\r\n"
    assert rows_until(table + "4,0", 9) == table  # a kill
    assert rows_until(table.replace("2,0.4", "2,0.42,0.4"), 9) == table.replace("2,0.4\r\n", "")  # a full disk
    assert rows_until(table.replace("2,", "x,"), 9) == table.replace("2,0.4\r\n", "")
    for nothing in ("", "ste", "step,loss"):
        assert rows_until(nothing, 9) == ""


def test_looks_that_cannot_be_read_are_left_out(tmp_path):
    path = tmp_path / "validation.jsonl"
    path.write_bytes(b'{"step": 2}\n{"step": 3, "lo{"step": 4}\n[1]\n\xff\n{"step": 6}\n{"step": 8, "lo')
    assert stepped_lines(path) == [{"step": 2}, {"step": 6}]


def test_random_numbers_go_on_where_they_were(tmp_path):
    """Every generator, in little room: 2500 bytes each for Python's and numpy's, torch's own 5056."""

    def draw():
        return random.gauss(0, 1), np.random.standard_normal(), torch.rand(3).tolist()

    draw()
    cpu = torch.device("cpu")
    torch.save(_rng_state(cpu), tmp_path / "rng")
    expected = [draw() for _ in range(700)]
    _restore_rng(torch.load(tmp_path / "rng", weights_only=True), cpu)
    assert [draw() for _ in range(700)] == expected
    assert sum(t.nbytes for t in (_rng_state(cpu)["python"][1], _rng_state(cpu)["numpy"][0])) == 4 * (625 + 624)


def test_of_gpus_a_rank_keeps_its_own(monkeypatch):
    """A run begun beside eight GPUs goes on where one is visible, and a run on the CPU asks none."""
    held, asked = {}, []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: asked.append(device) or torch.tensor([7]))
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: held.update({device: state}))
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", None)
    third, first = torch.device("cuda", 3), torch.device("cuda", 0)
    state = _rng_state(third)
    assert (asked, state["cuda"]) == ([third], [torch.tensor([7])])
    _restore_rng(state, first)
    assert held == {first: torch.tensor([7])}
    _restore_rng(_rng_state(torch.device("cpu")), torch.device("cpu"))
    _restore_rng(state, torch.device("cpu"))
    assert (len(asked), len(held)) == (1, 1)


def test_what_cannot_be_read_now_is_not_damaged(tmp_path, monkeypatch):
    """A disk that fails for a moment costs no checkpoint: nothing is put aside."""
    torch.save({"a": 1}, tmp_path / LAST)
    torch.save({"a": 0}, tmp_path / PREVIOUS)

    def fails(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(zipfile, "ZipFile", fails)
        with pytest.raises(OSError, match="Input/output"):
            newest_sound(tmp_path, True)
    assert newest_sound(tmp_path, True) == tmp_path / LAST


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("unable to mmap 4096 bytes from file <last.ckpt>: Cannot allocate memory (12)"),
        RuntimeError("unable to open file <last.ckpt> in read-only mode: Too many open files (24)"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried"),
        torch.OutOfMemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_a_machine_at_its_limits_damages_nothing(error, tmp_path, monkeypatch):
    """torch says so in a RuntimeError, as it does of bytes that are no checkpoint."""
    for name in (LAST, PREVIOUS):
        torch.save({"a": 1}, tmp_path / name)

    def fails(*_, **__):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", fails)
        with pytest.raises(type(error)):
            newest_sound(tmp_path, True)
    assert newest_sound(tmp_path, True) == tmp_path / LAST


def test_the_peak_of_memory_is_that_of_all_attempts(tmp_path, monkeypatch):
    """100 bytes in the first, 70 in the second, 120 in the third."""
    held = None
    for used, peak in ((100, 100), (70, 100), (120, 120)):
        clock = steps_of(tmp_path)
        if held is not None:
            clock.load_state_dict(held)
        monkeypatch.setattr(steps, "peak_memory_bytes", lambda used=used: used)
        held = clock.state_dict()
        clock.on_train_end(None, None)
        assert held["peak_memory"] == clock.peak_memory == peak
    del held["peak_memory"]  # as an earlier version saved it
    clock.load_state_dict(held)
    assert clock.state_dict()["peak_memory"] == 120


def test_two_that_are_damaged_are_both_kept(tmp_path):
    for name in (LAST, PREVIOUS):
        (tmp_path / name).write_bytes(name.encode())
    assert newest_sound(tmp_path, True) is None
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "unreadable.ckpt": LAST,
        "unreadable-previous.ckpt": PREVIOUS,
    }


def test_stepped_lines(tmp_path):
    """A kill leaves half a line, even where the half is JSON; a run that resumes at step 2 writes step 3 again."""
    path = tmp_path / "looks.jsonl"
    append_lines(path, [{"step": 1}, {"step": 2}])
    append_lines(path, [{"step": 3}])
    with path.open("a") as stream:
        stream.write('{"step": 4}')
    assert stepped_lines(path) == [{"step": 1}, {"step": 2}, {"step": 3}]
    keep_lines_until(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    keep_lines_until(path, 0)
    assert not path.exists()
    keep_lines_until(path, 0)


def test_every_rank_goes_on_with_its_own(monkeypatch):
    class SecondOfTwo:
        global_rank, world_size = 1, 2

    def gather(found, own):
        found[:] = ["of the first", own]

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    module, trainer = train_toy(create("sft")), SecondOfTwo()
    module.trainer = trainer
    saved = {"state_dict": {f"policy.{name}": p for name, p in module.policy.trainable().items()}}
    module.on_save_checkpoint(saved)
    assert saved["rng"][0] == "of the first"
    module.on_load_checkpoint(saved)
    assert module._resumed_rng is saved["rng"][1]


@pytest.mark.parametrize(
    ("status", "finished"), [("finished", True), ("stopped", True), ("interrupted", False), (None, False)]
)
def test_other_ranks_leave_a_finished_run_alone(status, finished, tmp_path):
    """A launcher starts all of them; one that trained would wait for the main one, which has gone."""
    if status is not None:
        (tmp_path / "summary.json").write_text(json.dumps({"status": status}))
    with RunFolder(str(tmp_path), {"seed": 0}, main_process=False) as run:
        assert run.finished is finished
