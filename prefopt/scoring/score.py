"""The door of scoring: a policy and a batch in, `Scores` out."""

from __future__ import annotations

import torch
from torch import Tensor

from prefopt.models.policy import Policy
from prefopt.records import Batch, Columns, Scores
from prefopt.scoring.forest import plant, planted_tokens
from prefopt.scoring.layout import (
    completion_mask,
    completion_positions,
    layouts,
    padded_tokens,
    prompt_positions,
    row_lengths,
)
from prefopt.scoring.logprobs import token_quantities
from prefopt.scoring.sharing import forest_states, shares_prompts


def score(
    policy: Policy,
    batch: Batch,
    heads: frozenset[str] = frozenset({"lm"}),
    tokens: frozenset[str] = frozenset(),
    prompt: bool = False,
) -> Scores:
    """What the policy says about the completions of a batch; arguments as in `objectives.Needs`.

    Prompts need at least one token: something must precede the first completion token.
    """
    mask = completion_mask(batch)
    hidden = _States(policy, batch)
    states = hidden.at(*completion_positions(batch, mask))
    columns: Columns = {**batch.columns, "group": batch.group}
    logps = values = rewards = None
    if "lm" in heads:
        found = token_quantities(policy.lm_head, states, batch.completion_ids, policy.vocabulary, tokens)
        logps = _spread(found.pop("logps"), mask)
        columns |= {name: _spread(value, mask) for name, value in found.items()}
    if prompt:
        columns |= _prompt_columns(policy, batch, hidden)
    if "value" in heads:
        critic = policy.critic or policy
        seen = states if critic is policy else _States(critic, batch).at(*completion_positions(batch, mask))
        values = _spread(critic.scalar("value", seen), mask)
    if "scalar" in heads:
        # Read on each row's last token, by length, whatever the padding token is.
        ends = batch.prompt_lengths[batch.group] + batch.completion_lengths - 1
        rewards = policy.scalar("scalar", hidden.at(torch.arange(len(batch), device=ends.device), ends))
    return Scores(logps=logps, mask=mask, values=values, rewards=rewards, columns=columns)


def tokens_read(policy: Policy, batch: Batch) -> tuple[int, int]:
    """What `score` has the backbone read of a batch, and what it would read with every completion in a row of its own,
    padded to the batch's longest."""
    longest = int(row_lengths(batch).max())
    read = planted_tokens(batch) if shares_prompts(policy, longest) else padded_tokens(batch)
    return read, len(batch) * longest


class _States:
    """The backbone's states of every row: out of a forest where the model can share prompts, else padded."""

    def __init__(self, policy: Policy, batch: Batch) -> None:
        self._prompts = batch.prompt_lengths[batch.group]
        longest = int(row_lengths(batch).max())
        if shares_prompts(policy, longest):
            planted = plant(batch)
            self._flat = torch.cat([forest_states(policy, forest) for forest in planted.forests])
            self._prompt_at, completion_at = planted.prompt_at[batch.group], planted.completion_at
        else:
            self._flat, self._prompt_at = _padded_states(policy, batch)
            completion_at = self._prompt_at + self._prompts
        # Where column 0 would lie if the prompt stood right before the completion.
        self._completion_at = completion_at - self._prompts

    def at(self, row: Tensor, column: Tensor) -> Tensor:
        """[C] rows and columns (of prompt and completion together) to [C, H]."""
        start = torch.where(column < self._prompts[row], self._prompt_at[row], self._completion_at[row])
        return self._flat[start + column]


def _padded_states(policy: Policy, batch: Batch) -> tuple[Tensor, Tensor]:
    """States [·, H] of all rows, and where in them each row begins, [N]."""
    parts, offset = [], 0
    begin = torch.zeros(len(batch), dtype=torch.long, device=batch.group.device)
    for layout in layouts(batch):
        states = policy.hidden_states(layout.ids, layout.attention_mask, layout.position_ids)
        rows, width = states.shape[:2]
        begin[layout.rows] = offset + width * torch.arange(rows, device=states.device)
        offset += rows * width
        parts.append(states.flatten(0, 1))
    return torch.cat(parts), begin


def _prompt_columns(policy: Policy, batch: Batch, hidden: _States) -> Columns:
    """prompt_logp [N] nats and prompt_tokens [N], for likelihoods that read the prompt too."""
    row, column, targets = prompt_positions(batch)
    logps = token_quantities(policy.lm_head, hidden.at(row, column), targets, policy.vocabulary)["logps"]
    total = torch.zeros(len(batch), dtype=logps.dtype, device=logps.device).index_add(0, row, logps)
    return {"prompt_logp": total, "prompt_tokens": batch.prompt_tokens}


def _spread(flat: Tensor, mask: Tensor) -> Tensor:
    """[C] to [N, T], 0 off the mask."""
    return torch.zeros(mask.shape, dtype=flat.dtype, device=flat.device).masked_scatter(mask, flat)
