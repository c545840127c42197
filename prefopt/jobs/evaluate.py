"""`prefopt evaluate`: a run or any model, measured by what measures a run when it ends."""

from __future__ import annotations

import shlex
import sys
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from prefopt.config import trained_settings
from prefopt.data.audit import in_words
from prefopt.data.prepare import Dataset
from prefopt.errors import FAILED, OK, RequestError, first_line
from prefopt.files import replacing_folder, write_json, write_lines
from prefopt.jobs.assemble import prepare_rows
from prefopt.jobs.loading import quieten
from prefopt.jobs.measure import (
    Compared,
    HeldOut,
    compared,
    compared_answers,
    evaluate_split,
    held_out_rows,
    sample_rows,
)
from prefopt.jobs.precision import device_for
from prefopt.jobs.subject import Rows, Subject, open_subject
from prefopt.jobs.trainer import quiet_trainer
from prefopt.metrics.held_out import slice_measures
from prefopt.metrics.rewardbench import section_scores
from prefopt.module import PreferenceModule
from prefopt.objectives import Needs, Objective
from prefopt.objectives.base import Term
from prefopt.progress import say
from prefopt.records import Scores
from prefopt.reports.terminal import print_evaluation
from prefopt.run import Finished, git_revision, versions
from prefopt.schedules import constant
from prefopt.scrub import scrubbed
from prefopt.settings import EvaluateSettings, EvaluationSettings

SCHEMA = 1
ACCURACIES = ("accuracy", "accuracy_logratio", "accuracy_logp")


def evaluate(asked: EvaluateSettings, run: Finished | None, rows: Rows, settings: EvaluationSettings, out: Path) -> int:
    """Returns the exit code. Whatever goes wrong, no folder is left."""
    quieten()
    torch.set_flush_denormal(True)
    products = torch.get_float32_matmul_precision()
    try:
        with replacing_folder(out) as folder:
            summary = write_evaluation(asked, run, rows, settings, folder)
    except RequestError:
        raise
    except Exception as error:
        if asked.debug:
            traceback.print_exc()
        print(f"the evaluation failed, nothing is left: {type(error).__name__}: {first_line(error)}", file=sys.stderr)
        return FAILED
    finally:
        torch.set_float32_matmul_precision(products)
    print_evaluation(out, summary)
    return OK


def write_evaluation(
    asked: EvaluateSettings, run: Finished | None, rows: Rows, settings: EvaluationSettings, folder: Path
) -> dict[str, Any]:
    """Everything, into an empty folder. Returns the summary."""
    subject = open_subject(asked, run, rows)
    dataset = prepare_rows(rows.data, rows.origin, subject.renderer, Path(asked.cache_dir).expanduser())
    if run is not None and asked.data is None:
        check_rows(run, dataset)
    tell(subject, dataset, own=asked.data is None)
    module = measuring_module(subject, dataset)
    trainer = measuring_trainer(asked.device, subject.precision)
    seed = asked.seed if asked.seed is not None else trained_settings(run).seed if run else 0
    test, answers = evaluate_split(trainer, module, dataset.test, settings), None
    if module.policy.speaks and asked.evaluation.prompts != 0:
        answers = compared_answers(trainer, module, dataset, subject.renderer, settings, seed)
        write_lines(folder / "samples.jsonl", sample_rows(answers))
    write_lines(folder / "test.jsonl", held_out_rows(test.table, dataset.test))
    summary = {
        **told_of(subject, run, dataset, trainer),
        "seed": seed,
        "evaluation": asdict(settings) if answers else {"batch_size": settings.batch_size},
        **measured(test, dataset, answers),
    }
    write_json(folder / "summary.json", scrubbed(summary))
    return summary


# ---------------------------------------------------------------- measuring


