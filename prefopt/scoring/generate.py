"""Sampling with a KV cache. The sampler draws tokens; what they were worth, `score` says."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from prefopt.models.policy import Policy
from prefopt.progress import track
from prefopt.scoring.few_rows import few_rows
from prefopt.scoring.kv_cache import PaddedPrompts, SharedPrompts
from prefopt.scoring.sharing import shares_prompts

SHRINK = 0.75  # rows that have ended are let go once no more than this share goes on: copying the others costs a step


@torch.no_grad()
def generate(
    policy: Policy,
    prompts: list[Tensor],
    *,
    max_new_tokens: int,
    min_new_tokens: int = 0,
    temperature: float = 1.0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
    batch_size: int = 512,
    watch: Callable[[Tensor], None] | None = None,
    quiet: bool = False,
) -> list[Tensor]:
    """One answer to each prompt, the end-of-turn token included where it was reached.

    temperature: 0 takes the likeliest token, 1 samples the policy itself. top_p: only the likeliest tokens that hold
    this much of the probability together. min_new_tokens: no answer ends before. prompts: ids [p]; equal ones are read
    once. Prompts of similar length are batched together; answers come back in the prompts' order. watch: is handed
    every step's tokens, one for each row in hand. quiet: show no progress.
    """
    ends = list(policy.end_ids)

    def draw(logits: Tensor, step: int) -> Tensor:
        if step < min_new_tokens:
            logits[:, ends] = -torch.inf
        return _draw(logits, temperature, top_p, generator)

    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers: list[Tensor] = [prompts[0]] * len(prompts)
    starts = range(0, len(order), batch_size)
    with policy.evaluating(), few_rows(policy):
        for start in starts if quiet else track(starts, "sampling", len(starts)):
            chosen = order[start : start + batch_size]
            found = _generate([prompts[i] for i in chosen], policy, max_new_tokens, draw, watch)
            for i, answer in zip(chosen, found, strict=True):
                answers[i] = answer
    return answers


def _generate(
    prompts: list[Tensor],
    policy: Policy,
    max_new_tokens: int,
    draw: Callable[[Tensor, int], Tensor],
    watch: Callable[[Tensor], None] | None,
) -> list[Tensor]:
    ends = torch.tensor(policy.end_ids, dtype=torch.long, device=policy.device)
    longest = max(len(prompt) for prompt in prompts) + max_new_tokens
    shared = shares_prompts(policy, longest)
    rows = SharedPrompts(policy, prompts, max_new_tokens) if shared else PaddedPrompts(policy, prompts)
    tokens = torch.empty(len(prompts), max_new_tokens, dtype=torch.long, device=policy.device)
    lengths = [max_new_tokens] * len(prompts)
    live = torch.arange(len(prompts), device=policy.device)  # which answers the rows in hand are
    going = torch.ones(len(prompts), dtype=torch.bool, device=policy.device)
    states = rows.start()
    for step in range(max_new_tokens):
        ids = draw(policy.lm_head(states).float(), step)
        tokens[live, step] = ids
        if watch is not None:
            watch(ids)
        ended = going & torch.isin(ids, ends)
        for answer in live[ended].tolist():
            lengths[answer] = step + 1
        going &= ~ended
        left = int(going.sum())
        if not left or step + 1 == max_new_tokens:
            break
        if left <= SHRINK * len(going):
            kept = going.nonzero()[:, 0]
            rows.keep(kept)
            ids, live, going = ids[kept], live[kept], going[kept]
        states = rows.step(ids)
    return [row[:length] for row, length in zip(tokens, lengths, strict=True)]


def _draw(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator | None) -> Tensor:
    if temperature == 0:
        most, ids = logits.max(-1)
        _check(most)
        return ids
    # One uniform per row through the cumulative distribution: `multinomial` draws one exponential per token, which was
    # a quarter of the time of a decoding step.
    probabilities = (logits / temperature).softmax(-1).double()
    if top_p < 1:
        probabilities = _nucleus(probabilities, top_p)
    cumulative = probabilities.cumsum(-1)
    _check(cumulative[:, -1])
    uniform = torch.rand(len(logits), 1, generator=generator, dtype=torch.float64, device=logits.device)
    return torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)[:, 0].clamp(
        max=logits.shape[-1] - 1
    )


def _check(values: Tensor) -> None:
    """Not a number, or infinite: without this, some token or other would be drawn."""
    if not values.isfinite().all():
        raise FloatingPointError("the model's logits are no numbers; is its precision too low?")


def _nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """[N, V]: 0 but for the likeliest tokens, the fewest that reach top_p (https://arxiv.org/abs/1904.09751, §3.1)."""
    falling, order = probabilities.sort(-1, descending=True)
    before = falling.cumsum(-1) - falling
    return torch.zeros_like(probabilities).scatter(-1, order, falling.masked_fill(before >= top_p, 0.0))
