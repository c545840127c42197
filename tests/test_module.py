"""What the module promises beside the update itself: held-out losses, schedules in steps, what a checkpoint holds."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch

from prefopt.callbacks.steps import Steps
from prefopt.data.loader import Plan, Recorded, micro_batches
from prefopt.data.module import PreferenceData, held_out_loaders
from prefopt.data.views import RECORDED, view
from prefopt.errors import RequestError
from prefopt.jobs.measure import _log_ratios
from prefopt.models.policy import Policy
from prefopt.models.reference import AdapterOff, reference_logps
from prefopt.module import PreferenceModule
from prefopt.objectives import create, get, names
from prefopt.objectives.base import total
from prefopt.records import Scores, units
from prefopt.schedules import constant, cosine, linear, steps_of
from prefopt.scoring import score
from tests.models.test_reference import adapted, shake
from tests.toy import toy_examples, toy_module, toy_rollouts

pytestmark = pytest.mark.usefixtures("exact_rmsnorm")
OFFLINE = [name for name in names() if get(name).needs.data in ("demonstrations", "pairs", "labels")]
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


@pytest.mark.parametrize("loss", OFFLINE)
def test_held_out_loss_is_the_loss_of_all_rows_at_once(loss):
    """Batches of 4, by length, against one batch of everything; KTO's baseline over all held-out rows."""
    module = toy_module(create(loss, sft_weight=0.3))
    examples = toy_examples(11)
    trainer = L.Trainer(accelerator="cpu", **QUIET)
    trainer.validate(module, held_out_loaders(examples, module.objective.needs.data, (), 4), verbose=False)
    found = module.held_out_measures(examples)
    whole = view(module.objective.needs.data, examples).batch(range(11))
    with torch.no_grad():
        needs = module.objective.needs
        scores = score(module.policy, whole, needs.heads, needs.tokens, needs.prompt)
        if scores.logps is not None:
            scores = replace(scores, ref_logps=reference_logps(module.reference, whole))
        expected = float(module.objective.loss(scores))
    assert found["loss"] == pytest.approx(expected, abs=1e-10)
    pairs = view("pairs", examples).batch(range(11))
    with torch.no_grad():
        needs = module.objective.needs
        scores = score(module.policy, pairs, needs.heads)
        if scores.logps is not None:
            scores = replace(scores, ref_logps=reference_logps(module.reference, pairs))
        chosen, rejected = module.objective.reward(scores).chunk(2)
    weight = pairs.columns["weight"].double()
    expected = float((((chosen > rejected).double() + 0.5 * (chosen == rejected)) * weight).sum() / weight.sum())
    assert found["accuracy"] == pytest.approx(expected, abs=1e-12)


def test_held_out_rows_without_any_weight_have_no_loss():
    """None, which JSON can say, and no nan."""
    module = toy_module(create("dpo"))
    examples = [replace(row, example=replace(row.example, weight=0.0)) for row in toy_examples(3)]
    L.Trainer(accelerator="cpu", **QUIET).validate(module, held_out_loaders(examples, "pairs", (), 4), verbose=False)
    assert set(module.held_out_measures(examples).values()) == {None}


def test_the_kl_is_of_the_policy_that_was_sampled():
    """Scored without the adapter's dropout, twice the same; training goes on in training mode."""
    policy = adapted()
    shake(policy)
    module = PreferenceModule(create("dpo"), policy, AdapterOff(policy), torch.optim.SGD, constant)
    prompts, answers = ([torch.tensor([1, 5, 6]), torch.tensor([1, 8])] for _ in range(2))
    policy.eval()
    expected = _log_ratios(policy, module, prompts, answers, 2)
    policy.train()
    found = _log_ratios(policy, module, prompts, answers, 2)
    assert found.tolist() == expected.tolist()
    assert all(part.training for part in policy.modules())


