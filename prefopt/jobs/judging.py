"""What a reward model says of answers: of some to one prompt, and of all that runs have sampled."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from prefopt.data.examples import Text
from prefopt.errors import RequestError
from prefopt.jobs.loading import Judge, open_judge, quieten
from prefopt.progress import track
from prefopt.reports.compare.runs import Run, Worth


def judged(judge: Judge, prompt: Text, texts: list[str]) -> list[float]:
    """The reward of every answer, rendered anew for the reward model, as if each had ended where it was cut. nan where
    its renderer refuses an answer, one that writes the marks of a chat template."""
    renderer, device = judge.renderer, judge.model.policy.device
    asked = torch.from_numpy(renderer.prompt(prompt))
    said: dict[int, Tensor] = {}
    for i, text in enumerate(texts):
        try:
            ids = torch.from_numpy(renderer.completion(prompt, text))
        except RequestError:
            continue
        said[i] = ids if len(ids) else torch.tensor(renderer.end_ids[:1])  # nothing, and that it is all
    rewards = judge.model([asked.to(device)] * len(said), [ids.to(device) for ids in said.values()]).tolist()
    found = dict(zip(said, rewards, strict=True))
    return [found.get(i, math.nan) for i in range(len(texts))]


def judge_runs(runs: Sequence[Run], name: str) -> list[Run]:
    """The runs with what a reward model (a run's folder, a hub name or another folder) says of the answers in their
    samples.jsonl. An answer that it cannot read is worth as little as the worst of all."""
    quieten()
    judge = open_judge(name, key="--reward")
    if torch.cuda.is_available():
        judge.model.policy.to("cuda")
    asked: dict[str, dict[str, float]] = {}
    prompts: dict[str, Text] = {}
    for run in runs:
        for row in run.samples:
            key = json.dumps(row["prompt"])
            prompts[key] = row["prompt"]
            texts = [*(row["sampled"] or []), *(row.get("base_sampled") or [])]
            asked.setdefault(key, {}).update(dict.fromkeys(texts, math.nan))
    if not asked:
        raise RequestError("--reward: none of these runs has sampled answers")
    for key in track(asked, "judging the answers", len(asked)):
        texts = list(asked[key])
        asked[key] = dict(zip(texts, judged(judge, prompts[key], texts), strict=True))
    worst = min((value for said in asked.values() for value in said.values() if math.isfinite(value)), default=math.nan)
    if math.isnan(worst):
        raise RequestError(f"--reward={name} can read none of the answers")
    return [replace(run, judged=_worth(run, asked, worst)) for run in runs]


def _worth(run: Run, asked: dict[str, dict[str, float]], worst: float) -> Worth | None:
    def of(side: str) -> list[list[float]]:
        found = [[asked[json.dumps(row["prompt"])][text] for text in row.get(side) or []] for row in run.samples]
        return [[value if math.isfinite(value) else worst for value in values] for values in found]

    return Worth(of("sampled"), of("base_sampled")) if run.samples else None
