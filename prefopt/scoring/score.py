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
    spoken = completion_positions(batch, mask)
    # A reward is read on each row's last token, by length, whatever the padding token is.
    ends = (torch.arange(len(batch), device=mask.device), row_lengths(batch) - 1)
    critic = policy.critic or policy
    read = [spoken] if "lm" in heads or ("value" in heads and critic is policy) else []
    read += [prompt_positions(batch)[:2]] if prompt else []
    read += [ends] if "scalar" in heads else []
    hidden = _States(policy, batch, read)
    columns: Columns = {**batch.columns, "group": batch.group}
    logps = values = rewards = None
    if "lm" in heads:
        found = token_quantities(policy.lm_head, hidden.at(*spoken), batch.completion_ids, policy.vocabulary, tokens)
        logps = _spread(found.pop("logps"), mask)
        columns |= {name: _spread(value, mask) for name, value in found.items()}
    if prompt:
        columns |= _prompt_columns(policy, batch, hidden)
    if "value" in heads:
        seen = hidden if critic is policy else _States(critic, batch, [spoken])
        values = _spread(critic.scalar("value", seen.at(*spoken)), mask)
    if "scalar" in heads:
        rewards = policy.scalar("scalar", hidden.at(*ends))
    return Scores(logps=logps, mask=mask, values=values, rewards=rewards, columns=columns)


def tokens_read(policy: Policy, batch: Batch) -> tuple[int, int]:
    """What `score` has the backbone read of a batch, and what it would read with every completion in a row of its own,
    padded to the batch's longest."""
    longest = int(row_lengths(batch).max())
    if shares_prompts(policy, longest):
        return planted_tokens(batch, policy.sharded), len(batch) * longest
    return padded_tokens(batch, policy.sharded, policy.rope_bound), len(batch) * longest


class _States:
    """The backbone's states: out of a forest where the model can share prompts, else padded.

    read: all (rows, columns) that will be asked for.
    """

    def __init__(self, policy: Policy, batch: Batch, read: list[tuple[Tensor, Tensor]]) -> None:
        self._prompts = batch.prompt_lengths[batch.group]
        if shares_prompts(policy, int(row_lengths(batch).max())):
            planted = plant(batch, together=policy.sharded)
            self._lay(planted.prompt_at[batch.group], planted.completion_at)
            asked = planted.asked([self._places(row, column) for row, column in read])
            forests = zip(planted.forests, asked, strict=True)
            self._flat = torch.cat([forest_states(policy, forest, own) for forest, own in forests])
        else:
            self._flat, begin = _padded_states(policy, batch)
            self._lay(begin, begin + self._prompts)

    def at(self, row: Tensor, column: Tensor) -> Tensor:
        """[C] rows and columns (of prompt and completion together) to [C, H]."""
        return self._flat[self._places(row, column)]

    def _lay(self, prompt_at: Tensor, completion_at: Tensor) -> None:
        self._prompt_at = prompt_at
        # Where column 0 would lie if the prompt stood right before the completion.
        self._completion_at = completion_at - self._prompts

    def _places(self, row: Tensor, column: Tensor) -> Tensor:
        return column + torch.where(column < self._prompts[row], self._prompt_at[row], self._completion_at[row])


def _padded_states(policy: Policy, batch: Batch) -> tuple[Tensor, Tensor]:
    """States [·, H] of all rows, and where in them each row begins, [N]."""
    parts, offset = [], 0
    begin = torch.zeros(len(batch), dtype=torch.long, device=batch.group.device)
    for layout in layouts(batch, policy.sharded, policy.rope_bound):
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
