"""What the policy-gradient methods share: the surrogate and its clips, the KL to the reference and where it enters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prefopt.objectives.base import Needs, Objective, Term
from prefopt.records import Columns, Scores


def clipped_surrogate(
    ratio: Tensor, advantages: Tensor, low: float, high: float, dual_clip: float | None = None
) -> Tensor:
    """max(-A ρ, -A clip(ρ, 1 - low, 1 + high)): Schulman et al. 2017, https://arxiv.org/abs/1707.06347, Eq. 7, negated.

    ratio: ρ = π/π_old of a token [N, T], or of an answer [N]; advantages: the same shape, and what is returned. At
    ρ = 1 the gradient is the policy gradient's. dual_clip: c > 1, no more than -A c where A < 0 (Ye et al. 2020,
    https://arxiv.org/abs/1912.09729, Eq. 5, negated): without it a bad action that became likely costs without limit.
    """
    pessimistic = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - low, 1 + high))
    if dual_clip is None:
        return pessimistic
    return torch.where(advantages < 0, torch.minimum(pessimistic, -advantages * dual_clip), pessimistic)


def outside(ratio: Tensor, low: float, high: float) -> Tensor:
    """1 where the ratio has left [1 - low, 1 + high], else 0. Keeps the shape."""
    return ((ratio < 1 - low) | (ratio > 1 + high)).to(ratio.dtype)


def log_ratio(scores: Scores) -> Tensor:
    """[N, T] log π(y_t) - log π_old(y_t), π_old the policy that drew the answers."""
    return scores.logps - scores.columns["old_logps"]


def clip_fraction(scores: Scores, low: float, high: float) -> Tensor:
    """[N] the share of each row's tokens whose ratio is `outside`."""
    return scores.total(outside(log_ratio(scores).exp(), low, high)) / scores.lengths.clamp(min=1)


def kl_estimate(logps: Tensor, ref_logps: Tensor, estimator: str) -> Tensor:
    """Per-token estimates of KL(π ‖ π_ref) on π's own samples. Schulman 2020, http://joschu.net/blog/kl-approx.html.

    With d = log π - log π_ref: k1 = d (unbiased; its gradient in a loss is not the KL's), k2 = d²/2, k3 = e^-d - 1 + d
    (unbiased and never negative). [N, T] nats.
    """
    d = logps - ref_logps
    if estimator == "k1":
        return d
    return d.square() / 2 if estimator == "k2" else torch.expm1(-d) + d


def mean_term(name: str, scores: Scores, totals: Tensor, average: str, coefficient: float = 1.0) -> Term:
    """A mean of what each row adds up to, `totals` [N]; the one place where it is decided what over.

    average: tokens, Σ totals / Σ tokens, every token of the step alike; sequences, the mean over rows of each row's
    mean per token; sums, the mean over rows of each row's sum.
    """
    if average == "sequences":
        totals = totals / scores.lengths.clamp(min=1)
    return Term(name, (scores.weight * totals).sum(), "tokens" if average == "tokens" else "rows", coefficient)


