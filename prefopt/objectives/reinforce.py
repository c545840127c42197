"""REINFORCE. Williams 1992, https://doi.org/10.1007/BF00992696, §4, the whole answer as one action."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prefopt.credit import group_relative, whiten
from prefopt.objectives.registry import register
from prefopt.objectives.surrogate import WholeAnswer
from prefopt.records import Columns, Scores


@register("reinforce")
@dataclass(frozen=True, kw_only=True)
class REINFORCE(WholeAnswer):
    """`WholeAnswer` with what an answer earned less a baseline; one answer for each prompt is enough.

    beta: coefficient of the KL (published: 0 to 0.1). baseline: mean (default) of the whole collection, which holds
    the answer itself and so shrinks the expected gradient of N rows by 1/N, or none. whiten: divide by the standard
    deviation over the collection too, after which a baseline no longer matters; of REINFORCE++
    (https://arxiv.org/abs/2501.03262, Eq. 10), which does so over tokens and credits each with the KL from there on.
    """

    beta_range: ClassVar = (0.0, 0.1)
    baseline: str = "mean"
    whiten: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("baseline", among=("mean", "none"))

    def credit(self, scores: Scores, reward: Tensor) -> Columns:
        """The advantage of the answer on every token."""
        advantages = self.answer_rewards(scores, reward)
        if self.baseline == "mean":
            advantages = group_relative(advantages, len(advantages), normalize=False)  # the collection is one group
        if self.whiten:
            advantages = whiten(advantages[:, None], torch.ones_like(scores.mask[:, :1]))[:, 0]
        return self.rolled_out(scores, advantages)
