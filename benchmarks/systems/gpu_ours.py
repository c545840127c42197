"""prefopt's training step in a bare loop: scoring, the DPO objective, backward, clipping and the optimiser.

    python gpu_ours.py FOLDER REPORT train MODE STEPS         one way to lay rows out, in full or with LoRA
    python gpu_ours.py FOLDER REPORT sharing STEPS STEPS …    all ways beside one another, step by step, in full

The reference is computed before, outside the clock, as TRL's is when it is precomputed.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from benchmarks.systems.gpu_common import (
    Settings,
    Step,
    answer,
    causal,
    forget_peak,
    hardware,
    lora,
    low_precision_adapter,
    now,
    peak_bytes,
    read_steps,
)
from prefopt.models.policy import Policy
from prefopt.objectives import create
from prefopt.records import Batch, Scores
from prefopt.scoring import score, sharing
from prefopt.scoring.logprobs import token_quantities

Scored = Callable[[Batch], Scores]


def batch_of(step: Step) -> Batch:
    """Chosen completions, then rejected ones, each pair's prompt once."""
    prompts, chosen, rejected = ([torch.tensor(pair[side]) for pair in step] for side in range(3))
    return Batch.of("pairs", prompts, chosen + rejected, [*range(len(step)), *range(len(step))])


def policy_of(settings: Settings, mode: str) -> Policy:
    model = causal(settings)
    if mode == "lora":
        from peft import get_peft_model

        torch.manual_seed(settings.seed)
        model = get_peft_model(model, lora(settings))
        low_precision_adapter(model, settings)
    return Policy(model).train()


# ---------------------------------------------------------------- ways to lay the rows of a batch out


def layouts(policy: Policy) -> dict[str, Scored]:
    """Their numbers are the same.

    shared: prefopt as it is. unshared: the same without sharing, no padding either. padded: what prefopt falls back to
    where a model cannot read a forest. rows: TRL's way, all rows in one rectangle, the head on completions only.
    """
    twin = without_sharing(policy)
    return {
        "shared": lambda batch: score(policy, batch),
        "unshared": lambda batch: score(policy, one_prompt_a_row(batch)),
        "padded": lambda batch: score(twin, batch),
        "rows": lambda batch: score_rows(policy, batch),
    }


def without_sharing(policy: Policy) -> Policy:
    """The same weights, in a model of which it is known that its prompts cannot be shared."""
    twin = Policy(copy.copy(policy.causal))
    before, sharing.why_not = sharing.why_not, lambda policy: "the benchmark asks for padding"
    try:
        sharing.shares_prompts(twin, 1)
    finally:
        sharing.why_not = before
    return twin


def one_prompt_a_row(batch: Batch) -> Batch:
    prompts = batch.prompts()
    rows = [prompts[group] for group in batch.group.tolist()]
    return Batch.of(batch.data, rows, batch.completions(), list(range(len(rows)))).to(batch.group.device)


def score_rows(policy: Policy, batch: Batch) -> Scores:
    prompts, completions = batch.prompts(), batch.completions()
    begins = [len(prompts[group]) for group in batch.group.tolist()]
    texts = [torch.cat((prompts[g], c)) for g, c in zip(batch.group.tolist(), completions, strict=True)]
    ids = pad_sequence(texts, batch_first=True)
    device, columns = ids.device, torch.arange(ids.shape[1], device=ids.device)
    ends = torch.tensor([len(text) for text in texts], device=device)
    states = policy.hidden_states(ids, (columns < ends[:, None]).long(), columns.expand_as(ids))
    spoken = (columns >= torch.tensor(begins, device=device)[:, None]) & (columns < ends[:, None])
    logps = token_quantities(policy.lm_head, states[:, :-1][spoken[:, 1:]], ids[spoken], policy.vocabulary)["logps"]
    mask = pad_sequence([torch.ones(len(c), dtype=torch.bool, device=device) for c in completions], batch_first=True)
    spread = torch.zeros(mask.shape, dtype=logps.dtype, device=device).masked_scatter(mask, logps)
    return Scores(logps=spread, mask=mask, columns={"group": batch.group})


# ---------------------------------------------------------------- a step


class Trained:
    """A policy under training."""

    def __init__(self, policy: Policy, settings: Settings, lr: float) -> None:
        self.device, self.objective = settings.device, create("dpo", beta=settings.beta)
        self.parameters = list(policy.trainable().values())
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=lr, weight_decay=0.0, fused=settings.device == "cuda" or None
        )

    def step(self, scored: Scored, batch: Batch, reference: Tensor) -> tuple[float, float]:
        """Seconds and loss of one optimiser step on a batch that a loader has made in the host's memory."""
        began = now(self.device)
        scores = scored(batch.to(self.device))
        loss = self.objective.loss(replace(scores, ref_logps=reference))
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return now(self.device) - began, float(loss.detach())


def train(settings: Settings, mode: str, steps: list[Step]) -> dict[str, Any]:
    """seconds, loss: of every step of every pass. peak: over all, weights and the optimiser's state included."""
    policy = policy_of(settings, mode)
    trained = Trained(policy, settings, settings.lr)
    batches, why_not = [batch_of(step) for step in steps], sharing.why_not(policy)
    with torch.no_grad(), policy.evaluating():
        references = [score(policy, batch.to(settings.device)).logps for batch in batches]
    forget_peak(settings.device)
    given = list(zip(batches, references, strict=True)) * (1 + settings.passes)
    told = [trained.step(lambda rows: score(policy, rows), *one) for one in given]
    took, losses = zip(*told, strict=True)
    found = {"seconds": took, "loss": losses, "peak": peak_bytes(settings.device)}
    return found | {"falls back": why_not, "hardware": hardware(settings.device)}


def share(trained: Trained, ways: dict[str, Scored], steps: list[Step], passes: int) -> dict[str, Any]:
    """Every layout on every step, one after the other, pass after pass; one that is not counted goes before. seconds: a
    step's mean of every counted pass.

    The learning rate is 0 and the reference gives every token 0 nats: so all losses of a step must be the same, and say
    something of the log-probs.
    """
    device, batches = trained.device, [batch_of(step) for step in steps]
    took: dict[str, list[float]] = {name: [] for name in ways}
    losses: dict[str, list[float]] = {name: [] for name in ways}
    peaks: dict[str, int | None] = {}
    for number in range(1 + passes):
        for name, scored in ways.items():
            forget_peak(device)
            told = [trained.step(scored, batch, _silence(batch, device)) for batch in batches]
            peaks[name] = peak_bytes(device)
            losses[name] = [loss for _, loss in told]
            if number:
                took[name].append(sum(seconds for seconds, _ in told) / len(told))
    return {"seconds": took, "loss": losses, "peak": peaks}


def _silence(batch: Batch, device: str) -> Tensor:
    return torch.zeros(len(batch), int(batch.completion_lengths.max()), device=device)


def main(folder: Path, kind: str, *arguments: str) -> dict[str, Any]:
    settings = Settings.read(folder)
    if kind == "train":
        mode, name = arguments
        return train(settings, mode, read_steps(folder, name))
    policy = policy_of(settings, "full")
    trained, ways = Trained(policy, settings, lr=0.0), layouts(policy)
    found: dict[str, Any] = {
        name: share(trained, ways, read_steps(folder, name), settings.passes) for name in arguments
    }
    return found | {"hardware": hardware(settings.device)}


if __name__ == "__main__":
    answer(main)
