"""What an objective is: a declaration of needs, and terms that are sums in declared units.

A method's file holds a pure function that reads like the paper's equation and a frozen dataclass that wires it to
`Scores`. Nothing here, and nothing in any method's file, knows a model, a loader or a trainer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from prefopt.records import Columns, Scores, demonstrated, units

# Nothing makes rankings or steps yet: a request for a loss that needs them is refused.
KINDS = ("demonstrations", "pairs", "labels", "rankings", "rollouts", "steps")
HEADS = ("lm", "scalar", "value")


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What builders must provide; only builders read it.

    data: which view of the examples; reference: whether `ref_logps` are read; heads: lm gives `logps`, scalar gives
    `rewards`, value gives `values`; tokens: further per-token columns of the same pass, with gradient ("entropy");
    prompt: columns `prompt_logp` and `prompt_tokens` [N]; whole_step: a step's rows may not be split; answers: of
    rollouts, how many to a prompt it compares at least; columns: what it reads of the data where there is any, "margin"
    [pairs] and "target" [pairs], the probability that chosen is better.
    """

    data: str
    reference: bool = False
    heads: frozenset[str] = frozenset({"lm"})
    tokens: frozenset[str] = frozenset()
    prompt: bool = False
    whole_step: bool = False
    answers: int = 1
    columns: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        for name in ("heads", "tokens", "columns"):
            object.__setattr__(self, name, frozenset(getattr(self, name)))
        if self.data not in KINDS:
            raise ValueError(f"needs.data must be one of {', '.join(KINDS)}; got {self.data!r}")
        if not self.heads <= set(HEADS):
            raise ValueError(f"needs.heads must be among {', '.join(HEADS)}; got {', '.join(sorted(self.heads))}")


@dataclass(frozen=True)
class Term:
    """A named part of the loss: `coefficient` · `sum` / (how many `unit`s the whole optimiser step holds).

    sum: scalar, with gradient. unit: a name that `records.units` counts (rows, pairs, tokens, demonstrated_tokens …).
    """

    name: str
    sum: Tensor
    unit: str
    coefficient: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Objective:
    """A method. Subclass, declare `needs`, write `terms` and `reward`; the rest has defaults.

    sft_weight adds the negative log-likelihood of the demonstrated rows (the chosen half, desirable labels) to any
    offline method; sft_reduction says what it is a mean over, see `likelihood_term`.
    """

    sft_weight: float = 0.0
    sft_reduction: str = "tokens"

    name: ClassVar[str] = ""
    needs: ClassVar[Needs]
    beta_range: ClassVar[tuple[float, float] | None] = None  # published values of beta

    def __post_init__(self) -> None:
        self.check("sft_weight", at_least=0)
        self.check("sft_reduction", among=("tokens", "sequences", "sum"))
        if self.sft_weight and self.needs.data not in ("demonstrations", "pairs", "labels"):
            raise ValueError(f"loss.sft_weight needs demonstrated completions; {self.name} sees {self.needs.data}")
        if self.sft_weight:
            self.refine(heads=self.needs.heads | {"lm"})

    # ------------------------------------------------------------ what a method writes

    def terms(self, scores: Scores, statistics: Mapping[str, Tensor]) -> tuple[Term, ...]:
        """The method's own terms; `statistics` are the means of what `statistics()` returned over the whole step."""
        raise NotImplementedError

    def reward(self, scores: Scores) -> Tensor:
        """[N] the implicit reward of each row, without gradient in mind."""
        raise NotImplementedError

    @property
    def reward_is_log_odds(self) -> bool:
        """Whether σ of a difference of rewards is the probability of a preference, which can be calibrated."""
        return False

    def statistics(self, scores: Scores) -> dict[str, tuple[Tensor, Tensor]]:
        """Detached (sum, count) by name, added up over the micro-batches and ranks of a step before any `terms`."""
        return {}

    def diagnostics(self, scores: Scores) -> dict[str, Tensor]:
        """What only this method has to show, one entry per row or pair."""
        return {}

    def credit(self, scores: Scores, reward: Tensor) -> Columns:
        """Columns that turn annotated rollouts into what `terms` reads. reward: [N] the annotator's."""
        raise NotImplementedError(f"{self.name} takes recorded {self.needs.data}; it gives no credit to rollouts")

    def warnings(self, examples: Mapping[str, int]) -> list[str]:
        """Sentences about settings that train but are probably not meant. examples: counts of the training set."""
        beta = getattr(self, "beta", None)
        if beta is None or self.beta_range is None or self.beta_range[0] <= beta <= self.beta_range[1]:
            return []
        low, high = self.beta_range
        return [f"loss.beta={beta:g} lies outside the published range of {self.name}, {low:g} to {high:g}"]

    # ------------------------------------------------------------ what everybody calls

    def all_terms(self, scores: Scores, statistics: Mapping[str, Tensor]) -> tuple[Term, ...]:
        """The method's terms and the added SFT term."""
        try:
            terms = self.terms(scores.zeroed(), statistics)
        except (AttributeError, KeyError, TypeError):  # of a None or a column that is not there
            self.complete(scores)
            raise
        if not self.sft_weight:
            return terms
        rows = self.demonstrated(scores)
        return *terms, likelihood_term("sft", scores, rows, self.sft_reduction, coefficient=self.sft_weight)

    def loss(self, scores: Scores) -> Tensor:
        """The scalar loss of one batch taken as a whole optimiser step."""
        statistics = means(self.statistics(scores))
        counts = units(self.needs.data, scores.lengths, scores.columns)
        return total(self.all_terms(scores, statistics), {unit: float(count) for unit, count in counts.items()})

    def complete(self, scores: Scores) -> None:
        """Refuse scores that lack what `needs` declares, in one line that names all of it."""
        needs = self.needs
        declared = {"logps": "lm" in needs.heads, "rewards": "scalar" in needs.heads, "values": "value" in needs.heads}
        declared |= {"ref_logps": needs.reference, "mask": "lm" in needs.heads or "value" in needs.heads}
        columns = needs.tokens | ({"prompt_logp", "prompt_tokens"} if needs.prompt else set())
        missing = [f"Scores.{name}" for name, used in declared.items() if used and getattr(scores, name) is None]
        missing += [f"the column {name!r}" for name in sorted(columns - scores.columns.keys())]
        if missing:
            raise ValueError(f"{self.name} needs {', '.join(missing)}, and the scores lack it")

    def demonstrated(self, scores: Scores) -> Tensor:
        """[N] True on the rows worth imitating."""
        return demonstrated(self.needs.data, len(scores), scores.columns).to(scores.lengths.device)

    # ------------------------------------------------------------ helpers of constructors

    def refine(self, **changes: Any) -> None:
        """Narrow or widen this instance's needs by what its settings imply."""
        object.__setattr__(self, "needs", replace(self.needs, **changes))

    def check(
        self,
        name: str,
        *,
        above: float | None = None,
        at_least: float | None = None,
        below: float | None = None,
        among: tuple[str, ...] | None = None,
    ) -> None:
        """Refuse a setting outside its range, in one line that names the key."""
        value = getattr(self, name)
        if among is not None:
            if value not in among:
                raise ValueError(f"loss.{name} must be one of {', '.join(among)}; got {value!r}")
            return
        bounds = [
            (above, "> ", lambda x, b: x > b),
            (at_least, ">= ", lambda x, b: x >= b),
            (below, "< ", lambda x, b: x < b),
        ]
        wanted = " and ".join(f"{sign}{bound:g}" for bound, sign, _ in bounds if bound is not None)
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not number or not all(holds(value, bound) for bound, _, holds in bounds if bound is not None):
            raise ValueError(f"loss.{name} must be a number {wanted}; got {value!r}")


