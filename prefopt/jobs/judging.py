"""What a reward model says of all answers that runs have sampled."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from prefopt.data.examples import Text
from prefopt.errors import RequestError
from prefopt.jobs.loading import open_judge, quieten
from prefopt.progress import track
from prefopt.reports.compare.runs import Run, Worth
from prefopt.rewards.model import judged


def judge_runs(runs: Sequence[Run], name: str) -> tuple[list[Run], str]:
    """The runs with what a reward model (a run's folder, a hub name or another folder) says of the answers in their
    samples.jsonl, and a sentence on it. An answer that it cannot read is worth as little as the worst of all."""
    prompts, asked = _answers(runs)
    if not asked:
        raise RequestError(f"--reward={name}: none of these runs has sampled answers")
    quieten()
    judge = open_judge(name, key="--reward")
    if torch.cuda.is_available():
        judge.model.policy.to("cuda")
    said: dict[str, dict[str, float]] = {}
    for i, (key, texts) in enumerate(track(asked.items(), "judging the answers", len(asked))):
        rewards = judged(judge, prompts[key], texts, f"--reward={name}: prompt {i + 1}")
        said[key] = dict(zip(texts, rewards, strict=True))
    every = [value for rewards in said.values() for value in rewards.values()]
    worst = min(filter(math.isfinite, every), default=math.nan)
    if math.isnan(worst):
        raise RequestError(f"--reward={name} can read none of the answers: its template's marks, or too long for it")
    unread = len(every) - sum(map(math.isfinite, every))
    told = f"Reward model: {name}." + (f" {unread} of {len(every)} different answers {UNREAD}." if unread else "")
    return [replace(run, judged=_worth(run, said, worst)) for run in runs], told


UNREAD = "it cannot read; each is worth as little to it as the worst of the others"


def _answers(runs: Sequence[Run]) -> tuple[dict[str, Text], dict[str, list[str]]]:
    """By prompt the prompt itself, and every different answer to it."""
    prompts: dict[str, Text] = {}
    found: dict[str, dict[str, None]] = {}
    for row in (row for run in runs for row in run.samples):
        key = json.dumps(row["prompt"])
        prompts[key] = row["prompt"]
        texts = [*(row.get("sampled") or []), *(row.get("base_sampled") or [])]
        found.setdefault(key, {}).update(dict.fromkeys(texts))
    return prompts, {key: list(texts) for key, texts in found.items() if texts}


def _worth(run: Run, said: dict[str, dict[str, float]], worst: float) -> Worth | None:
    def of(side: str) -> list[list[float]]:
        found = [[said[json.dumps(row["prompt"])][text] for text in row.get(side) or []] for row in run.samples]
        return [[value if math.isfinite(value) else worst for value in values] for values in found]

    own = of("sampled")
    return Worth(own, of("base_sampled")) if own and all(own) else None
