"""Proximal Policy Optimization. Schulman et al. 2017, https://arxiv.org/abs/1707.06347, Eq. 7 and 9; for language
models Ziegler et al. 2019, https://arxiv.org/abs/1909.08593, §2, with the KL to the reference in the reward."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prefopt.credit import gae, whiten
from prefopt.objectives.base import Needs, Term
from prefopt.objectives.registry import register
from prefopt.objectives.surrogate import PolicyGradient, clip_fraction, clipped_surrogate, log_ratio, mean_term
from prefopt.records import Columns, Scores


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float | None) -> Tensor:
    """½ max((V - R)², (V_clip - R)²), V_clip = V_old + clip(V - V_old, ±clip); without clip ½ (V - R)². All [N, T]."""
    squares = (values - returns).square()
    if clip is not None:
        clipped = old_values + (values - old_values).clamp(-clip, clip)
        squares = torch.maximum(squares, (clipped - returns).square())
    return squares / 2


@register("ppo")
@dataclass(frozen=True, kw_only=True)
class PPO(PolicyGradient):
    """Means over the completion tokens of surrogate + value_coef · value loss - entropy_coef · entropy.

    beta: coefficient of the KL (published: 0.001 to 0.2), kl and kl_in its estimator and place: k1 in the reward of
    each token (default), see `PolicyGradient`. clip, value_clip (null: none): radii around the rollout's policy and
    values. dual_clip (null: none; published 3): how many times -A a bad action may cost at most. gamma, lam: of
    `credit.gae`. whiten: advantages have mean 0 and variance 1 over the whole collection, which `credit` sees and
    `terms` does not. Reward: β · log-ratio (log-prob when β is 0).
    """

    needs: ClassVar[Needs] = Needs(data="rollouts", reference=True, heads=frozenset({"lm", "value"}))
    beta_range: ClassVar = (0.0, 0.2)
    clip: float = 0.2
    dual_clip: float | None = None
    value_clip: float | None = 0.2
    value_coef: float = 0.1
    entropy_coef: float = 0.0
    gamma: float = 1.0
    lam: float = 0.95
    whiten: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("value_coef", "entropy_coef", "gamma", "lam"):
            self.check(name, at_least=0)
        self.check("clip", above=0)
        if self.dual_clip is not None:
            self.check("dual_clip", above=1)
        if self.value_clip is not None:
            self.check("value_clip", above=0)
        self.refine(tokens=frozenset({"entropy"} if self.entropy_coef else ()))

    def terms(self, scores: Scores, statistics: Mapping[str, Tensor]) -> tuple[Term, ...]:
        columns, ratio = scores.columns, log_ratio(scores).exp()
        surrogate = clipped_surrogate(ratio, columns["advantages"], self.clip, self.clip, self.dual_clip)
        values = value_loss(scores.values, columns["old_values"], columns["returns"], self.value_clip)
        terms = [
            mean_term("surrogate", scores, scores.total(surrogate), "tokens"),
            mean_term("value", scores, scores.total(values), "tokens", self.value_coef),
            *self.kl_terms(scores, "tokens"),
        ]
        if self.entropy_coef:
            terms.append(mean_term("entropy", scores, scores.total(columns["entropy"]), "tokens", -self.entropy_coef))
        return tuple(terms)

    def credit(self, scores: Scores, reward: Tensor) -> Columns:
        """Each token is rewarded by the KL, the last one by the annotator too; GAE; whitened advantages."""
        mask, rewards = scores.mask, self.kl_rewards(scores)
        last = mask.int().cumsum(1).argmax(1)
        rows = torch.arange(len(scores), device=mask.device)
        rewards[rows, last] += reward.to(rewards.dtype)
        advantages, returns = gae(rewards, scores.values, mask, self.gamma, self.lam)
        return {
            "old_logps": scores.logps,
            "old_values": scores.values,
            "advantages": whiten(advantages, mask) if self.whiten else advantages,
            "returns": returns,
        }

    def diagnostics(self, scores: Scores) -> dict[str, Tensor]:
        return super().diagnostics(scores) | {"clip_fraction": clip_fraction(scores, self.clip, self.clip)}