@pytest.mark.parametrize("micro", [8, 2])
def test_intervals_are_optimiser_steps(micro):
    """Same learning rates, same looks at the held-out rows, whatever a step is split into."""
    rates, looks = [], []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, pl, outputs, batch, batch_idx):
            if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
                rates.append(trainer.optimizers[0].param_groups[0]["lr"])

        def on_validation_end(self, trainer, pl):
            looks.append(trainer.global_step)

    module = toy_module(create("dpo"))
    module = PreferenceModule(
        module.objective, module.policy, module.reference, partial(torch.optim.SGD, lr=1.0), partial(linear, warmup=0.5)
    )
    source = Recorded(view("pairs", toy_examples(20)), Plan(20, 8, 4, seed=0))
    data = PreferenceData(source, micro, toy_examples(4, seed=9), val_batch=4)
    accumulate = micro_batches(8, micro, 1)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        max_steps=4,
        accumulate_grad_batches=accumulate,
        val_check_interval=2 * accumulate,
        callbacks=[Watch()],
        num_sanity_val_steps=0,
        **QUIET,
    )
    trainer.fit(module, datamodule=data)
    # read after the schedule moved on: warm-up 1/2, 2/2 over two steps, then down to 0
    assert rates == pytest.approx([1.0, 1.0, 0.5, 0.0])
    assert looks == [2, 4]


@pytest.mark.parametrize("loss", names())
def test_clipping_holds(loss):
    """Of two steps of four micro-batches, each moves the weights by the norm that is allowed: SGD at a rate of 1."""
    moved = []

    class Watch(L.Callback):
        def on_train_batch_start(self, trainer, pl, batch, batch_idx):
            if batch_idx % 4 == 0:
                self.before = flat(pl)

        def on_train_batch_end(self, trainer, pl, outputs, batch, batch_idx):
            if batch_idx % 4 == 3:
                moved.append(float((flat(pl) - self.before).norm()))

    module = toy_module(create(loss))
    if module.objective.needs.data in RECORDED:
        source = Recorded(view(module.objective.needs.data, toy_examples(8)), Plan(8, 8, 2, seed=0))
    else:
        source = toy_rollouts(module.objective, 10, 8, 2, 2)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        max_steps=2,
        accumulate_grad_batches=4,
        gradient_clip_val=1e-3,
        callbacks=[Watch()],
        **QUIET,
    )
    trainer.fit(module, datamodule=PreferenceData(source, 2))
    assert trainer.global_step == 2
    assert moved == pytest.approx([1e-3] * 2, rel=1e-5)


@pytest.mark.parametrize("limit", [1e-3, 1e3])
def test_by_the_norm_that_was_measured_clipping_is_lightnings(limit, tmp_path, monkeypatch):
    """To the last bit, above the limit and below it; and it is not measured again."""
    found = []
    for measured in (False, True):
        module, source = toy_module(create("dpo")), Recorded(view("pairs", toy_examples(8)), Plan(8, 4, 3, seed=0))
        if measured:
            monkeypatch.setattr(module, "clip_gradients", None)
        callbacks = [Steps(tmp_path / "metrics.csv", source)] if measured else []
        options = {**QUIET, "callbacks": callbacks, "gradient_clip_val": limit}
        trainer = L.Trainer(accelerator="cpu", max_epochs=1, max_steps=3, accumulate_grad_batches=2, **options)
        trainer.fit(module, datamodule=PreferenceData(source, 2))
        assert module.grad_norm is None
        found.append(flat(module))
    assert torch.equal(*found)


def flat(module):
    return torch.cat([p.detach().flatten() for p in module.policy.parameters()])


def test_dropout_is_on_in_training_and_off_everywhere_else():
    """A model comes from its files in eval mode. Two forwards of one batch differ in every step, also after a look; in
    a look they are equal, and the reference's always are."""
    policy = adapted()
    shake(policy)
    policy.eval()
    module = PreferenceModule(create("dpo"), policy, AdapterOff(policy), partial(torch.optim.SGD, lr=0.01), constant)
    seen = []

    class Twice(L.Callback):
        def twice(self, pl, where, batch):
            with torch.no_grad():
                first, second = pl.score(batch), pl.score(batch)
            same_reference = torch.equal(first.ref_logps, second.ref_logps)
            seen.append((where, torch.equal(first.logps, second.logps), same_reference))

        def on_train_batch_start(self, trainer, pl, batch, batch_idx):
            self.twice(pl, "training", batch)

        def on_validation_batch_start(self, trainer, pl, batch, batch_idx, dataloader_idx=0):
            self.twice(pl, "look", batch)

        def on_validation_end(self, trainer, pl):
            with pl.reference.policy(torch.device("cpu")) as reference:
                assert not any(part.training for part in reference.modules())

    source = Recorded(view("pairs", toy_examples(8)), Plan(8, 4, 4, seed=0))
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        max_steps=4,
        val_check_interval=2,
        num_sanity_val_steps=0,
        callbacks=[Twice()],
        **QUIET,
    )
    trainer.fit(module, datamodule=PreferenceData(source, None, toy_examples(4, seed=9), val_batch=4))
    training, look = ("training", False, True), ("look", True, True)
    assert seen == [training, training, look, training, training, look]


