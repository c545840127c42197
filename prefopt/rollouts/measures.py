"""What a collection shows of itself: rewards, distance from the reference, length and variety."""

from __future__ import annotations

from collections.abc import Collection as Ids

from prefopt.objectives.surrogate import kl_estimate
from prefopt.rollouts.collection import Found


def measures_of(found: Found, end_ids: Ids[int]) -> dict[str, float]:
    """Means over answers unless said otherwise.

    annotation, and what it is made of; annotation_spread: the standard deviation among a prompt's answers, mean over
    prompts; equal_groups: the share of prompts whose answers are all worth the same, which teach nothing. sampled_kl,
    sampled_kl_k3: Σ_t of the k1 and k3 estimates of KL(π ‖ π_ref), nats per answer. entropy: nats per token.
    answer_length: tokens. capped: the share of answers that did not end by themselves. distinct: different answers to a
    prompt, as a share.
    """
    scores, answers = found.scores, list(found.answers.values())
    rewards = found.judged["annotation"].view(len(answers), -1)
    pair = scores.logps.double(), scores.ref_logps.double()
    tokens = scores.lengths.sum()
    flat = [ids for group in answers for ids in group]
    ended = [len(ids) > 0 and int(ids[-1]) in end_ids for ids in flat]
    distinct = [len({tuple(ids.tolist()) for ids in group}) / len(group) for group in answers]
    return {
        **{name: float(values.mean()) for name, values in found.judged.items()},
        "annotation_spread": float(rewards.std(1, correction=0).mean()),
        "equal_groups": float((rewards.amax(1) == rewards.amin(1)).double().mean()),
        "sampled_kl": float(scores.total(kl_estimate(*pair, "k1")).mean()),
        "sampled_kl_k3": float(scores.total(kl_estimate(*pair, "k3")).mean()),
        "entropy": float(scores.total(scores.columns["entropy"]).double().sum() / tokens),
        "answer_length": float(tokens / len(flat)),
        "capped": 1 - sum(ended) / len(flat),
        "distinct": sum(distinct) / len(distinct),
    }
