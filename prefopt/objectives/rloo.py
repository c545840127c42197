"""REINFORCE Leave-One-Out. Ahmadian et al. 2024, https://arxiv.org/abs/2402.14740, Eq. 8."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from prefopt.credit import rloo
from prefopt.objectives.base import Needs
from prefopt.objectives.registry import register
from prefopt.objectives.surrogate import WholeAnswer
from prefopt.records import Columns, Scores


@register("rloo")
@dataclass(frozen=True, kw_only=True)
class RLOO(WholeAnswer):
    """`WholeAnswer` with what an answer earned less the mean of the prompt's other answers; at least two for each.

    beta: coefficient of the KL (published: 0.03 to 0.1; TRL 0.05; 0 needs no reference). For a ratio per token take
    GRPO with normalize false and average sums: the same up to the factor G/(G - 1) of groups of G.
    """

    needs: ClassVar[Needs] = Needs(data="rollouts", reference=True, answers=2)
    beta_range: ClassVar = (0.0, 0.1)

    def credit(self, scores: Scores, reward: Tensor) -> Columns:
        """The leave-one-out advantage on every token. The rows of a prompt stand together, equally many for each."""
        return self.rolled_out(scores, rloo(self.answer_rewards(scores, reward), self.group_size(scores)))
