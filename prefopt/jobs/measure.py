"""Holding a policy against its base: the held-out rows, and answers to fixed prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor

from prefopt.data.examples import Encoded
from prefopt.data.module import held_out_loaders
from prefopt.data.prepare import Dataset
from prefopt.data.render import Renderer
from prefopt.metrics.answers import Answers, answer_measures, gold_gain
from prefopt.metrics.held_out import gold_measures, measures
from prefopt.models.policy import Policy
from prefopt.models.reference import reference_logps
from prefopt.module import PreferenceModule
from prefopt.progress import track
from prefopt.records import Batch
from prefopt.rewards import Answer
from prefopt.scoring import generate, score
from prefopt.settings import EvaluationSettings

Table = dict[str, np.ndarray]


@dataclass(frozen=True)
class HeldOut:
    """What the held-out rows of a split say."""

    measures: dict[str, float | None]
    table: Table


def evaluate_split(
    trainer: L.Trainer, module: PreferenceModule, examples: Sequence[Encoded], settings: EvaluationSettings
) -> HeldOut:
    needs, ranks = module.objective.needs, (trainer.global_rank, trainer.world_size)
    loaders = held_out_loaders(examples, needs.data, needs.columns, settings.batch_size, *ranks)
    trainer.validate(module, loaders, verbose=False)
    return HeldOut(module.held_out_measures(examples), module.held_out.compute())


# ---------------------------------------------------------------- answers


@dataclass(frozen=True)
class Sampled:
    """Answers of one policy: sampled ones with their measures' inputs, and the greedy ones."""

    answers: Answers
    sampled: list[str]
    greedy: list[str]


