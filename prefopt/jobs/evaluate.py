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
from prefopt.metrics.answers import Answers
from prefopt.models.policy import Policy
from prefopt.models.reference import reference_logps
from prefopt.module import PreferenceModule
from prefopt.progress import track
from prefopt.records import Batch
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
    *,
    seed: int,
    against_base: bool,
) -> Sampled:
    """Greedy and sampled answers of `policy`; against_base adds each answer's log-ratio to the module's base,
    whose mean is the KL only if the policy itself was sampled: at temperature 1."""
    ids = [torch.from_numpy(encoded.prompt).to(policy.device) for encoded in prompts]
    repeated = [prompt for prompt in ids for _ in range(settings.samples_per_prompt)]
    generator = torch.Generator(policy.device).manual_seed(seed)
    size: dict[str, Any] = {"max_new_tokens": settings.max_new_tokens, "batch_size": settings.batch_size}
    sampled = generate(policy, repeated, temperature=settings.temperature, generator=generator, **size)
    greedy = generate(policy, ids, temperature=0.0, **size)
    kl = None if against_base else np.zeros(len(sampled))
    if against_base and settings.temperature == 1:
        kl = _log_ratios(policy, module, repeated, sampled, settings.batch_size)
    texts = [renderer.text(answer.tolist()) for answer in sampled]
    worth = None
    if gold is not None:
        asked = [encoded.example.prompt_text for encoded in prompts for _ in range(settings.samples_per_prompt)]
        worth = np.array([gold(prompt, text) for prompt, text in zip(asked, texts, strict=True)])
    answers = Answers(settings.samples_per_prompt, [answer.tolist() for answer in sampled], kl, worth)
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


def sample_rows(prompts: list[Encoded], policy: Sampled, base: Sampled) -> list[dict[str, Any]]:
    """samples.jsonl: every fixed prompt with the answers of the policy and of the base; gold: of the sampled ones."""
    k = policy.answers.per_prompt
    return [
        {
            "prompt": encoded.example.prompt,
            "greedy": policy.greedy[i],
            "sampled": policy.sampled[i * k : (i + 1) * k],
            "gold": _rewards(policy, i),
            "base_greedy": base.greedy[i],
            "base_sampled": base.sampled[i * k : (i + 1) * k],
            "base_gold": _rewards(base, i),
        }
        for i, encoded in enumerate(prompts)
    ]


def _rewards(sampled: Sampled, i: int) -> list[float] | None:
    """Of the sampled answers to prompt i; None where the true reward is not known."""
    gold, k = sampled.answers.gold, sampled.answers.per_prompt
    return None if gold is None else gold[i * k : (i + 1) * k].tolist()


def held_out_rows(table: Table, examples: Sequence[Encoded]) -> list[dict[str, Any]]:
    """val.jsonl: one row per held-out completion."""
    rows = []
    for i, (number, place) in enumerate(zip(table["row"].astype(int), table["place"].astype(int), strict=True)):
        example = examples[number].example
        values = {name: _finite(table[name][i]) for name in ("reward", "logp", "ref_logp")}
        rows.append(
            {
                "row": f"{number}.{place}",
                "chosen": example.good(int(place)),
                **values,
                "length": int(table["length"][i]),
                "slice": example.slice,
            }
        )
    return rows


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
