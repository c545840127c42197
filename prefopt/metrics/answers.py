"""Measures of sampled answers: what they look like, how far they are from the base, what they are worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from prefopt.metrics.rows import won


@dataclass(frozen=True)
class Answers:
    """K sampled answers to each of P prompts, in prompt order (P·K in all).

    ids: tokens of each. kl: [P·K] Σ_t log π - log π_base in nats, None
    where it was not asked, zeros for the base. gold: [P·K] the true
    rewards where they are known.
    """

    per_prompt: int
    ids: Sequence[Sequence[int]]
    kl: np.ndarray | None = None
    gold: np.ndarray | None = None


def answer_measures(answers: Answers, base: Answers | None = None) -> dict[str, float | None]:
    """The keys of summary.json's `samples`.

    length: tokens. distinct_2: different bigrams over all bigrams. repetition: share of an answer's trigrams that it
    has said before. kl: Monte-Carlo KL to the base, nats per completion. stderr: of the mean over prompts, whose
    answers are not independent. win_rate_vs_reference: by gold reward, a tie one half.
    """
    kl = (None, None) if answers.kl is None else _mean(answers.kl, answers.per_prompt)
    gold = (None, None) if answers.gold is None else _mean(answers.gold, answers.per_prompt)
    wins = None
    if base is not None and base.gold is not None and answers.gold is not None:
        wins = float(np.mean(won(answers.gold - base.gold)))
    return {
        "length": float(np.mean([len(ids) for ids in answers.ids])),
        "distinct_2": distinct(answers.ids, 2),
        "repetition": float(np.mean([1 - distinct([ids], 3) for ids in answers.ids])),
        "kl": kl[0],
        "kl_stderr": kl[1],
        "gold_reward": gold[0],
        "gold_reward_stderr": gold[1],
        "win_rate_vs_reference": wins,
    }


def distinct(texts: Sequence[Sequence[int]], n: int) -> float:
    """Different n-grams over all n-grams (Li et al. 2016, https://arxiv.org/abs/1510.03055); 1 where there are none."""
    grams = [tuple(ids[i : i + n]) for ids in texts for i in range(len(ids) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0


def gold_gain(policy: Answers, base: Answers) -> dict[str, float]:
    """The gold reward's gain over the base with its 95 % interval (t over prompts), and best-of-4's gain.

    Best of 4: the largest gold reward of every four of the base's own answers to a prompt, on average.
    """
    gains = (policy.gold - base.gold).reshape(-1, policy.per_prompt).mean(1)
    half = stats.t.ppf(0.975, len(gains) - 1) * stats.sem(gains) if len(gains) > 1 else np.nan
    rows = base.gold.reshape(-1, base.per_prompt)
    fours = rows[:, : base.per_prompt // 4 * 4].reshape(len(rows), -1, 4)
    return {
        "gold_gain": float(gains.mean()),
        "gold_gain_low": float(gains.mean() - half),
        "gold_gain_high": float(gains.mean() + half),
        "best_of_4_gain": float(fours.max(2).mean() - rows.mean()) if fours.size else np.nan,
    }


def _mean(values: np.ndarray, per_prompt: int) -> tuple[float, float | None]:
    """Mean and its standard error, prompts being the independent units."""
    prompts = values.reshape(-1, per_prompt).mean(1)
    return float(values.mean()), float(stats.sem(prompts)) if len(prompts) > 1 else None