@dataclass(frozen=True, kw_only=True)
class Measured(Objective):
    """A reward without a loss: of a method, on rows that it does not learn from; of a model that no method trained,
    what its reward head says, and nothing where it has none."""

    needs = Needs(data="pairs")
    method: Objective | None = None

    def terms(self, scores: Scores, statistics: Mapping[str, Tensor]) -> tuple[Term, ...]:
        return ()

    def reward(self, scores: Scores) -> Tensor:
        if self.method is not None:
            return self.method.reward(scores)
        return scores.rewards if scores.rewards is not None else torch.full_like(scores.logp, torch.nan)


def measuring_module(subject: Subject, dataset: Dataset) -> PreferenceModule:
    """What trained the subject, or something that only measures, around a policy that stays as it is."""
    objective, policy = subject.method, subject.policy
    if objective is not None:  # a critic of its own is not part of what was trained for
        objective.refine(heads=objective.needs.heads & ({"lm"} | set(policy.heads)))
    if objective is None or not any(objective.needs.data in row.example.kinds for row in dataset.test):
        heads = objective.needs.heads if objective else frozenset(policy.heads) | ({"lm"} if policy.speaks else set())
        reference = objective is not None and objective.needs.reference
        objective = Measured(method=subject.method)
        kind = "pairs" if dataset.test[0].example.is_pair else "labels"
        objective.refine(data=kind, heads=heads, reference=reference)
    never = partial(torch.optim.SGD, lr=0.0)
    return PreferenceModule(objective, policy, None, never, constant, subject.base)


def measuring_trainer(device: str, precision: Any) -> L.Trainer:
    return quiet_trainer(accelerator=device_for(device), devices=1, precision=precision, logger=False)


def check_rows(run: Finished, dataset: Dataset) -> None:
    """A run's own rows are those that it was evaluated on."""
    for name in ("data_hash", "tokens_hash"):
        held, found = run.summary[name], getattr(dataset, name)
        if held != found:
            raise RequestError(
                f"run={run.path}: its rows are others by now: {name} was {str(held)[:12]} and is {found[:12]}"
                "\ndata=jsonl data.test=FILE names rows"
            )


def tell(subject: Subject, dataset: Dataset, own: bool) -> None:
    """What is measured against whom. own: the rows are the run's, which has said what it dropped."""
    dropped = "" if own else in_words(dataset.audit["dropped"])
    say(f"test rows: {len(dataset.test)}" + (f"; dropped: {dropped}" if dropped else ""))
    if subject.base is not None:
        say(f"held against {subject.base.who}")
    elif subject.policy.speaks:
        say("held against nobody (reference=MODEL names one): no log-ratio, KL or win rate")


# ---------------------------------------------------------------- what is written


def told_of(subject: Subject, run: Finished | None, dataset: Dataset, trainer: L.Trainer) -> dict[str, Any]:
    """What was evaluated, on what, by what."""
    cuda = trainer.strategy.root_device.type == "cuda"
    return {
        "schema": SCHEMA,
        "status": "evaluated",  # no run, whoever looks for one
        "command": shlex.join(["python", "-m", "prefopt.evaluate", *sys.argv[1:]]),
        "model": subject.name,
        "reference": subject.base.who if subject.base else None,
        **{name: run.summary[name] if run else None for name in ("loss", "config_hash", "model_hash", "base_hash")},
        "data_hash": dataset.data_hash,
        "tokens_hash": dataset.tokens_hash,
        "audit": dataset.audit,
        "precision": str(subject.precision),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "versions": versions(),
        "git": git_revision(),
    }


def measured(test: HeldOut, dataset: Dataset, answers: Compared | None) -> dict[str, Any]:
    slices = slice_measures(test.table, dataset.test)
    sections = {}
    for name in ACCURACIES if slices else ():
        scores = section_scores({part: found[name] for part, found in slices.items()})
        if scores:
            sections[name] = scores
    return {
        "rows": len(dataset.test),
        "test": test.measures,
        "slices": slices,
        "sections": sections or None,
        **compared(test, dataset, answers),
    }
