"""A run that would do nothing, or something else than asked, stops at its first step and says so."""

from __future__ import annotations

import csv
import math
from functools import partial

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision

from prefopt.callbacks import selfcheck
from prefopt.callbacks.selfcheck import SelfCheck, _close
from prefopt.callbacks.steps import Steps
from prefopt.data.loader import Plan, Recorded, StepLoader
from prefopt.data.views import view
from prefopt.errors import RequestError
from prefopt.models.policy import Policy
from prefopt.models.reference import FrozenCopy
from prefopt.module import PreferenceModule
from prefopt.objectives import create, get, names
from prefopt.schedules import constant
from tests.toy import toy_examples, toy_model

OFFLINE = [name for name in names() if get(name).needs.data in ("demonstrations", "pairs", "labels")]


def steps_of(folder) -> Steps:
    return Steps(folder / "metrics.csv", Recorded(view("pairs", toy_examples(12)), Plan(12, 6, 2, seed=0)))


def fit(module: PreferenceModule, rows: int = 12, *callbacks: L.Callback, **options) -> L.Trainer:
    shown = view(module.objective.needs.data, toy_examples(rows))
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        max_steps=2,
        callbacks=[SelfCheck(), *callbacks],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(module, StepLoader(Recorded(shown, Plan(rows, 6, 2, seed=0)), 6))
    return trainer


def module(loss: str = "dpo", lr: float = 0.01, reference: int = 0, **options) -> PreferenceModule:
    objective = create(loss, **options)
    policy = Policy(toy_model(0, torch.float32), objective.needs.heads, (2,))
    other = FrozenCopy(lambda: Policy(toy_model(reference, torch.float32)))
    return PreferenceModule(objective, policy, other, partial(torch.optim.SGD, lr=lr), constant)


@pytest.mark.parametrize("loss", OFFLINE)
def test_sound_runs_pass(loss):
    fit(module(loss))


def test_nothing_moves():
    with pytest.raises(RequestError, match="have not moved: backbone"):
        fit(module(lr=0.0))


def overflowing(then: float = 2.0**7) -> MixedPrecision:
    """16-mixed, whose first step overflows: a scale that no gradient survives, and `then` another."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=then / 2.0**127)
    return MixedPrecision("16-mixed", "cpu", scaler)


def test_a_step_that_overflows_is_skipped_and_written_down(tmp_path):
    fit(module(), 12, steps_of(tmp_path), plugins=[overflowing()])
    with (tmp_path / "metrics.csv").open(newline="") as stream:
        norms = [float(row["grad_norm"]) for row in csv.DictReader(stream)]
    assert [math.isfinite(norm) for norm in norms] == [False, True]


def test_nothing_moves_after_a_step_that_overflows():
    with pytest.raises(RequestError, match="have not moved: backbone"):
        fit(module(lr=0.0), plugins=[overflowing()])


def test_nothing_trains():
    frozen = module()
    frozen.policy.requires_grad_(False)
    with pytest.raises(RequestError, match="nothing trains"):
        fit(frozen)


def test_a_head_nobody_reads_has_not_moved():
    made = module()
    made.policy.heads["value"] = torch.nn.Linear(16, 1)
    with pytest.raises(RequestError, match="have not moved: value head"):
        fit(made)


def test_the_reference_is_somebody_else():
    with pytest.raises(RequestError, match="the policy and its reference differ by"):
        fit(module(reference=1))


def test_scoring_disagrees_with_the_model(monkeypatch):
    made = module("simpo")
    whole = Policy.lm_head
    monkeypatch.setattr(Policy, "lm_head", lambda self, hidden: whole(self, hidden) * 1.5)
    with pytest.raises(RequestError, match="scoring and the model's own logits differ by"):
        fit(made)


def test_every_rank_refuses_what_one_finds(monkeypatch):
    """Its rows alone may show it; the others would wait for it."""
    monkeypatch.setattr(selfcheck, "of_all_ranks", lambda own, world: [own, "what the second found"])
    with pytest.raises(RequestError, match="what the second found"):
        fit(module())


def test_modes_and_first_losses():
    """Hugging Face loads in eval mode; every step must see a policy in training and a reference that is not."""
    made = module("dpo")
    made.policy.eval()
    seen = []

    class Look(L.Callback):
        def on_train_batch_end(self, trainer, pl, outputs, batch, batch_idx):
            seen.append((pl.policy.training, pl.step_sums.compute()["loss_dpo"]))
            pl.step_sums.reset()

    shown = view("pairs", toy_examples(12))
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=2,
        max_epochs=1,
        callbacks=[Look()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(made, StepLoader(Recorded(shown, Plan(12, 6, 2, seed=0)), 6))
    assert [training for training, _ in seen] == [True, True]
    assert seen[0][1] == pytest.approx(math.log(2), abs=1e-6)
    assert seen[1][1] != pytest.approx(math.log(2), abs=1e-6)


HALF = (torch.bfloat16, torch.float32)


def test_in_low_precision_the_mean_counts():
    """One token of 100 off by 0.3 nats is rounding in bfloat16, not in float32; all off by 0.2 is in neither."""
    zero, one, all_ = torch.zeros(100), torch.zeros(100), torch.full((100,), 0.2)
    one[3] = 0.3
    sft = partial(PreferenceModule, create("sft"), reference=None, optimizer=None, schedule=constant)
    half, full = (sft(policy=Policy(toy_model(dtype=dtype))) for dtype in HALF)
    _close(half, "a and b", zero, one)
    for module, found in ((full, one), (full, all_), (half, all_)):
        with pytest.raises(RequestError, match=r"a and b differ by 0.[23]") as error:
            _close(module, "a and b", zero, found, "try this")
        assert str(error.value).splitlines()[1] == "try this"
    four_bit = sft(policy=Policy(toy_model()))
    four_bit.policy.causal.lm_head.compute_dtype = torch.bfloat16  # as bitsandbytes' layers have it
    _close(four_bit, "a and b", zero, one)
