"""Everything runs offline, on one thread a process, with small models that the tests make."""

from __future__ import annotations

import logging
import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"  # for the commands that tests start, too

from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

# A world and a base small enough for a run in seconds, big enough that answers are grammatical.
SMALL = [
    "model.tiny.hidden_size=64",
    "model.tiny.fit_steps=120",
    "model.tiny.fit_tokens=200000",
    "data.world.demonstrations=4000",
    "data.world.pairs=320",
    "data.world.held_out_pairs=60",
    "data.world.val_pairs=60",
    "data.batch_size=16",
    "evaluation.prompts=6",
    "evaluation.samples_per_prompt=4",
    "evaluation.max_new_tokens=16",
]


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all test processes, so that the small base is fitted once."""
    root = tmp_path_factory.getbasetemp()
    shared = root.parent if os.environ.get("PYTEST_XDIST_WORKER") else root
    return shared / "prefopt-cache"


@pytest.fixture
def small(cache_dir: Path, tmp_path: Path) -> list[str]:
    """Overrides of a small run in its own folder."""
    return [*SMALL, f"cache_dir={cache_dir}", f"run_dir={tmp_path / 'run'}"]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real preference data; without it the test is skipped."""
    where = os.environ.get("PREFOPT_TEST_DATA")
    if not where:
        pytest.skip("PREFOPT_TEST_DATA is not set")
    return Path(where)


@pytest.fixture
def exact_rmsnorm():
    """See `tests.toy`."""
    from tests.toy import exact_rmsnorm

    with exact_rmsnorm():
        yield


@pytest.fixture
def plain_kernels(monkeypatch):
    """Matrices in the place of flash attention's kernels, which a CPU does not have."""
    from prefopt.scoring import varlen
    from tests.scoring.kernels import plain_backward, plain_forward

    monkeypatch.setattr(varlen, "flash_forward", plain_forward)
    monkeypatch.setattr(varlen, "flash_backward", plain_backward)
