"""Group Relative Policy Optimization. Shao et al. 2024 (DeepSeekMath), https://arxiv.org/abs/2402.03300, Eq. 3, 4."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from prefopt.credit import group_relative
from prefopt.objectives.base import Needs, Term
from prefopt.objectives.registry import register
from prefopt.objectives.surrogate import PolicyGradient, clip_fraction, clipped_surrogate, log_ratio, mean_term
from prefopt.records import Columns, Scores


@register("grpo")
@dataclass(frozen=True, kw_only=True)
class GRPO(PolicyGradient):
    """Clipped surrogate + β · KL(π ‖ π_ref), without a critic.

    beta: coefficient of the KL (published: 0 to 0.1; 0 needs no reference), kl and kl_in its estimator and place: k3 in
    the loss (default, the paper's), see `PolicyGradient`. clip, clip_high: radii below and above 1, equal unless set
    (DAPO, https://arxiv.org/abs/2503.14476: 0.2 and 0.28). normalize: divide advantages by the group's std.
    average: tokens (default; every token of the step weighs the same, DAPO and TRL), sequences (the paper's mean of
    per-answer means, under which a long wrong answer is punished less per token) or sums (the mean over answers of each
    answer's sum, Dr. GRPO, https://arxiv.org/abs/2503.20783, up to the constant length by which its code divides; the
    gradient is an answer's length larger than that of the other two). Reward: β · log-ratio (log-prob when β is 0).
    """

    needs: ClassVar[Needs] = Needs(data="rollouts", reference=True, answers=2)
    beta_range: ClassVar = (0.0, 0.1)
    beta: float = 0.04
    kl: str = "k3"
    kl_in: str = "loss"
    clip: float = 0.2
    clip_high: float | None = None
    normalize: bool = True
    average: str = "tokens"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("clip", above=0)
        if self.clip_high is not None:
            self.check("clip_high", above=0)
        self.check("average", among=("tokens", "sequences", "sums"))

    def terms(self, scores: Scores, statistics: Mapping[str, Tensor]) -> tuple[Term, ...]:
        surrogate = clipped_surrogate(log_ratio(scores).exp(), scores.columns["advantages"], *self._radii)
        policy = mean_term("surrogate", scores, scores.total(surrogate), self.average)
        return (policy, *self.kl_terms(scores, self.average))

    def credit(self, scores: Scores, reward: Tensor) -> Columns:
        """The group-relative reward on every token. The rows of a prompt stand together, equally many for each."""
        rewards = self.answer_rewards(scores, reward)
        return self.rolled_out(scores, group_relative(rewards, self.group_size(scores), self.normalize))

    def diagnostics(self, scores: Scores) -> dict[str, Tensor]:
        return super().diagnostics(scores) | {"clip_fraction": clip_fraction(scores, *self._radii)}

    @property
    def _radii(self) -> tuple[float, float]:
        return self.clip, self.clip if self.clip_high is None else self.clip_high
