"""A checkpoint is gone on from by the run that wrote it, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.trainer.connectors import checkpoint_connector

from prefopt.callbacks.belonging import Belonging
from prefopt.errors import RequestError

WHOLE = {
    "state_dict": {"weight": torch.ones(2)},
    "loops": {"fit_loop": 1},
    "callbacks": {"Belonging": Belonging("mine").state_dict()},
    "optimizer_states": [{}],
    "lr_schedulers": [{}],
    "rng": [{}],
}


def saved(folder: Path, content: Any) -> Path:
    torch.save(content, folder / "last.ckpt")
    return folder / "last.ckpt"


def test_its_own_is_taken(tmp_path: Path):
    with Belonging("mine").taken(saved(tmp_path, WHOLE)):
        pass
    with Belonging("mine").taken(None):
        pass


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        *(({name: value}, f"it holds no {name}") for name in WHOLE for value in (None, type(WHOLE[name])(), 5)),
        ({"callbacks": {"Belonging": {"request": "yours"}}}, "it is another run's"),
        ({"callbacks": {"Steps": {}}}, "it is another run's"),
    ],
)
def test_what_it_did_not_write_is_refused(tmp_path: Path, changed: dict[str, Any], said: str):
    with (
        pytest.raises(RequestError, match=f"last.ckpt cannot be gone on from: ValueError: {said}\nmove it away"),
        Belonging("mine").taken(saved(tmp_path, {**WHOLE, **changed})),
    ):
        pass


@pytest.mark.parametrize("content", [[], None, "text", torch.ones(1)])
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, content: Any):
    with pytest.raises(RequestError, match="it holds no state_dict"), Belonging("mine").taken(saved(tmp_path, content)):
        pass


def restoring(error: Exception) -> None:
    """Raise it where Lightning restores."""
    space = {"__name__": checkpoint_connector.__name__, "error": error}
    exec("def restore():\n    raise error\nrestore()", space)


def test_what_cannot_be_restored_is_the_checkpoints_fault(tmp_path: Path):
    """That there is no device, or that the reference cannot be asked, is not, whenever it comes to light."""
    own = Belonging("mine")
    with pytest.raises(KeyError), own.taken(saved(tmp_path, WHOLE)):
        raise KeyError("no device")
    with pytest.raises(RequestError, match="KeyError: 'fit_loop'"), own.taken(saved(tmp_path, WHOLE)):
        restoring(KeyError("fit_loop"))
    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")):
        with pytest.raises(type(error)) as found, own.taken(saved(tmp_path, WHOLE)):
            restoring(error)
        assert found.value is error
    with pytest.raises(KeyError), own.taken(None):
        restoring(KeyError("fit_loop"))
