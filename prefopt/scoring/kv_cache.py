"""Rows that grow by a token at a time: how sampling reads its prompts once and every later token once.

`SharedPrompts` packs the prompts without padding, each different one once, and keeps the keys and values itself;
`PaddedPrompts` is for models whose attention cannot be replaced and leaves both to the library. They are used alike:
`start()`, then `step(ids)` for every token, with `keep(rows)` in between to go on with some of the rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, DynamicCache

from prefopt.models.policy import Policy
from prefopt.scoring.attention import Unsupported, attend, attention_named
from prefopt.scoring.forest import Forest, plant_prompts
from prefopt.scoring.narrow import narrowed

NAME = "prefopt_rows"


class SharedPrompts:
    """Prompts end in the same column, whatever their length; drawn tokens follow it.

    room: tokens that will follow a prompt at most.
    """

    def __init__(self, policy: Policy, prompts: list[Tensor], room: int) -> None:
        self._policy, self._prompts, self._room = policy, prompts, room
        self._positions = torch.tensor([len(prompt) for prompt in prompts], device=policy.device)
        self._used = max(len(prompt) for prompt in prompts)
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}  # [N, key heads, columns, D]
        self._read: dict[int, list[tuple[Tensor, Tensor]]] = {}  # of the prompts, [key heads, T, D] a forest
        before = self._used - self._positions
        columns = torch.arange(self._used + room, device=policy.device)
        self._mask = torch.where(columns < before[:, None], -torch.inf, 0.0)

    def start(self) -> Tensor:
        """[N, H] the states that predict the first tokens."""
        places: dict[tuple[int, ...], int] = {}
        which = [places.setdefault(tuple(prompt.tolist()), len(places)) for prompt in self._prompts]
        first = dict(zip(reversed(which), reversed(self._prompts), strict=True))
        planted = plant_prompts([first[place] for place in range(len(places))])
        begin = planted.prompt_at[torch.tensor(which, device=planted.prompt_at.device)]
        ends = begin + self._positions - 1
        forests = zip(planted.forests, planted.asked([ends]), strict=True)
        states = torch.cat([self._forward(f.ids, f.positions, read, forest=f)[0] for f, read in forests])
        # Columns before a prompt show its first token; nothing looks at them.
        own = torch.arange(self._used, device=states.device) - (self._used - self._positions)[:, None]
        at = begin[:, None] + own.clamp(min=0)
        for layer, read in self._read.items():
            keys, values = (torch.cat(parts, 1) for parts in zip(*read, strict=True))
            self._layers[layer] = self._spread(keys, at), self._spread(values, at)
        self._read.clear()
        return states[ends]

    def step(self, ids: Tensor) -> Tensor:
        """[N] the tokens that follow to [N, H]."""
        self._used += 1
        states = self._forward(ids[:, None], self._positions[:, None])
        self._positions = self._positions + 1
        return states[:, 0]

    def keep(self, rows: Tensor) -> None:
        self._positions, self._mask = self._positions[rows], self._mask[rows]
        self._layers = {layer: (keys[rows], values[rows]) for layer, (keys, values) in self._layers.items()}

    # ------------------------------------------------------------ for `attend_rows`

    def remember(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Of a forest of prompts, [1, key heads, T, D] each."""
        self._read.setdefault(layer, []).append((keys[0], values[0]))

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A new token's, [N, key heads, 1, D], in; all so far, and [N, 1, 1, columns] that hides those before a
        prompt, out."""
        keys, values = self._layers[layer]
        keys[:, :, self._used - 1], values[:, :, self._used - 1] = key[:, :, 0], value[:, :, 0]
        mask = self._mask[:, None, None, : self._used].to(values.dtype)
        return keys[:, :, : self._used], values[:, :, : self._used], mask

    def _forward(self, ids: Tensor, positions: Tensor, read: Tensor | None = None, **more: Any) -> Tensor:
        with attention_named(self._policy.config, NAME), narrowed(self._policy, read):
            return self._policy.hidden_states(ids, None, positions, rows=self, **more)

    def _spread(self, flat: Tensor, at: Tensor) -> Tensor:
        """[key heads, T, D] to [N, key heads, columns, D], with room for what follows."""
        spread = flat.new_empty(len(at), len(flat), at.shape[1] + self._room, flat.shape[-1])
        spread[:, :, : at.shape[1]] = flat[:, at].transpose(0, 1)
        return spread


def attend_rows(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    rows: SharedPrompts | None = None,
    forest: Forest | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """A forest of prompts is attended to as ever and remembered; a new token, [N, heads, 1, D], sees its own row."""
    layer: Any = getattr(module, "layer_idx", None)
    if rows is None or layer is None:
        raise Unsupported("its layers do not say which they are")
    if forest is not None:
        rows.remember(layer, key, value)
        return attend(module, query, key, value, attention_mask, scaling, forest=forest, **others)
    keys, values, mask = rows.append(layer, key, value)
    # The query heads of a key head look at the same keys: they are its queries.
    grouped = query.to(values.dtype).reshape(*keys.shape[:2], -1, query.shape[-1])
    out = scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=scaling)
    return out.reshape(len(query), 1, query.shape[1], -1), None


AttentionInterface.register(NAME, attend_rows)


class PaddedPrompts:
    """Left padding and the library's cache."""

    def __init__(self, policy: Policy, prompts: list[Tensor]) -> None:
        self._policy = policy
        self._cache = DynamicCache(config=policy.config)
        self._ids, self._mask = _left_padded(prompts, policy.device)
        self._positions = (self._mask.cumsum(1) - 1).clamp(min=0)

    def start(self) -> Tensor:
        return self._states(self._ids)

    def step(self, ids: Tensor) -> Tensor:
        self._mask = torch.cat((self._mask, self._mask.new_ones(len(ids), 1)), 1)
        self._positions = self._positions[:, -1:] + 1
        return self._states(ids[:, None])

    def keep(self, rows: Tensor) -> None:
        self._mask, self._positions = self._mask[rows], self._positions[rows]
        self._cache.reorder_cache(rows)  # type: ignore[arg-type]

    def _states(self, ids: Tensor) -> Tensor:
        return self._policy.hidden_states(ids, self._mask, self._positions, cache=self._cache)[:, -1]


def _left_padded(prompts: list[Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    width = max(len(prompt) for prompt in prompts)
    ids = torch.zeros(len(prompts), width, dtype=torch.long, device=device)
    mask = torch.zeros_like(ids)
    for i, prompt in enumerate(prompts):
        ids[i, width - len(prompt) :] = prompt
        mask[i, width - len(prompt) :] = 1
    return ids, mask
