"""The source that samples with the live policy, asks the annotator, and hands the answers to training with credit."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor

from prefopt.data.examples import Encoded
from prefopt.data.loader import Shown, Source, chunked, share
from prefopt.data.views import RECORDED, view
from prefopt.errors import RequestError, first_line
from prefopt.models.policy import Policy
from prefopt.models.reference import reference_logps
from prefopt.objectives import Objective
from prefopt.progress import say
from prefopt.ranks import of_all_ranks
from prefopt.records import Columns, Scores
from prefopt.rewards import Answer, Calibrating
from prefopt.rollouts.collection import Collection, Found, joined, ordered
from prefopt.rollouts.examples import as_examples
from prefopt.rollouts.kl import AdaptiveKL
from prefopt.rollouts.measures import measures_of
from prefopt.rollouts.plan import RolloutPlan
from prefopt.scoring import score

Sampler = Callable[[Policy, list[Tensor], torch.Generator], list[Tensor]]
"""(policy, prompts [p], generator) to one answer [t] each, the end-of-turn token included where it was reached. What
the answers are worth to training is scored anew, so any engine may stand here."""


@dataclass(frozen=True)
class Speaking:
    """How answers come about and are judged. samples: to each prompt. pair: best_worst or random, of a prompt's
    answers the two that a loss on pairs is shown. watch: another annotator, that training does not see. text: ids to
    the answer they say."""

    samples: int
    pair: str
    sampler: Sampler
    annotator: Calibrating
    text: Callable[[list[int]], str]
    watch: Calibrating | None = None


class Rollouts(Source):
    """Collections of answers, each sampled when its first step is due and so by the policy that step starts from.

    Old log-probs are those of our own scorer, in the packs in which the first pass trains them: the first ratio is 1,
    whatever the precision. Every rank answers the prompts that it trains first; then all know all answers, and credit
    is given over the whole collection.
    """

    plan: RolloutPlan

    def __init__(
        self,
        prompts: Sequence[Encoded],
        plan: RolloutPlan,
        speaking: Speaking,
        micro_batch_size: int | None = None,
        adaptive: AdaptiveKL | None = None,
    ) -> None:
        self.prompts, self.plan, self.speaking, self.adaptive = prompts, plan, speaking, adaptive
        self.micro_batch_size = micro_batch_size
        self.measures: dict[str, float] = {}
        self.collections = self.answers = self.answer_tokens = 0  # sampled so far
        self.sampling_seconds: float = 0.0
        self._number: int | None = None
        self._collection: Collection | None = None
        self._shown: Shown | None = None
        self._resumed: dict[str, Any] | None = None

    def judge(self, answers: Sequence[Answer]) -> np.ndarray | None:
        """By the statistics that training ended with. What cannot be judged, by a rule that knows training prompts
        only, must not cost a trained run its end: None, and a sentence why."""
        self.speaking.annotator.settle()
        try:
            return self.speaking.annotator(answers).reward
        except RequestError as error:
            say(f"held-out answers are not judged: {error}")
            return None

    def attach(self, trainer: L.Trainer) -> None:
        self.trainer = trainer
        self.module: Any = trainer.lightning_module
        if self.adaptive and self.adaptive.beta is not None:
            self._set_beta(self.adaptive.beta)
        state, self._resumed = self._resumed, None
        if state is not None:
            prompts = [self.prompts[row] for row in self.plan.answered(state["number"])]
            self._show(state["number"], Collection(prompts, state["answers"], state["columns"]))

    def step(self, number: int) -> tuple[Shown, list[int]]:
        collection, rows = self.plan.where(number)
        if collection != self._number:
            self._collect(collection)
        return self._shown, rows

    # ------------------------------------------------------------ a collection

    @torch.no_grad()
    def _collect(self, number: int) -> None:
        if self.adaptive and self._collection is not None:
            seen = (self.measures["sampled_kl"], len(self._collection.answers))
            self._set_beta(self.adaptive.follow(self.module.objective.beta, *seen))
        rank, world = self.trainer.global_rank, self.trainer.world_size
        size = self.micro_batch_size or share(self.plan.batch_size, world)
        packs = [pack for rows in self.plan.first_pass(number) for pack in chunked(rows, rank, world, size)]
        prompts = [self.prompts[row] for row in self.plan.answered(number)]
        with self.trainer.precision_plugin.forward_context(), self.module.policy.evaluating():
            own = self._answer(prompts, [place for pack in packs for place in pack], number)
            judged = self._judge(prompts, own)
            scores = [self._score(prompts, own, pack) for pack in packs]
        self._keep(number, prompts, ordered(of_all_ranks(Found(own, judged, joined(scores)), world)))

    def _answer(self, prompts: Sequence[Encoded], places: Sequence[int], number: int) -> dict[int, list[Tensor]]:
        """By place the answers to its prompt, on the CPU."""
        device, g = self.module.policy.device, self.speaking.samples
        seed = np.random.SeedSequence([self.plan.seed, number, self.trainer.global_rank]).generate_state(1)[0]
        generator = torch.Generator(device).manual_seed(int(seed))
        asked = [torch.from_numpy(prompts[place].prompt).to(device) for place in places for _ in range(g)]
        began = time.perf_counter()
        answers = [ids.cpu() for ids in self.speaking.sampler(self.module.policy, asked, generator)]
        self.sampling_seconds += time.perf_counter() - began
        return {place: answers[i * g : (i + 1) * g] for i, place in enumerate(places)}

    def _judge(self, prompts: Sequence[Encoded], own: dict[int, list[Tensor]]) -> dict[str, Tensor]:
        """[answers] each: the reward, what it is made of, and what the watching annotator says."""
        for annotator in filter(None, (self.speaking.annotator, self.speaking.watch)):
            annotator.to(self.module.policy.device)
        said = (self.speaking.text, self.module.policy.end_ids)
        asked = [Answer.of(prompts[place], ids, *said) for place, answers in own.items() for ids in answers]
        if not self.speaking.annotator.calibrated:  # the first answers are the base's
            self.speaking.annotator.calibrate(asked)
        judged = self.speaking.annotator(asked)
        found = {"annotation": judged.reward, **{f"annotation_{name}": part for name, part in judged.parts.items()}}
        if self.speaking.watch is not None:
            found["watched"] = self.speaking.watch(asked).reward
        return {name: torch.from_numpy(np.asarray(values, dtype=np.float64)) for name, values in found.items()}

    def _score(self, prompts: Sequence[Encoded], own: dict[int, list[Tensor]], pack: Sequence[int]) -> Scores:
        """A pack of the first pass, scored as training will score it, and under whom it is held against; on the CPU."""
        module, needs = self.module, self.module.objective.needs
        answers = [ids for place in pack for ids in own[place]]
        batch = Collection([prompts[place] for place in pack], answers, {}).batch(range(len(pack)))
        batch = batch.to(module.policy.device)
        scores = score(module.policy, batch, needs.heads, needs.tokens | {"entropy"})
        return replace(scores, ref_logps=reference_logps(module.reference or module.base, batch)).to("cpu")

    def _keep(self, number: int, prompts: Sequence[Encoded], found: Found) -> None:
        """What all ranks found, with credit."""
        objective, reward = self.module.objective, found.judged["annotation"]
        answers = [ids for place in found.answers for ids in found.answers[place]]
        columns: Columns = {"annotation": reward.float()}
        if objective.needs.data not in RECORDED:
            columns |= _credit(objective, found.scores, reward)
        self.measures = measures_of(found, self.module.policy.end_ids)
        if self.adaptive:
            self.measures["beta"] = objective.beta
        self.collections += 1
        self.answers += len(answers)
        self.answer_tokens += sum(len(ids) for ids in answers)
        self._show(number, Collection(prompts, answers, columns))

    def _show(self, number: int, collection: Collection) -> None:
        self._number, self._collection, self._shown = number, collection, collection
        needs = self.module.objective.needs
        if needs.data in RECORDED:
            draw = np.random.default_rng([self.plan.seed, number])
            examples = as_examples(collection, self.speaking.text, self.speaking.pair, draw)
            self._shown = view(needs.data, examples, needs.columns)

    def _set_beta(self, beta: float) -> None:
        self.adaptive.beta = beta
        self.module.objective = replace(self.module.objective, beta=beta)

    def made(self) -> dict[str, float]:
        """Answers and tokens of all ranks, and what the last collection showed."""
        return {**{name: getattr(self, name) for name in ("collections", "answers", "answer_tokens")}, **self.measures}

    # ------------------------------------------------------------ checkpoints

    def state_dict(self) -> dict[str, Any]:
        """The collection in hand, so that a run that goes on inside it trains on the same answers."""
        if self._collection is None:
            return {}
        return {
            "number": self._number,
            "answers": list(self._collection.answers),
            "columns": self._collection.columns,
            "measures": self.measures,
            "beta": self.adaptive.beta if self.adaptive else None,
            "annotator": self.speaking.annotator.state_dict(),
            "so_far": [self.collections, self.answers, self.answer_tokens, self.sampling_seconds],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._resumed = state
        self.measures = state["measures"]
        self.collections, self.answers, self.answer_tokens, self.sampling_seconds = state["so_far"]
        self.speaking.annotator.load_state_dict(state["annotator"])
        if self.adaptive:
            self.adaptive.beta = state["beta"]


def _credit(objective: Objective, scores: Scores, reward: Tensor) -> Columns:
    """What the objective makes of the rewards; the reference's log-probs go along, so that no step asks it again."""
    try:
        columns = objective.credit(scores, reward.to(scores.logps.dtype))
    except ValueError as error:
        raise RequestError(first_line(error)) from error
    if objective.needs.reference:
        columns = {**columns, "ref_logps": scores.ref_logps}
    return columns
