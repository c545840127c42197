"""Judged answers as the examples that losses on recorded completions learn from: no loss is asked its name."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from prefopt.data.examples import Encoded, Example
from prefopt.rollouts.collection import Collection


def as_examples(
    collection: Collection, text: Callable[[list[int]], str], pair: str, draw: np.random.Generator
) -> list[Encoded]:
    """A prompt's answers by falling reward, so that the first is its demonstration and the first and the last are its
    pair. pair: best_worst, or random for two of them drawn by `draw`. Equal rewards are a tie, which weighs nothing."""
    g, found = collection.per_prompt, []
    for i, prompt in enumerate(collection.prompts):
        rewards = collection.columns["annotation"][i * g : (i + 1) * g].tolist()
        some = draw.choice(g, 2, replace=False).tolist() if pair == "random" else range(g)
        order = sorted(some, key=lambda k: -rewards[k])
        ids = [collection.answers[i * g + k].numpy() for k in order]
        scores = tuple(rewards[k] for k in order)
        example = Example(
            prompt=prompt.example.prompt,
            completions=tuple(text(answer.tolist()) for answer in ids),
            scores=scores,
            target=0.5 if scores[0] == scores[-1] else 1.0,
        )
        found.append(Encoded(example, prompt.prompt, tuple(ids)))
    return found