class MicroBatches:
    """One step of four rows, cut as it is told to."""

    def __init__(self, shown, sizes):
        ends = np.cumsum(sizes).tolist()
        batches = [shown.batch(range(end - size, end)) for size, end in zip(sizes, ends, strict=True)]
        counts = shown.batch(range(sum(sizes))).units()
        first, *others = (replace(batch, counts=counts) for batch in batches)
        self.batches = [replace(first, siblings=tuple(others)), *others]

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)


@pytest.mark.parametrize("loss", OFFLINE)
def test_micro_batches_of_unequal_sizes_are_one_step(loss):
    """[4], [1, 3] and [2, 2] rows move the weights alike: a row counts by its step, not by its micro-batch."""

    def trained(sizes):
        module = toy_module(create(loss, sft_weight=0.3), lr=0.1)
        shown = view(module.objective.needs.data, toy_examples(4))
        trainer = L.Trainer(accelerator="cpu", max_epochs=1, max_steps=1, accumulate_grad_batches=len(sizes), **QUIET)
        trainer.fit(module, MicroBatches(shown, sizes))
        return flat(module)

    whole = trained([4])
    assert float((whole - flat(toy_module(create(loss, sft_weight=0.3)))).abs().max()) > 1e-4
    for sizes in ([1, 3], [2, 2]):
        torch.testing.assert_close(trained(sizes), whole, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("sizes", "mean_of_means"), [([4], -0.0125), ([1, 3], 0.025), ([2, 2], -0.0125)])
def test_the_gradient_of_unequal_micro_batches_by_hand(sizes, mean_of_means):
    """Rows whose gradients are 0.1 and three times -0.05 have the mean -0.0125. Means of micro-batches, averaged, have
    the other sign for [1, 3]; sums over the step's count do not see the cut."""
    gradients, sft = torch.tensor([0.1, -0.05, -0.05, -0.05], dtype=torch.float64), create("sft")
    summed = averaged = 0.0
    for part in gradients.split(sizes):
        slope = torch.zeros((), dtype=torch.float64, requires_grad=True)
        scores = Scores(logps=-slope * part[:, None], mask=torch.ones(len(part), 1))
        terms = sft.all_terms(scores, {})
        own = units("demonstrations", scores.lengths, {})
        whole = dict.fromkeys(own, 4.0)
        summed += float(torch.autograd.grad(total(terms, whole), slope, retain_graph=True)[0])
        averaged += float(torch.autograd.grad(total(terms, own), slope)[0]) / len(sizes)
    assert summed == pytest.approx(-0.0125, abs=1e-15)
    assert averaged == pytest.approx(mean_of_means, abs=1e-15)


def test_schedules_by_hand():
    assert [constant(step, 10, warmup=4) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert linear(5, 10, floor=0.2) == pytest.approx(0.2 + 0.8 * 0.5)
    assert linear(10, 10) == 0.0
    assert cosine(0, 8) == 1.0
    assert cosine(4, 8) == pytest.approx(0.5)
    assert cosine(6, 8, warmup=0.5, floor=0.1) == pytest.approx(0.1 + 0.9 * 0.5)
    assert (steps_of(0.1, 250), steps_of(3, 250), steps_of(0.001, 250)) == (25, 3, 1)


def test_a_checkpoint_of_something_else_is_refused():
    module = toy_module(create("dpo"))
    module._trainer = SimpleNamespace(world_size=1, global_rank=0)
    module.policy.model.model.embed_tokens.requires_grad_(False)
    checkpoint = {"state_dict": dict(module.state_dict()), "rng": {}}
    module.on_save_checkpoint(checkpoint)
    assert not any("embed_tokens" in name for name in checkpoint["state_dict"])
    module.on_load_checkpoint(checkpoint)
    checkpoint["state_dict"].popitem()
    with pytest.raises(RequestError, match="does not hold what trains here"):
        module.on_load_checkpoint(checkpoint)


def test_the_reference_is_no_part_of_the_module():
    module = toy_module(create("dpo"))
    with module.reference.policy(torch.device("cpu")) as copy:
        own = {id(p) for p in module.parameters()}
        assert not own & {id(p) for p in copy.parameters()}
    assert isinstance(module.policy, Policy)
