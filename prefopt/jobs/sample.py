"""Answers of a model to a file of prompts or to a person, the best of several where a reward model judges them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prefopt.data.prompts import Prompt
from prefopt.data.render import Renderer
from prefopt.errors import OK, RequestError
from prefopt.files import write_lines
from prefopt.jobs.loading import Opened, open_judge, open_model, open_run, quieten
from prefopt.jobs.precision import device_for
from prefopt.models.policy import Policy
from prefopt.rewards.model import Judge, judged
from prefopt.run import Finished
from prefopt.scoring import generate
from prefopt.settings import SampleSettings


def sample(asked: SampleSettings, run: Finished | None, prompts: list[Prompt] | None) -> int:
    """Answer the prompts into a file, or a person where there are none. Returns the exit code."""
    quieten()
    speaker = open_speaker(asked, run)
    if prompts is None:
        from prefopt.jobs.chat import chat

        return chat(speaker)
    out = Path(str(asked.out)).expanduser()
    answer_file(speaker, prompts, out)
    print(f"answers     {out}   ({len(prompts)} prompts)")
    return OK


@dataclass(frozen=True)
class Reply:
    """texts: as many as were asked for. rewards: of each, where somebody judged; nan where the judge cannot read it."""

    texts: list[str]
    rewards: list[float] | None = None


@dataclass(frozen=True)
class Speaker:
    """Who answers, who judges the answers if anybody does, and how they are drawn."""

    policy: Policy
    renderer: Renderer
    judge: Judge | None
    asked: SampleSettings
    generator: torch.Generator

    def answers(self, prompts: list[Prompt], watch: Callable[[Tensor], None] | None = None) -> list[Reply]:
        """asked.n answers to each prompt, each the best of asked.best_of. watch: as in `generate`."""
        drawn = self.asked.n * (self.asked.best_of or 1)
        ids = [self.ids(prompt) for prompt in prompts for _ in range(drawn)]
        found = generate(
            self.policy,
            ids,
            max_new_tokens=self.asked.max_new_tokens,
            temperature=self.asked.temperature,
            top_p=self.asked.top_p,
            generator=self.generator,
            batch_size=self.asked.batch_size,
            watch=watch,
        )
        texts = [self.renderer.text(answer.tolist()) for answer in found]
        return [self._kept(prompt, texts[i * drawn : (i + 1) * drawn]) for i, prompt in enumerate(prompts)]

    def ids(self, prompt: Prompt) -> Tensor:
        """RequestError where the model cannot hold it and an answer."""
        ids = torch.from_numpy(self.renderer.prompt(prompt.prompt, prompt.source)).to(self.policy.device)
        room, longest = getattr(self.policy.config, "max_position_embeddings", None), self.asked.max_new_tokens
        if room is not None and len(ids) + longest > room:
            where = prompt.source or "this conversation"
            raise RequestError(f"{where}: {len(ids)} tokens and max_new_tokens={longest} exceed the model's {room}")
        return ids

    def _kept(self, prompt: Prompt, texts: list[str]) -> Reply:
        if self.judge is None:
            return Reply(texts)
        rewards, many = judged(self.judge, prompt.prompt, texts), self.asked.best_of or 1
        groups = [range(start, start + many) for start in range(0, len(texts), many)]
        best = [max(group, key=lambda i: -math.inf if math.isnan(rewards[i]) else rewards[i]) for group in groups]
        return Reply([texts[i] for i in best], [rewards[i] for i in best])


def open_speaker(asked: SampleSettings, run: Finished | None) -> Speaker:
    device = device_for(asked.device)
    judge = open_judge(asked.reward.name, asked.model.trust_remote_code) if asked.reward.name else None
    opened = _opened(asked, run)
    if judge is not None:
        judge.model.policy.to(device)
    policy = opened.policy().to(device)
    generator = torch.Generator(device).manual_seed(asked.seed)
    return Speaker(policy, opened.renderer, judge, asked, generator)


def _opened(asked: SampleSettings, run: Finished | None) -> Opened:
    trust = asked.model.trust_remote_code
    if run is not None:
        return open_run(run, asked.base, asked.model.dtype, asked.chat, trust)
    return open_model(str(asked.model.name), asked.model.dtype, trust, asked.chat)


def answer_file(speaker: Speaker, prompts: list[Prompt], out: Path) -> None:
    """One row a prompt, in their order; the file appears when all are answered."""
    for prompt in prompts:  # what cannot be asked is refused before anything is drawn
        speaker.ids(prompt)
    found = speaker.answers(prompts)
    write_lines(out, [row_of(prompt, reply) for prompt, reply in zip(prompts, found, strict=True)])


def row_of(prompt: Prompt, reply: Reply) -> dict[str, Any]:
    row: dict[str, Any] = {"prompt": prompt.prompt, "answers": reply.texts}
    if reply.rewards is not None:
        row["rewards"] = [None if math.isnan(reward) else reward for reward in reply.rewards]
    return row