def under_target(loss: Callable[[Tensor], Tensor], difference: Tensor, columns: Columns) -> Tensor:
    """[B] p · loss(d) + (1-p) · loss(-d): the expected loss where chosen is better with probability p only.

    p: the column `target` [B]; without it loss(d). difference: [B], what the loss sees of chosen over rejected.
    """
    if "target" not in columns:
        return loss(difference)
    p = columns["target"]
    return p * loss(difference) + (1 - p) * loss(-difference)


def likelihood_term(
    name: str,
    scores: Scores,
    rows: Tensor,
    reduction: str = "tokens",
    *,
    scope: str = "completion",
    coefficient: float = 1.0,
) -> Term:
    """Negative log-likelihood of `rows` [N] in nats; the one place where it is reduced.

    reduction: tokens, Σ -log π / Σ tokens (TRL, the ORPO authors' code); sequences, the mean over rows of each row's
    mean per token (OpenRLHF, LLaMA-Factory); sum, the mean over rows of each row's sum (NeMo). scope: completion, or
    text for prompt and completion (needs `prompt=True`).
    """
    nll, lengths = -scores.logp, scores.lengths
    if scope == "text":
        nll, lengths = nll - scores.columns["prompt_logp"], lengths + scores.columns["prompt_tokens"]
    if reduction == "sequences":
        nll = nll / lengths.clamp(min=1)
    per_token = "demonstrated_text" if scope == "text" else "demonstrated_tokens"
    unit = per_token if reduction == "tokens" else "demonstrations"
    return Term(name, (scores.weight * nll).where(rows, 0).sum(), unit, coefficient)


def total(terms: tuple[Term, ...], counts: Mapping[str, float]) -> Tensor:
    """Σ coefficient · sum / count: the one place where anything is divided. A unit the step has none of adds 0."""
    parts = [t.coefficient * t.sum / counts[t.unit] if counts[t.unit] else t.sum * 0.0 for t in terms]
    return torch.stack(parts).sum()


def means(statistics: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Sums over counts; 0 where the count is 0."""
    return {name: s / c if c else torch.zeros_like(s) for name, (s, c) in statistics.items()}
