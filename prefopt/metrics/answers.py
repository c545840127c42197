"""Measures of sampled answers: what they look like, how far they are from the base, what they are worth."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.special import comb

from prefopt.metrics.rows import won

ORDER, NO_MATCH = 4, 0.1  # of BLEU


@dataclass(frozen=True)
class Answers:
    """K sampled answers to each of P prompts, in prompt order (P·K in all).

    ids: tokens of each. kl: [P·K] Σ_t log π - log π_base in nats, None
    where it was not asked, zeros for the base. gold: [P·K] the true
    rewards where they are known. judged: [P·K] the rewards that are
    optimised, where a policy learns from its own answers.
    """

    per_prompt: int
    ids: Sequence[Sequence[int]]
    kl: np.ndarray | None = None
    gold: np.ndarray | None = None
    judged: np.ndarray | None = None


def answer_measures(answers: Answers, base: Answers | None = None) -> dict[str, float | None]:
    """The keys of summary.json's `samples`.

    length: tokens. distinct_2: different bigrams over all bigrams. self_bleu: how alike the answers to one prompt
    are, None where each has one. repetition: share of an answer's trigrams that it has said before. kl: Monte-Carlo
    KL to the base, nats per completion. stderr: of the mean over prompts, whose answers are not independent.
    annotation: the reward that is optimised. win_rate_vs_reference: by gold reward, a tie one half.
    """
    kl, gold, judged = (_mean(values, answers.per_prompt) for values in (answers.kl, answers.gold, answers.judged))
    wins = None
    if base is not None and base.gold is not None and answers.gold is not None:
        wins = float(np.mean(won(answers.gold - base.gold)))
    return {
        "length": float(np.mean([len(ids) for ids in answers.ids])),
        "distinct_2": distinct(answers.ids, 2),
        "self_bleu": self_bleu(answers.ids, answers.per_prompt),
        "repetition": float(np.mean([1 - distinct([ids], 3) for ids in answers.ids])),
        "kl": kl[0],
        "kl_stderr": kl[1],
        "gold_reward": gold[0],
        "gold_reward_stderr": gold[1],
        "annotation": judged[0],
        "annotation_stderr": judged[1],
        "win_rate_vs_reference": wins,
    }


def distinct(texts: Sequence[Sequence[int]], n: int) -> float:
    """Different n-grams over all n-grams (Li et al. 2016, https://arxiv.org/abs/1510.03055); 1 where there are none."""
    grams = [tuple(ids[i : i + n]) for ids in texts for i in range(len(ids) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0


def self_bleu(answers: Sequence[Sequence[int]], per_prompt: int) -> float | None:
    """Mean BLEU of each answer against the others to its prompt (Zhu et al. 2018, https://arxiv.org/abs/1802.01886, who
    hold each text against all others): 1 where all are the same. None where there are no others."""
    if per_prompt < 2:
        return None
    groups = [answers[i : i + per_prompt] for i in range(0, len(answers), per_prompt)]
    return float(np.mean([value for group in groups for value in bleus(group)]))


def bleus(texts: Sequence[Sequence[int]]) -> list[float]:
    """BLEU of each text with all the others for references: min(1, exp(1 - r/c)) · (Π_n p_n)^(1/N), p_n the share of
    n-grams that a reference has too, each counted at most as often as in one reference (Papineni et al. 2002,
    https://aclanthology.org/P02-1040, §2).

    c: the text's tokens, r: those of the reference nearest in length, the shorter one of two. N: 4, or c where that is
    less. No match counts as 0.1 (Chen and Cherry 2014, https://aclanthology.org/W14-3346, smoothing 1). Nothing said
    is like nothing, and unlike anything else.
    """
    shared = [_shared(texts, n) for n in range(1, ORDER + 1)]
    return [_bleu(k, [len(ids) for ids in texts], [matches[k] for matches in shared]) for k in range(len(texts))]


def _bleu(k: int, lengths: Sequence[int], matches: Sequence[int]) -> float:
    """matches: of text k's n-grams those that others have, for n = 1, 2, …"""
    c, others = lengths[k], [*lengths[:k], *lengths[k + 1 :]]
    r = min((abs(length - c), length) for length in others)[1]
    if not c:
        return float(r == 0)
    logs = [math.log(max(matches[n - 1], NO_MATCH) / (c - n + 1)) for n in range(1, min(ORDER, c) + 1)]
    return math.exp(min(0.0, 1 - r / c) + sum(logs) / len(logs))


def _shared(texts: Sequence[Sequence[int]], n: int) -> list[int]:
    """Of each text's n-grams how many another text has, each counted at most as often as in one other text: the
    largest count of all, or where that is the text's own the second largest."""
    counts = [Counter(tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)) for ids in texts]
    first, second = Counter[tuple[int, ...]](), Counter[tuple[int, ...]]()
    for grams in counts:
        for gram, count in grams.items():
            first[gram], second[gram] = max(first[gram], count), max(min(first[gram], count), second[gram])
    return [
        sum(min(count, second[gram] if count == first[gram] else first[gram]) for gram, count in grams.items())
        for grams in counts
    ]


def gold_gain(policy: Answers, base: Answers) -> dict[str, float | None]:
    """The gold reward's gain over the base with its 95 % interval (t over prompts; None of one), and that of the best
    by gold of four answers of the base (None where there are fewer)."""
    gains = (policy.gold - base.gold).reshape(-1, policy.per_prompt).mean(1)
    half = float(stats.t.ppf(0.975, len(gains) - 1) * stats.sem(gains)) if len(gains) > 1 else None
    gain, rows = float(gains.mean()), base.gold.reshape(-1, base.per_prompt)
    return {
        "gold_gain": gain,
        "gold_gain_low": None if half is None else gain - half,
        "gold_gain_high": None if half is None else gain + half,
        "best_of_4_gain": best_of(4, rows, rows) - float(rows.mean()) if base.per_prompt >= 4 else None,
    }


def best_of(n: int, judged: np.ndarray, worth: np.ndarray) -> float:
    """Expected worth of that one of n answers to a prompt which the judge likes best: a mean over prompts and over all
    choices of n of their K.

    Of K answers in rising order the i-th (from 1) is the best of C(i - 1, n - 1) among the C(K, n) choices of n, so the
    mean over choices is Σ_i worth_i C(i - 1, n - 1) / C(K, n), without bias for any n ≤ K (the estimator of Nakano et
    al. 2021, https://arxiv.org/abs/2112.09332, appendix I). judged, worth: [P, K].
    """
    k = judged.shape[1]
    chosen = comb(np.arange(k), n - 1) / comb(k, n)
    return float((np.take_along_axis(worth, judged.argsort(1, kind="stable"), 1) * chosen).sum(1).mean())


def _mean(values: np.ndarray | None, per_prompt: int) -> tuple[float | None, float | None]:
    """Mean and its standard error, prompts being the independent units."""
    if values is None:
        return None, None
    prompts = values.reshape(-1, per_prompt).mean(1)
    return float(values.mean()), float(stats.sem(prompts)) if len(prompts) > 1 else None
