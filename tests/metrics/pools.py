"""Worlds of OUTCOMES outcomes, whose optimum is known by enumeration, and samples of them."""

from __future__ import annotations

import numpy as np

from prefopt.metrics.optimum import Pool

OUTCOMES = 3000


def normalised(logits):
    return logits - np.logaddexp.reduce(logits)


def world(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Log-probs of a reference and rewards, of OUTCOMES outcomes."""
    rng = np.random.default_rng(seed)
    return normalised(1.5 * rng.normal(size=OUTCOMES)), rng.normal(size=OUTCOMES)


def trained(log_ref, rewards, beta, rng):
    """Policies on their way to the optimum, with something of their own."""
    return normalised(log_ref + rewards / beta + 0.5 * rng.normal(size=OUTCOMES))


def draw(rng, rewards, policies, counts) -> Pool:
    chosen = [rng.choice(len(rewards), n, p=np.exp(policy)) for policy, n in zip(policies, counts, strict=True)]
    chosen = np.concatenate(chosen)
    return Pool(rewards[chosen], np.array(policies)[:, chosen], np.repeat(np.arange(len(counts)), counts))


def exact(log_ref, rewards, beta) -> tuple[float, float]:
    """E_*[r] and Σ π* log(π*/π_ref), by their definitions."""
    log_best = normalised(log_ref + rewards / beta)
    best = np.exp(log_best)
    return float(best @ rewards), float(best @ (log_best - log_ref))


def exact_gain(log_ref, rewards, beta) -> tuple[float, float]:
    reward, kl = exact(log_ref, rewards, beta)
    return reward - float(np.exp(log_ref) @ rewards), kl


def pooled(seed: int, policies_at: tuple[float, ...], counts: list[int]) -> Pool:
    rng, (log_ref, rewards) = np.random.default_rng(1000 + seed), world(seed)
    return draw(rng, rewards, [log_ref, *(trained(log_ref, rewards, beta, rng) for beta in policies_at)], counts)
