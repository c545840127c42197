"""Bradley-Terry reward model. Bradley & Terry 1952; Ouyang et al. 2022, https://arxiv.org/abs/2203.02155, Eq. 1."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from prefopt.objectives.base import Needs, Objective, Term, under_target
from prefopt.objectives.registry import register
from prefopt.records import Scores


def bradley_terry_loss(difference: Tensor, margin: Tensor | float = 0.0) -> Tensor:
    """-log σ(r_chosen - r_rejected - m). difference, margin: [B]; returns [B] nats. log 2 at equal rewards, m = 0."""
    return -F.logsigmoid(difference - margin)


@register("bradley_terry")
@dataclass(frozen=True, kw_only=True)
class BradleyTerry(Objective):
    """Mean over pairs of -log σ(r_w - r_l - m) + c · (r_w + r_l)².

    margin: the optional column [pairs] m (Llama 2, https://arxiv.org/abs/2307.09288, Eq. 2). centering: c, which fixes
    the additive constant that the first part leaves free (Eisenstein et al. 2023, https://arxiv.org/abs/2312.09244,
    use 0.01). A column `target` p makes the first part p · loss(d) + (1-p) · loss(-d). Reward: the scalar head.
    """

    needs: ClassVar[Needs] = Needs(data="pairs", heads=frozenset({"scalar"}), columns=frozenset({"margin", "target"}))
    centering: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("centering", at_least=0)

    def terms(self, scores: Scores, statistics: Mapping[str, Tensor]) -> tuple[Term, ...]:
        chosen, rejected = scores.halves()
        margin = chosen.columns.get("margin", 0.0)
        losses = under_target(
            lambda d: bradley_terry_loss(d, margin), chosen.rewards - rejected.rewards, chosen.columns
        )
        terms = [Term("bradley_terry", (chosen.weight * losses).sum(), "pairs")]
        if self.centering:
            squares = (chosen.rewards + rejected.rewards) ** 2
            terms.append(Term("centering", (chosen.weight * squares).sum(), "pairs", self.centering))
        return tuple(terms)

    def reward(self, scores: Scores) -> Tensor:
        return scores.rewards

    @property
    def reward_is_log_odds(self) -> bool:
        return True
