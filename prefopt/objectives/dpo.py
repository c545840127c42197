"""Direct Preference Optimization. Rafailov et al. 2023, https://arxiv.org/abs/2305.18290, Eq. 7."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from prefopt.objectives.base import Needs, Objective, Term, under_target
from prefopt.objectives.registry import register
from prefopt.records import Scores


def dpo_loss(margin: Tensor, beta: float, label_smoothing: float = 0.0, robust: bool = False) -> Tensor:
    """With A = -log σ(β m), B = -log σ(-β m) and m = log-ratio(chosen) - log-ratio(rejected):

        DPO     A                            ε = 0
        cDPO    (1-ε) A + ε B                Mitchell 2023, https://ericmitchell.ai/cdpo.pdf, Eq. 3
        robust  ((1-ε) A - ε B) / (1-2ε)     Chowdhury et al. 2024, https://arxiv.org/abs/2403.00409, Eq. 12

    margin: [B] nats. Returns [B] nats. All three are log 2 at m = 0.
    """
    agree, flip = -F.logsigmoid(beta * margin), -F.logsigmoid(-beta * margin)
    if robust:
        return ((1 - label_smoothing) * agree - label_smoothing * flip) / (1 - 2 * label_smoothing)
    return (1 - label_smoothing) * agree + label_smoothing * flip


@register("dpo")
@dataclass(frozen=True, kw_only=True)
class DPO(Objective):
    """Mean over pairs of `dpo_loss`.

    beta: strength of the pull towards the reference (published: 0.01 to 0.5; with `average` 2 to 10).
    label_smoothing: ε in [0, 0.5), the assumed share of flipped labels. robust: the unbiased form instead of cDPO.
    average: log-ratios per token instead of summed (Tülu 3's length-normalised DPO, https://arxiv.org/abs/2411.15124).
    Reward: β · log-ratio (per token with `average`). A column `target` p makes it p · loss(m) + (1-p) · loss(-m).
    """

    needs: ClassVar[Needs] = Needs(data="pairs", reference=True, columns=frozenset({"target"}))
    beta_range: ClassVar = (0.01, 0.5)
    beta: float = 0.1
    label_smoothing: float = 0.0
    robust: bool = False
    average: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("beta", above=0)
        self.check("label_smoothing", at_least=0, below=0.5)
        if self.average:  # a mean per token is some ten times smaller than the sum
            object.__setattr__(self, "beta_range", (2.0, 10.0))

    def terms(self, scores: Scores, statistics: Mapping[str, Tensor]) -> tuple[Term, ...]:
        chosen, rejected = scores.halves()
        margin = self._ratio(chosen) - self._ratio(rejected)
        losses = under_target(self._loss, margin, chosen.columns)
        return (Term("dpo", (chosen.weight * losses).sum(), "pairs"),)

    def reward(self, scores: Scores) -> Tensor:
        return self.beta * self._ratio(scores)

    @property
    def reward_is_log_odds(self) -> bool:
        return not self.label_smoothing  # which is aimed at other odds than the labels'

    def _loss(self, margin: Tensor) -> Tensor:
        return dpo_loss(margin, self.beta, self.label_smoothing, self.robust)

    def _ratio(self, scores: Scores) -> Tensor:
        return scores.mean_logratio if self.average else scores.logratio
