"""Samples of several policies under the same prompts, and what each policy says of all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from prefopt.config import trained_settings
from prefopt.data.origins import Controlled, open_origin
from prefopt.data.world import World
from prefopt.errors import RequestError
from prefopt.jobs.assemble import build_renderer, plain_base
from prefopt.jobs.loading import Opened, open_run, quieten
from prefopt.jobs.precision import device_for
from prefopt.models.build import with_settings
from prefopt.models.policy import Policy
from prefopt.progress import track
from prefopt.records import Batch
from prefopt.run import Finished
from prefopt.scoring import generate, score

ROWS = 128  # completions of a prompt that are scored at once
SAMPLED = 512  # completions that are sampled at once

Load = Callable[[], Policy]


def save_pools(
    folder: Path,
    first: Finished,
    trained: Sequence[Finished],
    prompts: Sequence[str],
    counts: Sequence[int],
    cache: Path,
) -> None:
    """pools.npz: source [n], and of every prompt rewards [P, n], logps [P, K, n] and the largest reward [P].

    Policy 0 is the base of the runs, then the trained ones; counts: [K] samples of each under every prompt.
    """
    quieten()
    base, world = _start(first, cache)
    opened = [base, *(open_run(run, base.base.name if run.adapted else None) for run in trained)]
    ids = [torch.from_numpy(base.renderer.prompt(prompt)) for prompt in prompts]
    longest, ends = first.config["evaluation"]["max_new_tokens"], base.renderer.end_ids
    answers, logps = pooled([_loader(one, ends) for one in opened], ids, counts, longest)
    texts = [[base.renderer.text(answer.tolist()) for answer in some] for some in answers]
    np.savez(
        folder / "pools.npz",
        rewards=[[world.gold(prompt, text) for text in some] for prompt, some in zip(prompts, texts, strict=True)],
        logps=logps,
        source=np.repeat(np.arange(len(counts)), counts),
        largest=[world.largest(prompt) for prompt in prompts],
    )


def pooled(
    loads: Sequence[Load], prompts: Sequence[Tensor], counts: Sequence[int], max_new_tokens: int
) -> tuple[list[list[Tensor]], np.ndarray]:
    """Of every prompt the samples of all policies, those of one policy together, and their log-probs [P, K, n] in nats.

    One model is in memory at a time. Sampled at temperature 1: the log-probs are those of the sampling.
    """
    asked = enumerate(zip(loads, counts, strict=True))
    by_policy = [_sampled(load, prompts, n, max_new_tokens, seed) for seed, (load, n) in asked]
    answers = [[answer for some in by_policy for answer in some[p]] for p in range(len(prompts))]
    return answers, np.stack([_scored(load, prompts, answers) for load in loads], axis=1)


def _sampled(load: Load, prompts: Sequence[Tensor], n: int, max_new_tokens: int, seed: int) -> list[list[Tensor]]:
    """Of every prompt n samples."""
    policy = load()
    asked = [prompt.to(policy.device) for prompt in prompts for _ in range(n)]
    generator = torch.Generator(policy.device).manual_seed(seed)
    found = generate(policy, asked, max_new_tokens=max_new_tokens, generator=generator, batch_size=SAMPLED)
    return [[answer.cpu() for answer in found[p * n : (p + 1) * n]] for p in range(len(prompts))]


@torch.no_grad()
def _scored(load: Load, prompts: Sequence[Tensor], answers: Sequence[Sequence[Tensor]]) -> np.ndarray:
    """[P, n] log π(y|x) in nats."""
    policy = load()
    parts = [(p, i) for p, some in enumerate(answers) for i in range(0, len(some), ROWS)]
    found: list[list[Tensor]] = [[] for _ in prompts]
    with policy.evaluating():
        for p, i in track(parts, "log-probs of the samples", len(parts)):
            some = list(answers[p][i : i + ROWS])
            batch = Batch.of("rollouts", [prompts[p]], some, [0] * len(some)).to(policy.device)
            found[p].append(score(policy, batch).logp.double().cpu())
    return np.array([torch.cat(logps).numpy() for logps in found])


def _start(run: Finished, cache: Path) -> tuple[Opened, World]:
    """What the run started from, and its world. RequestError where other weights come out than it stood on."""
    settings = replace(trained_settings(run), cache_dir=str(cache))
    origin = open_origin(settings.data, cache)
    assert isinstance(origin, Controlled)
    base = with_settings(plain_base(settings, origin), settings.model)
    expected = run.summary["base_hash"]
    if base.hash() != expected:
        raise RequestError(
            f"the base found here has other weights than the runs': {base.hash()[:12]}, not {expected[:12]}; "
            "--cache-dir names the cache that they were trained with"
        )
    return Opened(base, build_renderer(settings, base), settings), origin.world


def _loader(opened: Opened, ends: tuple[int, ...]) -> Load:
    """The same tokens end an answer of every policy: else they would speak of different completions."""

    def load() -> Policy:
        policy = opened.policy().to(device_for("auto"))
        policy.end_ids = ends
        return policy

    return load