def fixed_prompts(dataset: Dataset, n: int) -> list[Encoded]:
    """n different held-out prompts, evenly spread over val and test; the same for every method and seed."""
    first = {encoded.example.question: encoded for encoded in (*dataset.test, *dataset.val)}
    prompts = list(first.values())
    return [prompts[i * len(prompts) // n] for i in range(n)] if n < len(prompts) else prompts


def sample_policy(
    policy: Policy,
    module: PreferenceModule,
    prompts: list[Encoded],
    renderer: Renderer,
    settings: EvaluationSettings,
    gold: Callable[[str, str], float] | None,
    judge: Callable[[Sequence[Answer]], np.ndarray | None] | None,
    *,
    seed: int,
    against_base: bool,
) -> Sampled:
    """Greedy and sampled answers of `policy`; against_base adds each answer's log-ratio to the module's base, if it has
    one, whose mean is the KL only if the policy itself was sampled: at temperature 1. Without it the policy is the base
    itself."""
    ids = [torch.from_numpy(encoded.prompt).to(policy.device) for encoded in prompts]
    asked = [encoded for encoded in prompts for _ in range(settings.samples_per_prompt)]
    repeated = [prompt for prompt in ids for _ in range(settings.samples_per_prompt)]
    generator = torch.Generator(policy.device).manual_seed(seed)
    size: dict[str, Any] = {"max_new_tokens": settings.max_new_tokens, "batch_size": settings.batch_size}
    sampled = generate(policy, repeated, temperature=settings.temperature, generator=generator, **size)
    greedy = generate(policy, ids, temperature=0.0, **size)
    kl = None if against_base else np.zeros(len(sampled))
    if against_base and module.base is not None and settings.temperature == 1:
        kl = _log_ratios(policy, module, repeated, sampled, settings.batch_size)
    said = [Answer.of(*one, renderer.text, policy.end_ids) for one in zip(asked, sampled, strict=True)]
    texts = [answer.text for answer in said]
    worth = None
    if gold is not None:
        worth = np.array([gold(one.example.prompt_text, text) for one, text in zip(asked, texts, strict=True)])
    judged = judge(said) if judge is not None else None
    answers = Answers(settings.samples_per_prompt, [ids.tolist() for ids in sampled], kl, worth, judged)
    return Sampled(answers, texts, [renderer.text(answer.tolist()) for answer in greedy])


@torch.no_grad()
def _log_ratios(
    policy: Policy, module: PreferenceModule, prompts: list[Tensor], answers: list[Tensor], batch_size: int
) -> np.ndarray:
    """[n] Σ_t log π(y_t) - log π_base(y_t) of the policy's own answers, nats; of the policy that was sampled, which
    has no dropout."""
    found = []
    starts = range(0, len(prompts), batch_size)
    with policy.evaluating():
        for i in track(starts, "KL of the answers", len(starts)):
            some, said = prompts[i : i + batch_size], answers[i : i + batch_size]
            batch = Batch.of("rollouts", some, said, list(range(len(some)))).to(policy.device)
            scores = score(policy, batch)
            gap = scores.logps - reference_logps(module.base, batch)
            found.append(scores.total(gap).double().cpu())
    return torch.cat(found).numpy()


@dataclass(frozen=True)
class Compared:
    """The fixed prompts with the answers of a policy, and those of whom it is held against, where there is somebody."""

    prompts: list[Encoded]
    policy: Sampled
    base: Sampled | None


def compared_answers(
    trainer: L.Trainer,
    module: PreferenceModule,
    dataset: Dataset,
    renderer: Renderer,
    settings: EvaluationSettings,
    seed: int,
    judge: Callable[[Sequence[Answer]], np.ndarray | None] | None = None,
) -> Compared:
    """Sampled on the device that the trainer has, in its precision. judge: who says what answers are worth."""
    module.to(trainer.strategy.root_device)  # Lightning leaves it on the CPU when a validation ends
    prompts = fixed_prompts(dataset, settings.prompts)
    # Two seeds: the answers of the policy and of its base are compared as independent samples.
    ask = (module, prompts, renderer, settings, dataset.gold, judge)
    as_trained = trainer.precision_plugin.forward_context
    with as_trained():
        own = sample_policy(module.policy, *ask, seed=2 * seed, against_base=True)
    if module.base is None:
        return Compared(prompts, own, None)
    with module.base.policy(module.policy.device) as base, as_trained():
        return Compared(prompts, own, sample_policy(base, *ask, seed=2 * seed + 1, against_base=False))


def sample_rows(compared: Compared) -> list[dict[str, Any]]:
    """samples.jsonl: every fixed prompt with the answers of the policy and of the base; gold and annotation: of the
    sampled ones."""
    return [
        {
            "prompt": encoded.example.prompt,
            **_said(compared.policy, i),
            **{f"base_{name}": said for name, said in _said(compared.base, i).items()},
        }
        for i, encoded in enumerate(compared.prompts)
    ]


def _said(sampled: Sampled | None, i: int) -> dict[str, Any]:
    """To prompt i. gold, annotation: None where nobody knows the true reward, or nobody judges."""
    if sampled is None:
        return dict.fromkeys(("greedy", "sampled", "gold", "annotation"))
    k = sampled.answers.per_prompt
    own = slice(i * k, (i + 1) * k)
    worth = {"gold": sampled.answers.gold, "annotation": sampled.answers.judged}
    said = {name: None if values is None else values[own].tolist() for name, values in worth.items()}
    return {"greedy": sampled.greedy[i], "sampled": sampled.sampled[own], **said}


# ---------------------------------------------------------------- what a summary says


def compared(test: HeldOut, dataset: Dataset, answers: Compared | None) -> dict[str, Any]:
    """What summary.json says beside the measures of the rows: those of the base, of the answers, and of the world."""
    base = answers.base if answers else None
    return {
        "test_reference": _base_measures(test, dataset),
        "samples": answer_measures(answers.policy.answers, base.answers if base else None) if answers else None,
        "samples_reference": answer_measures(base.answers) if base else None,
        "world": _world(test, dataset, answers),
    }


def _base_measures(test: HeldOut, dataset: Dataset) -> dict[str, float | None]:
    """What the base itself scores on the same rows: its log-ratio to itself is a tie everywhere."""
    found = measures({**test.table, "logp": test.table["ref_logp"]}, dataset.test)
    return {name: found[name] for name in ("accuracy_logratio", "accuracy_logp")}


def _world(test: HeldOut, dataset: Dataset, answers: Compared | None) -> dict[str, float | None] | None:
    """What can be told only where the gold reward is known."""
    if dataset.gold is None or not np.isfinite(test.table["reward"]).all():
        return None
    gained = gold_gain(answers.policy.answers, answers.base.answers) if answers and answers.base else {}
    return {**gold_measures(test.table, dataset.test), **gained}


def held_out_rows(table: Table, examples: Sequence[Encoded]) -> list[dict[str, Any]]:
    """val.jsonl: one row per held-out completion. prompt: a number that those under one prompt share."""
    rows, prompts = [], dict[Any, int]()
    for i, (number, place) in enumerate(zip(table["row"].astype(int), table["place"].astype(int), strict=True)):
        example = examples[number].example
        values = {name: _finite(table[name][i]) for name in ("reward", "logp", "ref_logp")}
        rows.append(
            {
                "row": f"{number}.{place}",
                "prompt": prompts.setdefault(example.question, len(prompts)),
                "chosen": example.good(int(place)),
                **values,
                "length": int(table["length"][i]),
                "slice": example.slice,
            }
        )
    return rows


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
