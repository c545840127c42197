"""Fresh pairs between two rounds of a pipeline: answers of the last policy to the training prompts, judged anew.

`python -m prefopt.jobs.fresh WORDS run_dir=DIR`, which only a pipeline calls: WORDS are those of the run that will
learn from the pairs, with the policy as its model.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from prefopt.config import Request, build_request, command
from prefopt.data.examples import Encoded, Example
from prefopt.data.prepare import Dataset
from prefopt.data.world import label, temperature_for
from prefopt.errors import OK, RequestError
from prefopt.files import replacing_folder, write_json, write_lines
from prefopt.jobs.annotator import build_annotator
from prefopt.jobs.assemble import prepare_data, recorded
from prefopt.jobs.loading import quieten
from prefopt.jobs.precision import device_type
from prefopt.jobs.rollouts import sample
from prefopt.models.policy import Policy
from prefopt.progress import say
from prefopt.rewards import Answer, Calibrating
from prefopt.run import without_places

if TYPE_CHECKING:
    from omegaconf import DictConfig


def task(cfg: DictConfig) -> int:
    request = build_request(cfg)
    quieten()
    return fresh(request, Path(str(request.settings.run_dir)))


def fresh(request: Request, folder: Path) -> int:
    """train.jsonl holds two answers to each prompt that the run will read, val.jsonl and test.jsonl the held-out rows
    as they are. The folder appears when it is whole."""
    base, renderer, dataset = prepare_data(request)
    source = recorded(request, dataset)
    prompts = [source.view.examples[source.view.rows[row]] for row in source.plan.rows_seen()]
    judge = _judge(request, dataset, chat=bool(base.tokenizer.chat_template))
    rows = judge.pairs(prompts, _answers(request, base.policy(), renderer.text, prompts))
    with replacing_folder(folder) as temporary:
        write_json(temporary / "config.json", without_places(request.plain))
        write_lines(temporary / "train.jsonl", rows)
        for name, held_out in (("val", dataset.val), ("test", dataset.test)):
            write_lines(
                temporary / f"{name}.jsonl", [_as_it_is(row.example) for row in held_out if row.example.is_pair]
            )
    say(f"{len(rows)} fresh pairs in {folder}")
    return OK


def _answers(
    request: Request, policy: Policy, text: Callable[[list[int]], str], prompts: Sequence[Encoded]
) -> list[Answer]:
    """Two to each prompt, one after the other."""
    source = request.settings.source
    policy = policy.eval().to(device_type(request.settings.trainer))
    twice = [prompt for prompt in prompts for _ in range(2)]
    asked = [torch.from_numpy(prompt.prompt).to(policy.device) for prompt in twice]
    generator = torch.Generator(policy.device).manual_seed(request.settings.seed)
    found = sample(source, policy, asked, generator, quiet=False)
    return [Answer.of(prompt, ids, text, policy.end_ids) for prompt, ids in zip(twice, found, strict=True)]


# ---------------------------------------------------------------- judging


@dataclass(frozen=True)
class Judge:
    """Who prefers which of two answers. temperature: of noisy labels by Bradley-Terry; None: the judge's word."""

    annotator: Calibrating
    temperature: float | None
    seed: int

    def pairs(self, prompts: Sequence[Encoded], answers: Sequence[Answer]) -> list[dict[str, Any]]:
        """Rows that data=jsonl reads, in the order of the prompts. To a judge that makes no mistakes, answers that are
        worth the same are a tie."""
        if not self.annotator.calibrated:
            self.annotator.calibrate(answers)
        worth = self.annotator(answers).reward
        prefer_first = self._prefer(worth[::2], worth[1::2])
        rows = []
        for i, prompt in enumerate(prompts):
            better, worse = (2 * i, 2 * i + 1) if prefer_first[i] else (2 * i + 1, 2 * i)
            row = _row(prompt.example, answers[better].text, answers[worse].text)
            rows.append({**row, "tie": bool(self.temperature is None and worth[better] == worth[worse])})
        return rows

    def _prefer(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        if self.temperature is None:
            return first > second
        return label(first, second, self.temperature, np.random.default_rng(self.seed))


def _judge(request: Request, dataset: Dataset, chat: bool) -> Judge:
    """As `reward` names it. The gold of the controlled world speaks through its annotators, who are as noisy as they
    were over the first pairs."""
    settings = request.settings
    annotator = build_annotator(settings.reward, dataset.gold, chat=chat)
    annotator.to(torch.device(device_type(settings.trainer)))
    noisy = settings.reward.kind == "gold" and settings.data.world is not None
    return Judge(annotator, _temperature(request, dataset) if noisy else None, settings.seed)


def _temperature(request: Request, dataset: Dataset) -> float:
    gold = np.array([encoded.example.gold for encoded in dataset.train])
    try:
        return temperature_for(gold[:, 0] - gold[:, -1], request.settings.data.world.agreement)
    except ValueError as error:
        raise RequestError(f"data.world.agreement: {error}") from error


# ---------------------------------------------------------------- rows


def _row(example: Example, chosen: str, rejected: str) -> dict[str, Any]:
    prompt = example.prompt if isinstance(example.prompt, str) else list(example.prompt)
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def _as_it_is(example: Example) -> dict[str, Any]:
    """A held-out pair, or the best and the worst of a ranking."""
    row = _row(example, example.completions[0], example.completions[-1])
    return {**row, "weight": example.confidence, "slice": example.slice, "margin": example.margin}


def main() -> int:
    return command("train", task)


if __name__ == "__main__":
    sys.exit(main())