@dataclass(frozen=True, kw_only=True)
class PolicyGradient(Objective):
    """Policy gradients on rollouts, held near the reference by β · KL(π ‖ π_ref). What is common to all of them.

    beta: coefficient of the KL; 0 needs no reference. kl: its estimator, k1, k2 or k3 (`kl_estimate`). kl_in: reward,
    -β · estimate is part of what an answer earned; or loss, β · estimate is a term of its own. Not all six are the same
    in expectation: k1 in the reward and k2 in the loss have the gradient of KL(π ‖ π_ref), k3 in the loss that of
    KL(π_ref ‖ π); k1 in the loss has none and is refused; k2 and k3 in the reward have less, none to first order around
    the reference, and draw a warning. Reward: β · log-ratio (log-prob when β is 0). Diagnostics, nats per answer: `kl`
    by the estimator that is optimised, `kl_k3` by the one that is never negative.
    """

    needs: ClassVar[Needs] = Needs(data="rollouts", reference=True)
    beta: float = 0.05
    kl: str = "k1"
    kl_in: str = "reward"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("beta", at_least=0)
        self.check("kl", among=("k1", "k2", "k3"))
        self.check("kl_in", among=("reward", "loss"))
        if self.kl == "k1" and self.kl_in == "loss":
            raise ValueError("loss.kl=k1 has no gradient in the loss, in expectation; take k2 or k3, or kl_in=reward")
        self.refine(reference=self.beta > 0)

    def reward(self, scores: Scores) -> Tensor:
        return self.beta * scores.logratio if self.beta else scores.logp

    def warnings(self, examples: Mapping[str, int]) -> list[str]:
        found = super().warnings(examples)
        if self.beta and self.kl_in == "reward" and self.kl != "k1":
            found.append(
                f"loss.kl={self.kl} in the reward does not have the KL's gradient, and hardly any near the reference; "
                "k1 has it there, k2 in the loss"
            )
        return found

    def diagnostics(self, scores: Scores) -> dict[str, Tensor]:
        if scores.ref_logps is None:
            return {}
        estimators = {"kl": self.kl, "kl_k3": "k3"}
        return {
            name: scores.total(kl_estimate(scores.logps, scores.ref_logps, estimator))
            for name, estimator in estimators.items()
        }

    # ------------------------------------------------------------ for `terms` and `credit` of the methods

    def kl_terms(self, scores: Scores, average: str) -> tuple[Term, ...]:
        """β · KL where it is in the loss, else nothing."""
        if not self.beta or self.kl_in == "reward":
            return ()
        estimate = kl_estimate(scores.logps, scores.ref_logps, self.kl)
        return (mean_term("kl", scores, scores.total(estimate), average, self.beta),)

    def kl_rewards(self, scores: Scores) -> Tensor:
        """[N, T] what the KL adds to the reward of each token: -β · estimate where it is in the reward, else 0."""
        if not self.beta or self.kl_in == "loss":
            return torch.zeros_like(scores.logps)
        return -self.beta * kl_estimate(scores.logps, scores.ref_logps, self.kl).where(scores.mask, 0)

    def answer_rewards(self, scores: Scores, reward: Tensor) -> Tensor:
        """[N] what each answer earned: the annotator's reward and what the KL adds."""
        return reward + self.kl_rewards(scores).sum(1)

    def group_size(self, scores: Scores) -> int:
        """The rows of a prompt, which stand together, equally many for each."""
        _, sizes = torch.unique_consecutive(scores.columns["group"], return_counts=True)
        if (sizes != sizes[0]).any():
            raise ValueError(f"{self.name} needs equally many rows for each prompt; got {sizes.tolist()}")
        return int(sizes[0])

    @staticmethod
    def rolled_out(scores: Scores, advantages: Tensor) -> Columns:
        """The columns of answers whose advantage [N] is that of each of their tokens."""
        return {"old_logps": scores.logps, "advantages": advantages[:, None] * scores.mask}


@dataclass(frozen=True, kw_only=True)
class WholeAnswer(PolicyGradient):
    """The whole answer is one action: mean over rows of -A ρ, ρ = π(y)/π_old(y) = exp Σ_t (log π - log π_old).

    The ratio is the answer's, as in TRL, because that is the action which was drawn and credited: only then is -A ρ an
    unbiased surrogate once the policy has moved (at ρ = 1 the gradient is -A ∇ log π(y) with a ratio per token too).
    clip: radius around 1 that ρ is clipped to; null (the default, exact on the policy's own samples) for none. Set it
    where a collection is used more than once: ρ is a product over tokens, and leaves 1 the faster the longer the
    answer.
    """

    clip: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.clip is not None:
            self.check("clip", above=0)

    def terms(self, scores: Scores, statistics: Mapping[str, Tensor]) -> tuple[Term, ...]:
        ratio = scores.total(log_ratio(scores)).exp()
        advantages = scores.total(scores.columns["advantages"]) / scores.lengths.clamp(min=1)  # alike on all tokens
        if self.clip is None:
            losses = -advantages * ratio
        else:
            losses = clipped_surrogate(ratio, advantages, self.clip, self.clip)
        return (mean_term("surrogate", scores, losses, "sums"), *self.kl_terms(scores, "sums"))

    def diagnostics(self, scores: Scores) -> dict[str, Tensor]:
        found = super().diagnostics(scores)
        if self.clip is not None:
            found["clip_fraction"] = outside(scores.total(log_ratio(scores)).exp(), self.clip, self.clip)
        return found
