"""A number that is none stops a run before a weight moves, or its step is left out; the rows it came from are kept."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy

from prefopt.callbacks import finite as callback
from prefopt.callbacks.finite import Finite, NonFinite
from prefopt.callbacks.selfcheck import SelfCheck
from prefopt.callbacks.steps import Steps
from prefopt.config import compose_request
from prefopt.data.loader import Plan, Recorded, Source, micro_batches
from prefopt.data.module import PreferenceData
from prefopt.data.views import view
from prefopt.errors import FAILED, OK, RequestError
from prefopt.files import stepped_lines
from prefopt.jobs.train import train
from prefopt.module import PreferenceModule
from prefopt.objectives import Objective, create
from prefopt.objectives.dpo import DPO
from prefopt.records import HALVED
from prefopt.schedules import constant, linear
from tests.gloo_worker import run_ranks
from tests.models.saved import pairs_file, saved_model
from tests.test_selfcheck import fit as fit_in_float32
from tests.test_selfcheck import module as float32_module
from tests.test_selfcheck import overflowing, steps_of
from tests.toy import toy_examples, toy_module, toy_rollouts

PLAN = Plan(24, 6, 4, seed=0)  # each row once; three micro-batches of two in a step
BAD = PLAN.step(1)[2]  # in the second micro-batch of the second step


def words(ids: list[int]) -> str:
    return " ".join(map(str, ids)) + "\u2028"  # a line separator to some, and no end of a line of JSON


def recorded(data: str = "pairs", plan: Plan = PLAN) -> Recorded:
    return Recorded(view(data, toy_examples(plan.rows)), plan)


def watching(folder: Path, source: Source, skips: bool) -> tuple[Steps, Finite]:
    clock = Steps(folder / "metrics.csv", source)
    line = (lambda row: f"toy.jsonl:{row}") if isinstance(source, Recorded) else (lambda row: "")
    return clock, Finite(folder / "non_finite.jsonl", clock, skips, words, line)


def made(objective: Objective | None = None, schedule=constant) -> PreferenceModule:
    """Under an optimizer that decays and remembers."""
    plain = toy_module(objective or create("dpo"))
    optimizer = partial(torch.optim.AdamW, lr=0.1, weight_decay=0.5)
    return PreferenceModule(plain.objective, plain.policy, plain.reference, optimizer, schedule)


def fit(module: PreferenceModule, source: Source, *callbacks: L.Callback, resume: Path | None = None, **options):
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        max_steps=source.plan.steps,
        accumulate_grad_batches=micro_batches(source.plan.batch_size, 2, options.get("devices", 1)),
        gradient_clip_val=1.0,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **options,
    )
    trainer.fit(module, datamodule=PreferenceData(source, 2), ckpt_path=resume, weights_only=True)


def spoil(module: PreferenceModule, *rows: int, half: int = 0, value: float = -math.inf) -> PreferenceModule:
    """The policy finds the first completions of these rows impossible (half 1: what the second half of the batch holds
    beside them)."""
    plain = module.score

    def score(batch, *arguments, **options):
        scores = plain(batch, *arguments, **options)
        first = torch.isin(batch.columns["row"], torch.tensor(rows)) & (batch.columns["place"] == 0)
        if batch.data in HALVED:
            first[len(first) // 2 :] = False
        return replace(scores, logps=scores.logps.masked_fill(first.roll(half * len(first) // 2)[:, None], value))

    module.score = score
    return module


def weights(module: PreferenceModule) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in module.policy.named_parameters()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(weight, other[name]) for name, weight in one.items())


def rows_of(folder: Path) -> list[int]:
    return [line["row"] for line in stepped_lines(folder / "non_finite.jsonl")]


def column(folder: Path, name: str) -> list[float]:
    with (folder / "metrics.csv").open(newline="") as stream:
        return [float(row[name]) for row in csv.DictReader(stream)]


class Without(Recorded):
    """The same run, had the second step never been."""

    def __init__(self) -> None:
        shown = recorded()
        super().__init__(shown.view, replace(PLAN, steps=3))

    def step(self, number: int):
        return self.view, PLAN.step(number + (number >= 1))


# ------------------------------------------------------------------------------------------- stop


def test_it_stops_before_a_weight_moves_and_names_the_row(tmp_path):
    source, module = recorded(), spoil(made(), BAD)
    with pytest.raises(
        NonFinite, match=rf"step 2: the loss is inf, .*, by 1 of 6 rows, first toy.jsonl:{BAD}$"
    ) as error:
        fit(module, source, *watching(tmp_path, source, False))
    assert error.value.file == tmp_path / "non_finite.jsonl"
    once = made()
    fit(once, recorded(plan=replace(PLAN, steps=1)))
    assert same(weights(module), weights(once))
    assert len(column(tmp_path, "loss")) == 1
    assert "skipped" not in (tmp_path / "metrics.csv").read_text()
    (line,) = stepped_lines(tmp_path / "non_finite.jsonl")
    own = toy_examples(24)[BAD]
    said = {name: line[name] for name in ("step", "row", "source", "prompt", "completions", "step_loss", "loss")}
    assert said == {
        "step": 2,
        "row": BAD,
        "source": f"toy.jsonl:{BAD}",
        "prompt": words(own.prompt.tolist()),
        "completions": [words(ids.tolist()) for ids in own.completions],
        "step_loss": "inf",
        "loss": "inf",
    }
    assert line["logp"][0] == line["reward"][0] == "-inf"
    assert math.isfinite(line["logp"][1])
    assert math.isfinite(line["reward"][1])


def test_a_row_that_spoils_a_mean_over_all_is_the_one_that_is_named(tmp_path):
    """KTO's z is none after one mismatched completion, and with it every row's part of the loss."""
    source, module = recorded("labels"), spoil(made(create("kto")), BAD, half=1, value=math.nan)
    with pytest.raises(NonFinite, match="by 1 of 6 rows"):
        fit(module, source, *watching(tmp_path, source, False))
    assert rows_of(tmp_path) == [BAD]


def test_a_policys_own_answers_stand_in_no_file(tmp_path):
    source = toy_rollouts(create("grpo"), 8, 6, 2, 2)
    module = spoil(made(create("grpo")), 3, value=math.nan)
    with pytest.raises(NonFinite, match=r"step 1: .* 1 of 6 rows, first row 3$"):
        fit(module, source, *watching(tmp_path, source, False))
    (line,) = stepped_lines(tmp_path / "non_finite.jsonl")
    assert (line["row"], line["source"], len(line["completions"])) == (3, None, 3)
    assert [isinstance(logp, str) for logp in line["logp"]] == [True, False, False]


@dataclass(frozen=True, kw_only=True)
class Broken(DPO):
    """Breaks on one row whose scores are sound: its loss is inf and sends nothing back, or only its gradient is nan."""

    row: int
    seen: bool = False  # in the loss

    def terms(self, scores, statistics):
        (term,) = super().terms(scores, statistics)
        own = scores.logps[scores.columns["row"] == self.row].sum()
        extra = -own.detach() * math.inf if self.seen else (own - own.detach()).abs().sqrt()
        return (replace(term, sum=term.sum + extra if own else term.sum),)


@pytest.mark.parametrize(("seen", "said"), [(True, "loss is inf, the gradient's norm [0-9.]+,"), (False, "norm nan")])
def test_what_only_the_objective_breaks(tmp_path, seen, said):
    source = recorded()
    with pytest.raises(NonFinite, match=f"step 2: .*{said}.* 1 of 6 rows"):
        fit(made(Broken(row=BAD, seen=seen)), source, *watching(tmp_path, source, False))
    assert rows_of(tmp_path) == [BAD]


def test_no_row_stands_out(tmp_path):
    """A gradient that only the model breaks: every row of the step, once, though the last micro-batch repeats one."""
    source, module = recorded(plan=Plan(3, 6, 1, seed=0)), made()
    before = weights(module)
    module.policy.model.model.norm.weight.register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(NonFinite, match=r"norm nan, by every row, first toy.jsonl:0; is optimizer.lr too high\?"):
        fit(module, source, *watching(tmp_path, source, False))
    assert same(weights(module), before)
    lines = stepped_lines(tmp_path / "non_finite.jsonl")
    assert [line["row"] for line in lines] == [0, 1, 2]
    assert {line["grad_norm"] for line in lines} == {"nan"}
    assert sum(line["loss"] for line in lines) == pytest.approx(lines[0]["step_loss"], rel=1e-12)


# ------------------------------------------------------------------------------------------- skip


def test_a_step_that_is_left_out_never_was(tmp_path):
    """Weights, decay and moments to the bit, as if its rows had not been; the learning rate counts it as a step."""
    source, module = recorded(), spoil(made(schedule=linear), BAD)
    clock, finite = watching(tmp_path, source, True)
    fit(module, source, clock, finite)
    other = made(schedule=lambda step, total: linear(step + (step >= 1), 4))
    fit(other, Without())
    assert same(weights(module), weights(other))
    assert (finite.skipped, finite.in_a_row) == (1, 0)
    assert column(tmp_path, "skipped") == [0, 1, 0, 0]
    assert [math.isfinite(loss) for loss in column(tmp_path, "loss")] == [True, False, True, True]
    assert rows_of(tmp_path) == [BAD]


def test_a_run_that_resumes_counts_on(tmp_path, monkeypatch):
    """Saved right after a skipped step; the next one is skipped again. What was written down later is written anew."""
    rows = (BAD, PLAN.step(2)[0])
    saved = tmp_path / "saved.ckpt"

    class Save(L.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 2 and not saved.exists():
                trainer.save_checkpoint(saved)

    clock, finite = watching(tmp_path, recorded(), True)
    module = spoil(made(), *rows)
    fit(module, recorded(), clock, finite, Save())
    whole = (tmp_path / "non_finite.jsonl").read_text()
    assert finite.skipped == 2
    clock, finite = watching(tmp_path, recorded(), True)
    again = spoil(made(), *rows)
    fit(again, recorded(), clock, finite, resume=saved)
    assert (finite.skipped, (tmp_path / "non_finite.jsonl").read_text()) == (2, whole)
    assert same(weights(again), weights(module))
    monkeypatch.setattr(callback, "PATIENCE", 1)
    with pytest.raises(NonFinite, match="step 3"):
        fit(spoil(made(), *rows), recorded(), *watching(tmp_path, recorded(), True), resume=saved)


def test_a_run_that_only_skips_stops(tmp_path, monkeypatch):
    monkeypatch.setattr(callback, "PATIENCE", 2)
    source = recorded()
    clock, finite = watching(tmp_path, source, True)
    (tmp_path / "non_finite.jsonl").write_text('{"step": 1, "row": 99}\n{"step": 2, "ro')  # of a run that was killed
    with pytest.raises(NonFinite, match=r"step 3: .* by every row"):
        fit(spoil(made(), *range(24)), source, clock, finite)
    assert finite.skipped == 2
    assert [line["step"] for line in stepped_lines(tmp_path / "non_finite.jsonl")] == [1] * 6 + [2] * 6 + [3] * 6


@pytest.mark.usefixtures("exact_rmsnorm")
@pytest.mark.parametrize("lr", [0.1, 0.0])
def test_the_self_check_waits_for_a_step_that_counts(tmp_path, lr):
    """The first step is left out, the second is taken apart into micro-batches; only then must weights have moved."""
    source, module = recorded(), made(create("simpo"))
    module.make_optimizer = partial(torch.optim.SGD, lr=lr)
    seen = []
    module.policy.model.model.norm.weight.register_hook(
        lambda g: (seen.append(g), g * math.nan if len(seen) == 1 else g)[1]
    )
    clock, finite = watching(tmp_path, source, True)
    if lr:
        fit(module, source, SelfCheck(), clock, finite)
    else:
        with pytest.raises(RequestError, match="have not moved: backbone"):
            fit(module, source, SelfCheck(), clock, finite)
    assert finite.skipped == 1


# ------------------------------------------------------------------------------------------- 16-mixed


@pytest.mark.parametrize("plugins", [[], [overflowing(then=0.5)]], ids=["without", "below 1"])
def test_gradients_that_no_scaler_spoilt_end_a_run(tmp_path, plugins):
    module, clock = float32_module(), steps_of(tmp_path)
    module.policy.model.model.norm.weight.register_hook(lambda gradient: gradient * math.nan)
    finite = Finite(tmp_path / "non_finite.jsonl", clock, False, words, str)
    with pytest.raises(FloatingPointError, match="the gradient's norm nan"):
        fit_in_float32(module, 12, clock, finite, plugins=plugins)


def test_what_overflows_is_the_scalers(tmp_path):
    clock = steps_of(tmp_path)
    finite = Finite(tmp_path / "non_finite.jsonl", clock, False, words, str)
    fit_in_float32(float32_module(), 12, clock, finite, plugins=[overflowing()])
    assert finite.skipped == 0
    assert [math.isfinite(norm) for norm in column(tmp_path, "grad_norm")] == [False, True]


def test_a_loss_that_is_none_is_not_the_scalers(tmp_path):
    """At a scale that nothing overflows at, and a gradient that is sound."""
    objective = Broken(row=Plan(12, 6, 2, seed=0).step(1)[0], seen=True)
    clock, module = steps_of(tmp_path), float32_module()
    module.objective = objective
    finite = Finite(tmp_path / "non_finite.jsonl", clock, True, words, str)
    fit_in_float32(module, 12, clock, finite, plugins=[overflowing(then=1.0)])
    assert finite.skipped == 1
    assert rows_of(tmp_path) == [objective.row]


# ------------------------------------------------------------------------------------------- ranks


def one_rank(folder: Path, rank: int) -> None:
    """Of two: only rank 1 meets the row, and its gradient is sound, so that nothing but the agreement tells rank 0."""
    objective = Broken(row=PLAN.step(1)[1], seen=True)
    found = {}
    for skips in (False, True):
        source, module = recorded(plan=replace(PLAN, steps=2)), made(objective)
        (folder / str(skips)).mkdir(exist_ok=True)
        callbacks = watching(folder / str(skips), source, skips)
        try:
            fit(module, source, *callbacks, devices=2, strategy="ddp")
        except NonFinite as error:
            found["said"] = str(error)
        found[skips] = (weights(module), callbacks[1].skipped)
    torch.save(found, folder / f"rank{rank}.pt")


def test_what_another_rank_finds_counts(tmp_path, monkeypatch):
    """This one is sound, and stops before its weights move."""

    def reduce(self, found, *_, **__):
        return found + torch.tensor([math.inf, 0.0]) if found.dtype == torch.float64 else found

    monkeypatch.setattr(SingleDeviceStrategy, "reduce", reduce)
    source, module = recorded(), made()
    before = weights(module)
    with pytest.raises(NonFinite, match="step 1: the loss is inf"):
        fit(module, source, *watching(tmp_path, source, False))
    assert same(weights(module), before)


@pytest.mark.long
def test_two_ranks_stop_and_skip_together(tmp_path):
    run_ranks("tests.finite_worker", tmp_path)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    bad = PLAN.step(1)[1]
    assert f"by 1 of 6 rows, first toy.jsonl:{bad}" in first["said"]
    assert first["said"] == second["said"]
    assert [found[True][1] for found in (first, second)] == [1, 1]
    assert rows_of(tmp_path / "False") == rows_of(tmp_path / "True") == [bad]
    for other in (first[True], second[False], second[True]):  # two steps of which one was left out are one
        assert same(first[False][0], other[0])


# ------------------------------------------------------------------------------------------- a whole run


def test_a_run_stops_with_two_lines_and_goes_on_or_skips(tmp_path, monkeypatch, capsys):
    """Its last checkpoint is sound: where the number was a passing one, the same command ends the run."""
    pairs = pairs_file(tmp_path)
    asked = ["model=hf", f"model.name={saved_model(tmp_path / 'model')}", "data=jsonl", f"data.train={pairs}"]
    asked += ["trainer.max_steps=4", "data.batch_size=6", "data.micro_batch_size=2", "trainer.checkpoint_every=1"]
    asked += ["evaluation.prompts=2", "evaluation.samples_per_prompt=2", "evaluation.max_new_tokens=4"]
    asked += ["optimizer.lr=0.001", "trainer.accelerator=cpu", f"cache_dir={tmp_path / 'cache'}"]
    plain, run = PreferenceModule.score, tmp_path / "run"

    def score(self, batch, *arguments, **options):
        """A chosen completion of the last micro-batch of step 3 is impossible."""
        scores = plain(self, batch, *arguments, **options)
        if not self.trainer.training or self.trainer.global_step != 2 or self.trainer.fit_loop.batch_idx % 3 != 2:
            return scores
        return replace(scores, logps=scores.logps.masked_fill((torch.arange(len(batch)) == 0)[:, None], -math.inf))

    with monkeypatch.context() as patch:
        patch.setattr(PreferenceModule, "score", score)
        capsys.readouterr()
        assert train(compose_request([*asked, f"run_dir={run}"])) == FAILED
        first, second = capsys.readouterr().err.strip().splitlines()[-2:]
        (line,) = stepped_lines(run / "non_finite.jsonl")
        assert line["source"] in first
        assert "step 3" in first
        assert second == f"see {run / 'non_finite.jsonl'}"
        written = json.loads(pairs.read_text().splitlines()[int(line["source"].rpartition(":")[2]) - 1])
        assert (line["prompt"], line["completions"][0]) == (written["prompt"], written["chosen"].strip())
        told = json.loads((run / "summary.json").read_text())
        assert (told["status"], told["skipped_steps"]) == ("failed", 0)
        skips = tmp_path / "skips"
        assert train(compose_request([*asked, f"run_dir={skips}", "trainer.non_finite=skip"])) == OK
    assert json.loads((skips / "summary.json").read_text())["skipped_steps"] == 1
    assert column(skips, "skipped") == [0, 0, 1, 0]
    assert rows_of(skips) == [line["row"]]
    assert train(compose_request([*asked, f"run_dir={run}"])) == OK
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["resumed_at"], summary["skipped_steps"]) == ([2], 0)
    assert not (run / "non_finite.jsonl").exists()
