"""Nine rows at batch 2: two gloo ranks make the update of one process, and their epoch metrics are the same numbers.

What is scored in the same company has the same bits, whoever scores it, and is added up without rounding on the way. So
at the same weights held-out measures are equal to the bit; and so is metrics.csv while each micro-batch holds the same
rows and no gradient has more than two parts, whose order cannot matter. Otherwise what differs is rounding.
"""

from __future__ import annotations

import csv
import tempfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from peft import LoraConfig, get_peft_model

from prefopt.callbacks.steps import Steps
from prefopt.data.loader import Plan, Recorded, micro_batches
from prefopt.data.module import PreferenceData
from prefopt.data.views import view
from prefopt.jobs.measure import evaluate_split
from prefopt.models.policy import Policy
from prefopt.models.reference import AdapterOff
from prefopt.module import PreferenceModule
from prefopt.objectives import create, get, names
from prefopt.schedules import constant
from tests.gloo_worker import two_ranks
from tests.rollouts.test_source import with_critic
from tests.test_resume import TIMES
from tests.toy import exact_rmsnorm, toy_examples, toy_model, toy_module, toy_rollouts

ROWS, BATCH, STEPS = 9, 2, 5
OFFLINE = [name for name in names() if get(name).needs.data in ("demonstrations", "pairs", "labels")]
SOME = [("kto", "float32")]
OTHERS = [(name, kind) for name in OFFLINE for kind in ("float64", "float32", "lora")] + [("ppo", "critic")]


def adapted(objective):
    """Under LoRA without dropout, which every rank draws for itself, and with factors that both have a gradient."""
    torch.manual_seed(0)
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear", init_lora_weights=False)
    policy = Policy(get_peft_model(toy_model(), config), objective.needs.heads, end_ids=(2,)).double()
    return PreferenceModule(objective, policy, AdapterOff(policy), partial(torch.optim.SGD, lr=0.01), constant)


def built(name, kind):
    objective = create(name)
    if kind == "lora":
        return adapted(objective)
    if kind == "critic":
        return with_critic(objective, lr=0.01)[0]
    return toy_module(objective, getattr(torch, kind), lr=0.01)


class Looks(L.Callback):
    """The held-out measures of every look during training."""

    def __init__(self, examples):
        self.examples, self.seen = examples, []

    def on_validation_end(self, trainer, module):
        self.seen.append(module.held_out_measures(self.examples))


@exact_rmsnorm()
def outcome(name, kind, micro, world):
    """Weights after five steps, the last of one row; metrics.csv; the looks; and what the first weights measure on nine
    rows and on two, of which one rank has none."""
    module, held_out = built(name, kind), toy_examples(ROWS, seed=9)
    start = {key: value.clone() for key, value in module.policy.state_dict().items()}
    needs = module.objective.needs
    source = Recorded(view(needs.data, toy_examples(ROWS)), Plan(ROWS, BATCH, STEPS, 3)) if kind != "critic" else None
    source = source or toy_rollouts(module.objective, ROWS, BATCH, STEPS, micro)
    looks, accumulate = Looks(held_out), micro_batches(BATCH, micro, world)
    with tempfile.TemporaryDirectory() as folder:
        metrics = Path(folder) / "metrics.csv"
        trainer = L.Trainer(
            accelerator="cpu",
            devices=world,
            strategy="ddp" if world > 1 else "auto",
            max_epochs=1,
            max_steps=STEPS,
            accumulate_grad_batches=accumulate,
            val_check_interval=2 * accumulate,
            num_sanity_val_steps=0,
            callbacks=[looks, Steps(metrics, source)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        trainer.fit(module, datamodule=PreferenceData(source, micro, held_out, needs.data, (), BATCH))
        rows = read(metrics)
    weights = {key: p.detach().clone() for key, p in module.policy.trainable().items()}
    seen = list(looks.seen)
    module.policy.load_state_dict(start)
    at_start = [
        evaluate_split(trainer, module, some, SimpleNamespace(batch_size=BATCH)).measures
        for some in (held_out, held_out[:2])
    ]
    moved = max(float((weights[key] - start[key]).abs().max()) for key in weights)
    return {"weights": weights, "rows": rows, "looks": seen, "at_start": at_start, "moved": moved}


def read(metrics):
    """Nothing on the rank that writes nothing."""
    if not metrics.exists():
        return []
    with metrics.open(newline="") as stream:
        return [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(stream)]


def outcomes(every):
    """Of one rank of two, each with one row a step at most."""
    return {f"{name} {kind}": outcome(name, kind, None, 2) for name, kind in (OTHERS if every else SOME)}


def check(found, name, kind):
    """A step of two rows in two micro-batches has the same bits; in one, as a process takes it, the same but for
    rounding."""
    apart, together = (outcome(name, kind, micro, 1) for micro in (1, None))
    ranks = found[f"{name} {kind}"]
    assert ranks["moved"] > 1e-4
    assert ranks["at_start"] == apart["at_start"] == together["at_start"]
    assert ranks["at_start"][0]["chosen_length"] is not None
    assert ranks["weights"].keys() == together["weights"].keys()
    for key, weight in together["weights"].items():
        torch.testing.assert_close(ranks["weights"][key], weight, rtol=0, atol=1e-6 if kind == "float32" else 1e-9)
    assert len(ranks["rows"]) == STEPS
    assert len(ranks["looks"]) == STEPS // 2
    if kind == "critic":  # each rank draws answers of its own
        return
    assert ranks["rows"] == apart["rows"]
    assert ranks["looks"] == apart["looks"]
    for key, weight in apart["weights"].items():
        assert torch.equal(ranks["weights"][key], weight), key


@pytest.fixture(scope="module")
def some(tmp_path_factory):
    return two_ranks(tmp_path_factory.mktemp("some"), outcomes, 0)


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    return two_ranks(tmp_path_factory.mktemp("others"), outcomes, 1)


@pytest.mark.parametrize(("name", "kind"), SOME)
def test_two_ranks_are_one_process(some, name, kind):
    check(some, name, kind)


@pytest.mark.long
@pytest.mark.parametrize(("name", "kind"), OTHERS)
def test_two_ranks_are_one_process_whatever_trains(others, name, kind):
    """Every loss, whole and under an adapter, and a critic of its own: nothing that trains is left without a gradient,
    and no rank waits for another."""
    check(others, name, kind)
