"""Hand-made scores, what every loss makes of them by arithmetic alone, and the shared scores of the other tests.

Rows have different lengths, row 3 does not start at position 0, position 3 is padding for all, and NaN stands off the
mask. No number is zero and no two are symmetric: a zero or a symmetry would hide a sign.
"""

from __future__ import annotations

import json
from dataclasses import replace
from math import exp, expm1, log, log1p, nan, sin, sqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prefopt.objectives import Objective, create
from prefopt.records import HALVED, Scores

# ------------------------------------------------------------------------------------------- tensors


def float64(*rows: Any) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


_ = nan  # off the mask


def per_token(*rows: list[float]) -> Tensor:
    return float64(*rows)


# ------------------------------------------------------------------------------------------- two pairs
#
#                log-prob   length   mean log-prob   log-ratio   mean log-ratio
#   chosen 0       -2.0       3        -2/3            +0.6        +0.2
#   chosen 1       -2.2       2        -1.1            -0.5        -0.25
#   rejected 0     -3.2       2        -1.6            -0.8        -0.4
#   rejected 1     -0.9       1        -0.9            +0.4        +0.4
#
#   pair 0: difference of log-ratios 1.4, of mean log-ratios 0.6, of mean log-probs 14/15, of rewards 1.0
#   pair 1:                         -0.9,                  -0.65,                  -0.2,             -1.3

PAIR_LOGPS = per_token([-0.5, -1.2, -0.3, _], [-1.5, -0.7, _, _], [-1.0, -2.2, _, _], [_, -0.9, _, _])
PAIR_REF = per_token([-0.9, -1.0, -0.7, _], [-0.4, -1.3, _, _], [-1.4, -1.0, _, _], [_, -1.3, _, _])


def pairs(**columns: Any) -> Scores:
    return Scores(
        logps=PAIR_LOGPS,
        mask=~PAIR_LOGPS.isnan(),
        ref_logps=PAIR_REF,
        rewards=float64(0.7, -0.4, -0.3, 0.9),
        columns={name: torch.as_tensor(column) for name, column in columns.items()},
    )


PAIRS = pairs()
WEIGHTED = pairs(weight=float64(0.5, 2.0))  # the mean divides by 2.5
PROMPTS = {"prompt_logp": float64(-3.0, -4.5, -2.5, -1.75), "prompt_tokens": torch.tensor([2, 6, 3, 5])}

# ------------------------------------------------------------------------------------------- three demonstrations
#
# negative log-likelihoods 2.0, 2.2, 3.2 over 3, 2, 2 tokens; with their prompts 5.0, 6.7, 5.7 over 5, 8, 5


def demonstrations(**columns: Any) -> Scores:
    columns = {name: torch.as_tensor(column) for name, column in columns.items()}
    return Scores(logps=PAIR_LOGPS[:3], mask=~PAIR_LOGPS[:3].isnan(), columns=columns)


DEMONSTRATIONS = demonstrations()
DEMONSTRATED_TEXT = demonstrations(**{name: column[:3] for name, column in PROMPTS.items()})

# ------------------------------------------------------------------------------------------- three labels
#
# labelled rows: log-ratios +0.6 (desirable), -0.5 (undesirable), +0.3 (desirable)
# their mismatched rows: +0.9, -0.2, +0.5, so z = 0.4; `below` exchanges policy and reference there, so z = -0.4 -> 0

LABELLED = per_token([-0.5, -1.2, -0.3, _], [-1.5, -0.7, _, _], [_, -0.6, -1.1, _])
LABELLED_REF = per_token([-0.9, -1.0, -0.7, _], [-0.4, -1.3, _, _], [_, -0.8, -1.2, _])
MISMATCHED = per_token([-2.0, -1.5, -0.9, _], [-1.1, _, _, _], [-1.3, -0.4, _, _])
MISMATCHED_REF = per_token([-2.4, -1.6, -1.3, _], [-0.9, _, _, _], [-1.2, -1.0, _, _])


def labels(below: bool = False, desirable: tuple[bool, ...] = (True, False, True), **columns: Any) -> Scores:
    other, other_ref = (MISMATCHED_REF, MISMATCHED) if below else (MISMATCHED, MISMATCHED_REF)
    logps = torch.cat((LABELLED, other))
    return Scores(
        logps=logps,
        mask=~logps.isnan(),
        ref_logps=torch.cat((LABELLED_REF, other_ref)),
        columns={"desirable": torch.tensor(desirable), **columns},
    )


LABELS = labels()

# ------------------------------------------------------------------------------------------- three rollouts
#
#   token   ratio     advantage    what the surrogate does at clip 0.2
#   0.0     e^0.4       +1.5       clipped to 1.2
#   0.1     e^-0.1      -0.7       inside
#   0.2     e^-0.05     +0.4       inside
#   1.1     e^-0.4      -2.0       clipped to 0.8
#   1.2     e^0.6       -0.8       outside, but the pessimist keeps the ratio
#   2.0     e^-0.5      +0.9       outside, but the pessimist keeps the ratio
#
#   answer  ratio     advantage, the mean of its tokens'
#   0       e^0.25      +0.4       clipped to 1.2
#   1       e^0.2       -1.4       outside (1.22), but the pessimist keeps the ratio
#   2       e^-0.5      +0.9       outside, but the pessimist keeps the ratio

ROLL_LOGPS = per_token([-0.5, -1.2, -0.3, _], [_, -1.0, -2.2, _], [-0.7, _, _, _])
ROLL_REF = per_token([-0.9, -1.0, -0.7, _], [_, -1.4, -1.0, _], [-0.95, _, _, _])  # d: 0.4 -0.2 0.4, 0.4 -1.2, 0.25
ROLL_COLUMNS = {
    "old_logps": per_token([-0.9, -1.1, -0.25, _], [_, -0.6, -2.8, _], [-0.2, _, _, _]),
    "advantages": per_token([1.5, -0.7, 0.4, _], [_, -2.0, -0.8, _], [0.9, _, _, _]),
    "old_values": per_token([0.2, 0.5, -0.5, _], [_, 0.4, 0.6, _], [0.75, _, _, _]),
    "returns": per_token([1.0, 0.2, 0.1, _], [_, 1.1, 0.5, _], [0.3, _, _, _]),
    "entropy": per_token([1.1, 0.9, 0.4, _], [_, 1.3, 0.2, _], [0.7, _, _, _]),
}


def rollouts(**columns: Any) -> Scores:
    return Scores(
        logps=ROLL_LOGPS,
        mask=~ROLL_LOGPS.isnan(),
        ref_logps=ROLL_REF,
        values=per_token([0.3, 1.0, -0.4, _], [_, 0.9, -0.2, _], [0.8, _, _, _]),
        columns={**ROLL_COLUMNS, "group": torch.tensor([0, 0, 1]), **columns},
    )


ROLLOUTS = rollouts()
ROLL_WEIGHTS = {"weight": float64(0.5, 2.0, 1.0)}

# ------------------------------------------------------------------------------------------- arithmetic


def sigmoid(x: float) -> float:
    return 1 / (1 + exp(-x))


def nls(x: float) -> float:
    """-log σ(x)."""
    return log1p(exp(-x))


def log_odds(mean_logp: float) -> float:
    return mean_logp - log(-expm1(mean_logp))


def k3(d: float) -> float:
    return exp(-d) - 1 + d


LO = [log_odds(-2 / 3) - log_odds(-1.6), log_odds(-1.1) - log_odds(-0.9)]
ODDS = (nls(LO[0]) + nls(LO[1])) / 2
NLL = {"tokens": (2.0 + 2.2) / 5, "sequences": (2 / 3 + 1.1) / 2, "sum": (2.0 + 2.2) / 2}
NLL_TEXT = {"tokens": (5.0 + 6.7) / 13, "sequences": (5.0 / 5 + 6.7 / 8) / 2, "sum": (5.0 + 6.7) / 2}
NLL_LABELS = {"tokens": (2.0 + 1.7) / 5, "sequences": (2 / 3 + 0.85) / 2, "sum": (2.0 + 1.7) / 2}  # the desirable
NLL_ALL = {"tokens": 7.4 / 7, "sequences": (2 / 3 + 1.1 + 1.6) / 3, "sum": 7.4 / 3}
NLL_ALL_TEXT = {"tokens": 17.4 / 18, "sequences": (5.0 / 5 + 6.7 / 8 + 5.7 / 5) / 3, "sum": 17.4 / 3}


def cdpo(x: float, e: float) -> float:
    return (1 - e) * nls(x) + e * nls(-x)


def robust(x: float, e: float) -> float:
    return ((1 - e) * nls(x) - e * nls(-x)) / (1 - 2 * e)


def kto(beta: float = 0.1, z: float = 0.4, up: float = 1.0, down: float = 1.0, w: tuple = (1, 1, 1)) -> float:
    loss = w[0] * up * (1 - sigmoid(beta * (0.6 - z)))
    loss += w[1] * down * (1 - sigmoid(beta * (z + 0.5)))
    loss += w[2] * up * (1 - sigmoid(beta * (0.3 - z)))
    return loss / sum(w)


# sums over the tokens of each rollout
SURROGATE = [
    -1.2 * 1.5 + 0.7 * exp(-0.1) - 0.4 * exp(-0.05),
    2.0 * 0.8 + 0.8 * exp(0.6),
    -0.9 * exp(-0.5),
]
SURROGATE_WIDE = [-exp(0.4) * 1.5 + 0.7 * exp(-0.1) - 0.4 * exp(-0.05), 2.0 * exp(-0.4) + 0.8 * exp(0.6), SURROGATE[2]]
SURROGATE_HIGH = [-1.28 * 1.5 + 0.7 * exp(-0.1) - 0.4 * exp(-0.05), SURROGATE[1], SURROGATE[2]]
SURROGATE_DUAL = [SURROGATE[0], 2.0 * 0.8 + 0.8 * 1.5, SURROGATE[2]]  # c = 1.5 stops only what costs e^0.6 = 1.8
ANSWERS = [-0.4 * exp(0.25), 1.4 * exp(0.2), -0.9 * exp(-0.5)]  # the whole answer as one action
ANSWERS_CLIPPED = [-0.4 * 1.2, ANSWERS[1], ANSWERS[2]]  # clip 0.2
K3 = [k3(0.4) + k3(-0.2) + k3(0.4), k3(0.4) + k3(-1.2), k3(0.25)]
K2 = [(0.4**2 + 0.2**2 + 0.4**2) / 2, (0.4**2 + 1.2**2) / 2, 0.25**2 / 2]
# ½ max(squares): the second of row 0 and of row 1 keep the unclipped value, the first of row 1 the clipped one
VALUES = [(0.49 + 0.64 + 0.25) / 2, (0.25 + 0.49) / 2, 0.25 / 2]  # value_clip 0.2
VALUES_WIDE = [VALUES[0], (0.09 + 0.49) / 2, VALUES[2]]  # value_clip 0.4
VALUES_FREE = [VALUES[0], (0.04 + 0.49) / 2, VALUES[2]]  # none
ENTROPY = 1.1 + 0.9 + 0.4 + 1.3 + 0.2 + 0.7


def weighted(totals: list[float]) -> float:
    return 0.5 * totals[0] + 2 * totals[1] + totals[2]


def per_row(totals: list[float], w: tuple = (1, 1, 1)) -> float:
    """Mean over rows of each row's mean per token; 3, 2 and 1 tokens."""
    return sum(w_i * total / n for w_i, total, n in zip(w, totals, (3, 2, 1), strict=True)) / sum(w)


# ------------------------------------------------------------------------------------------- the table


class Row(NamedTuple):
    name: str
    options: dict[str, Any]
    scores: Scores
    expected: Any

    def __str__(self) -> str:
        return key(self.name, self.options)

    def create(self) -> Objective:
        return create(self.name, **self.options)


def key(name: str, options: dict[str, Any]) -> str:
    return f"{name} {json.dumps(options)}"


ROWS = [
    # ---------------------------------------------------------------- sft
    Row("sft", {}, DEMONSTRATIONS, NLL_ALL["tokens"]),
    Row("sft", {"reduction": "sequences"}, DEMONSTRATIONS, NLL_ALL["sequences"]),
    Row("sft", {"reduction": "sum"}, DEMONSTRATIONS, NLL_ALL["sum"]),
    Row("sft", {"nll_scope": "text"}, DEMONSTRATED_TEXT, NLL_ALL_TEXT["tokens"]),
    Row("sft", {"nll_scope": "text", "reduction": "sequences"}, DEMONSTRATED_TEXT, NLL_ALL_TEXT["sequences"]),
    Row("sft", {"nll_scope": "text", "reduction": "sum"}, DEMONSTRATED_TEXT, NLL_ALL_TEXT["sum"]),
    Row("sft", {}, demonstrations(weight=float64(0.5, 2.0, 1.0)), 8.6 / 7.5),
    # ---------------------------------------------------------------- bradley_terry
    Row("bradley_terry", {}, PAIRS, (nls(1.0) + nls(-1.3)) / 2),
    Row("bradley_terry", {}, pairs(margin=float64(0.25, 0.6)), (nls(0.75) + nls(-1.9)) / 2),
    Row("bradley_terry", {"centering": 0.01}, PAIRS, (nls(1.0) + nls(-1.3)) / 2 + 0.01 * (0.4**2 + 0.5**2) / 2),
    Row(
        "bradley_terry",
        {"centering": 0.3},
        pairs(weight=float64(0.5, 2.0), margin=float64(0.25, 0.6)),
        (0.5 * (nls(0.75) + 0.3 * 0.4**2) + 2 * (nls(-1.9) + 0.3 * 0.5**2)) / 2.5,
    ),
    Row(
        "bradley_terry",
        {},
        pairs(target=float64(0.75, 1.0), margin=float64(0.25, 0.6)),
        (0.75 * nls(0.75) + 0.25 * nls(-1.25) + nls(-1.9)) / 2,
    ),
    # ---------------------------------------------------------------- dpo
    Row("dpo", {}, pairs(target=float64(0.75, 0.5)), (cdpo(0.14, 0.25) + cdpo(-0.09, 0.5)) / 2),
    Row(
        "dpo",
        {"label_smoothing": 0.2},
        pairs(target=float64(0.75, 1.0)),
        (0.75 * cdpo(0.14, 0.2) + 0.25 * cdpo(-0.14, 0.2) + cdpo(-0.09, 0.2)) / 2,
    ),
    Row("dpo", {}, PAIRS, (nls(0.14) + nls(-0.09)) / 2),
    Row("dpo", {"beta": 0.3}, PAIRS, (nls(0.42) + nls(-0.27)) / 2),
    Row("dpo", {"label_smoothing": 0.2}, PAIRS, (cdpo(0.14, 0.2) + cdpo(-0.09, 0.2)) / 2),
    Row(
        "dpo",
        {"beta": 0.5, "label_smoothing": 0.1, "robust": True},
        PAIRS,
        (robust(0.7, 0.1) + robust(-0.45, 0.1)) / 2,
    ),
    Row("dpo", {"beta": 5.0, "average": True}, PAIRS, (nls(3.0) + nls(-3.25)) / 2),
    Row("dpo", {}, WEIGHTED, (0.5 * nls(0.14) + 2 * nls(-0.09)) / 2.5),
    Row("dpo", {}, pairs(weight=float64(0.5, 2.0, 0.5, 2.0)), (0.5 * nls(0.14) + 2 * nls(-0.09)) / 2.5),
    # ---------------------------------------------------------------- ipo
    Row("ipo", {}, PAIRS, ((0.6 - 5) ** 2 + (-0.65 - 5) ** 2) / 2),
    Row("ipo", {"beta": 0.4}, PAIRS, ((0.6 - 1.25) ** 2 + (-0.65 - 1.25) ** 2) / 2),
    Row("ipo", {"average": False}, PAIRS, ((1.4 - 5) ** 2 + (-0.9 - 5) ** 2) / 2),
    Row("ipo", {"beta": 0.4}, WEIGHTED, (0.5 * (0.6 - 1.25) ** 2 + 2 * (-0.65 - 1.25) ** 2) / 2.5),
    # ---------------------------------------------------------------- kto
    Row("kto", {}, LABELS, kto()),
    Row("kto", {"beta": 0.5}, LABELS, kto(beta=0.5)),
    Row("kto", {"desirable_weight": 1.1}, LABELS, kto(up=1.1)),
    Row("kto", {"undesirable_weight": 0.7}, LABELS, kto(down=0.7)),
    Row("kto", {"beta": 0.5}, labels(below=True), kto(beta=0.5, z=0.0)),
    Row("kto", {}, labels(desirable=(True, False, True, False, True, True)), kto()),
    # the labelled rows' weights, handed to their mismatched rows: z = (0.5 · 0.9 - 2 · 0.2 + 0.5) / 3.5
    Row("kto", {}, labels(weight=float64(0.5, 2.0, 1.0)), kto(z=0.55 / 3.5, w=(0.5, 2, 1))),
    # weights of their own on the mismatched rows: z = (3 · 0.9 - 0.25 · 0.2 + 1.5 · 0.5) / 4.75
    Row(
        "kto",
        {"beta": 0.5},
        labels(weight=float64(0.5, 2.0, 1.0, 3.0, 0.25, 1.5)),
        kto(beta=0.5, z=3.4 / 4.75, w=(0.5, 2, 1)),
    ),
    # ---------------------------------------------------------------- orpo
    Row("orpo", {}, PAIRS, NLL["tokens"] + 0.1 * ODDS),
    Row("orpo", {"beta": 0.7}, PAIRS, NLL["tokens"] + 0.7 * ODDS),
    Row("orpo", {"nll_reduction": "sequences"}, PAIRS, NLL["sequences"] + 0.1 * ODDS),
    Row("orpo", {"nll_reduction": "sum"}, PAIRS, NLL["sum"] + 0.1 * ODDS),
    Row("orpo", {"nll_scope": "text"}, pairs(**PROMPTS), NLL_TEXT["tokens"] + 0.1 * ODDS),
    Row(
        "orpo",
        {"nll_scope": "text", "nll_reduction": "sequences"},
        pairs(**PROMPTS),
        NLL_TEXT["sequences"] + 0.1 * ODDS,
    ),
    Row("orpo", {"nll_scope": "text", "nll_reduction": "sum"}, pairs(**PROMPTS), NLL_TEXT["sum"] + 0.1 * ODDS),
    Row("orpo", {}, WEIGHTED, 5.4 / 5.5 + 0.1 * (0.5 * nls(LO[0]) + 2 * nls(LO[1])) / 2.5),
    # ---------------------------------------------------------------- simpo
    Row("simpo", {}, PAIRS, (nls(2 * 14 / 15 - 0.5) + nls(2 * -0.2 - 0.5)) / 2),
    Row("simpo", {"beta": 3.0}, PAIRS, (nls(3 * 14 / 15 - 0.5) + nls(3 * -0.2 - 0.5)) / 2),
    Row("simpo", {"gamma": 1.2}, PAIRS, (nls(2 * 14 / 15 - 1.2) + nls(2 * -0.2 - 1.2)) / 2),
    Row("simpo", {}, WEIGHTED, (0.5 * nls(2 * 14 / 15 - 0.5) + 2 * nls(2 * -0.2 - 0.5)) / 2.5),
    # ---------------------------------------------------------------- ppo
    Row("ppo", {}, ROLLOUTS, (sum(SURROGATE) + 0.1 * sum(VALUES)) / 6),
    Row("ppo", {"beta": 0.0}, ROLLOUTS, (sum(SURROGATE) + 0.1 * sum(VALUES)) / 6),
    Row("ppo", {"clip": 0.7}, ROLLOUTS, (sum(SURROGATE_WIDE) + 0.1 * sum(VALUES)) / 6),
    Row("ppo", {"value_clip": 0.4}, ROLLOUTS, (sum(SURROGATE) + 0.1 * sum(VALUES_WIDE)) / 6),
    Row("ppo", {"value_clip": None}, ROLLOUTS, (sum(SURROGATE) + 0.1 * sum(VALUES_FREE)) / 6),
    Row("ppo", {"value_coef": 1.5}, ROLLOUTS, (sum(SURROGATE) + 1.5 * sum(VALUES)) / 6),
    Row("ppo", {"entropy_coef": 0.02}, ROLLOUTS, (sum(SURROGATE) + 0.1 * sum(VALUES) - 0.02 * ENTROPY) / 6),
    Row("ppo", {"dual_clip": 1.5}, ROLLOUTS, (sum(SURROGATE_DUAL) + 0.1 * sum(VALUES)) / 6),
    Row("ppo", {"dual_clip": 1.9}, ROLLOUTS, (sum(SURROGATE) + 0.1 * sum(VALUES)) / 6),
    Row("ppo", {"kl": "k3", "kl_in": "loss"}, ROLLOUTS, (sum(SURROGATE) + 0.1 * sum(VALUES) + 0.05 * sum(K3)) / 6),
    # weighted tokens: 0.5 · 3 + 2 · 2 + 1 · 1 = 6.5
    Row(
        "ppo",
        {"kl": "k2", "kl_in": "loss", "beta": 0.2},
        rollouts(**ROLL_WEIGHTS),
        (weighted(SURROGATE) + 0.1 * weighted(VALUES) + 0.2 * weighted(K2)) / 6.5,
    ),
    Row(
        "ppo",
        {"entropy_coef": 0.02},
        rollouts(**ROLL_WEIGHTS),
        (weighted(SURROGATE) + 0.1 * weighted(VALUES) - 0.02 * weighted([2.4, 1.5, 0.7])) / 6.5,
    ),
    # ---------------------------------------------------------------- grpo
    Row("grpo", {}, ROLLOUTS, (sum(SURROGATE) + 0.04 * sum(K3)) / 6),
    Row("grpo", {"beta": 0.5}, ROLLOUTS, (sum(SURROGATE) + 0.5 * sum(K3)) / 6),
    Row("grpo", {"beta": 0.0}, ROLLOUTS, sum(SURROGATE) / 6),
    Row("grpo", {"kl": "k2"}, ROLLOUTS, (sum(SURROGATE) + 0.04 * sum(K2)) / 6),
    Row("grpo", {"clip": 0.7}, ROLLOUTS, (sum(SURROGATE_WIDE) + 0.04 * sum(K3)) / 6),
    Row("grpo", {"clip_high": 0.28}, ROLLOUTS, (sum(SURROGATE_HIGH) + 0.04 * sum(K3)) / 6),
    Row("grpo", {"average": "sequences"}, ROLLOUTS, per_row(SURROGATE) + 0.04 * per_row(K3)),
    Row("grpo", {"average": "sums"}, ROLLOUTS, (sum(SURROGATE) + 0.04 * sum(K3)) / 3),
    # weighted rows: 0.5 + 2 + 1 = 3.5
    Row("grpo", {"average": "sums"}, rollouts(**ROLL_WEIGHTS), (weighted(SURROGATE) + 0.04 * weighted(K3)) / 3.5),
    Row("grpo", {"kl": "k1", "kl_in": "reward"}, ROLLOUTS, sum(SURROGATE) / 6),
    Row("grpo", {"beta": 0.5}, rollouts(**ROLL_WEIGHTS), (weighted(SURROGATE) + 0.5 * weighted(K3)) / 6.5),
    Row(
        "grpo",
        {"average": "sequences", "kl": "k2"},
        rollouts(**ROLL_WEIGHTS),
        per_row(SURROGATE, (0.5, 2, 1)) + 0.04 * per_row(K2, (0.5, 2, 1)),
    ),
    # ---------------------------------------------------------------- rloo and reinforce, which differ in their credit
    *(
        row
        for name in ("rloo", "reinforce")
        for row in (
            Row(name, {}, ROLLOUTS, sum(ANSWERS) / 3),
            Row(name, {"beta": 0.0}, ROLLOUTS, sum(ANSWERS) / 3),
            Row(name, {"clip": 0.2}, ROLLOUTS, sum(ANSWERS_CLIPPED) / 3),
            Row(name, {"clip": 0.5}, ROLLOUTS, sum(ANSWERS) / 3),
            Row(name, {"kl": "k3", "kl_in": "loss"}, ROLLOUTS, (sum(ANSWERS) + 0.05 * sum(K3)) / 3),
            Row(name, {"clip": 0.2}, rollouts(**ROLL_WEIGHTS), weighted(ANSWERS_CLIPPED) / 3.5),
            Row(
                name,
                {"kl": "k2", "kl_in": "loss", "beta": 0.2},
                rollouts(**ROLL_WEIGHTS),
                (weighted(ANSWERS) + 0.2 * weighted(K2)) / 3.5,
            ),
        )
    ),
    # ---------------------------------------------------------------- sft_weight, for every offline method
    *(
        Row(name, {"sft_weight": 0.3, "sft_reduction": reduction}, scores, alone + 0.3 * nll[reduction])
        for name, scores, alone, nll in (
            ("sft", DEMONSTRATIONS, NLL_ALL["tokens"], NLL_ALL),
            ("bradley_terry", PAIRS, (nls(1.0) + nls(-1.3)) / 2, NLL),
            ("dpo", PAIRS, (nls(0.14) + nls(-0.09)) / 2, NLL),
            ("ipo", PAIRS, ((0.6 - 5) ** 2 + (-0.65 - 5) ** 2) / 2, NLL),
            ("kto", LABELS, kto(), NLL_LABELS),
            ("orpo", PAIRS, NLL["tokens"] + 0.1 * ODDS, NLL),
            ("simpo", PAIRS, (nls(2 * 14 / 15 - 0.5) + nls(2 * -0.2 - 0.5)) / 2, NLL),
        )
        for reduction in ("tokens", "sequences", "sum")
    ),
    Row("dpo", {"sft_weight": 2.0}, WEIGHTED, (0.5 * nls(0.14) + 2 * nls(-0.09)) / 2.5 + 2 * 5.4 / 5.5),
]

# What `reward` says of each row.
REWARDS = [
    Row("sft", {}, DEMONSTRATIONS, [-2 / 3, -1.1, -1.6]),
    Row("bradley_terry", {}, PAIRS, [0.7, -0.4, -0.3, 0.9]),
    Row("dpo", {"beta": 0.3}, PAIRS, [0.18, -0.15, -0.24, 0.12]),
    Row("dpo", {"beta": 5.0, "average": True}, PAIRS, [1.0, -1.25, -2.0, 2.0]),
    Row("ipo", {"beta": 0.4}, PAIRS, [0.08, -0.1, -0.16, 0.16]),
    Row("ipo", {"beta": 0.4, "average": False}, PAIRS, [0.24, -0.2, -0.32, 0.16]),
    Row("kto", {"beta": 0.5}, LABELS, [0.3, -0.25, 0.15, 0.45, -0.1, 0.25]),
    Row("orpo", {"beta": 0.7}, PAIRS, [-1.4 / 3, -0.77, -1.12, -0.63]),
    Row("simpo", {"beta": 3.0}, PAIRS, [-2.0, -3.3, -4.8, -2.7]),
    Row("ppo", {"beta": 0.2}, ROLLOUTS, [0.12, -0.16, 0.05]),
    Row("ppo", {"beta": 0.0}, ROLLOUTS, [-2.0, -3.2, -0.7]),
    Row("grpo", {"beta": 0.2}, ROLLOUTS, [0.12, -0.16, 0.05]),
    Row("grpo", {"beta": 0.0}, ROLLOUTS, [-2.0, -3.2, -0.7]),
    Row("rloo", {"beta": 0.2}, ROLLOUTS, [0.12, -0.16, 0.05]),
    Row("reinforce", {"beta": 0.2, "kl": "k2"}, ROLLOUTS, [0.12, -0.16, 0.05]),  # whatever the estimator
]


# ------------------------------------------------------------------------------------------- credit
#
# Two rollouts of one prompt; the annotator gives 1.0 and -2.0. k1: 0.4, -0.2 and 0.4; k2: 0.08, 0.02 and 0.08; values
# 0.3, 0.8 and 0.5. Less β k1 the answers earn 1.0 - 0.2 β and -2.0 - 0.4 β.


def _whitened(*x: float) -> list[float]:
    mean = sum(x) / len(x)
    std = sqrt(sum((value - mean) ** 2 for value in x) / len(x))
    return [(value - mean) / std for value in x]


CREDITED = Scores(
    logps=per_token([-0.5, -1.2, _], [_, -1.0, _]),
    mask=torch.tensor([[True, True, False], [False, True, False]]),
    ref_logps=per_token([-0.9, -1.0, _], [_, -1.4, _]),
    values=per_token([0.3, 0.8, _], [_, 0.5, _]),
    columns={"group": torch.tensor([7, 7])},
)
ANNOTATED = float64(1.0, -2.0)


def _ppo(
    beta: float, gamma: float, lam: float, kl: tuple = (0.4, -0.2, 0.4), whiten: bool = True
) -> dict[str, list[float]]:
    """Token by token: rewards -β · estimate plus the annotator's on the last token, δ, advantages and returns."""
    last = 1.0 - kl[1] * beta - 0.8
    first = -kl[0] * beta + gamma * 0.8 - 0.3 + gamma * lam * last
    other = -2.0 - kl[2] * beta - 0.5
    advantages = _whitened(first, last, other) if whiten else [first, last, other]
    return {"advantages": advantages, "returns": [first + 0.3, last + 0.8, other + 0.5]}


# Values on the mask, row after row.
CREDIT = [
    Row("ppo", {}, CREDITED, _ppo(0.05, 1.0, 0.95)),
    Row("ppo", {"beta": 0.2}, CREDITED, _ppo(0.2, 1.0, 0.95)),
    Row("ppo", {"beta": 0.0}, CREDITED, _ppo(0.0, 1.0, 0.95)),
    Row("ppo", {"gamma": 0.9}, CREDITED, _ppo(0.05, 0.9, 0.95)),
    Row("ppo", {"lam": 0.5}, CREDITED, _ppo(0.05, 1.0, 0.5)),
    Row("ppo", {"whiten": False}, CREDITED, _ppo(0.05, 1.0, 0.95, whiten=False)),
    Row("ppo", {"kl": "k2"}, CREDITED, _ppo(0.05, 1.0, 0.95, kl=(0.08, 0.02, 0.08))),
    Row("ppo", {"kl": "k3"}, CREDITED, _ppo(0.05, 1.0, 0.95, kl=(k3(0.4), k3(-0.2), k3(0.4)))),
    Row("ppo", {"kl": "k3", "kl_in": "loss"}, CREDITED, _ppo(0.0, 1.0, 0.95)),
    # mean -0.5, the sample's std 1.5 · sqrt(2)
    Row("grpo", {}, CREDITED, {"advantages": [sqrt(0.5), sqrt(0.5), -sqrt(0.5)]}),
    Row("grpo", {"normalize": False}, CREDITED, {"advantages": [1.5, 1.5, -1.5]}),
    # 0.96 and -2.08, mean -0.56
    Row(
        "grpo",
        {"beta": 0.2, "kl": "k1", "kl_in": "reward", "normalize": False},
        CREDITED,
        {"advantages": [1.52, 1.52, -1.52]},
    ),
    # 0.99 and -2.02, each less the other
    Row("rloo", {}, CREDITED, {"advantages": [3.01, 3.01, -3.01]}),
    Row("rloo", {"beta": 0.2}, CREDITED, {"advantages": [3.04, 3.04, -3.04]}),
    Row("rloo", {"beta": 0.0}, CREDITED, {"advantages": [3.0, 3.0, -3.0]}),
    # 1 - 0.1 β and -2 - 0.08 β
    Row("rloo", {"beta": 0.5, "kl": "k2"}, CREDITED, {"advantages": [2.99, 2.99, -2.99]}),
    Row("rloo", {"kl": "k3", "kl_in": "loss"}, CREDITED, {"advantages": [3.0, 3.0, -3.0]}),
    # 0.99 and -2.02, mean -0.515
    Row("reinforce", {}, CREDITED, {"advantages": [1.505, 1.505, -1.505]}),
    Row("reinforce", {"beta": 0.0}, CREDITED, {"advantages": [1.5, 1.5, -1.5]}),
    Row("reinforce", {"baseline": "none"}, CREDITED, {"advantages": [0.99, 0.99, -2.02]}),
    Row("reinforce", {"baseline": "none", "beta": 0.5, "kl": "k2"}, CREDITED, {"advantages": [0.95, 0.95, -2.04]}),
    Row("reinforce", {"baseline": "none", "kl": "k3", "kl_in": "loss"}, CREDITED, {"advantages": [1.0, 1.0, -2.0]}),
    Row("reinforce", {"whiten": True}, CREDITED, {"advantages": [1.0, 1.0, -1.0]}),
    Row("reinforce", {"whiten": True, "baseline": "none"}, CREDITED, {"advantages": [1.0, 1.0, -1.0]}),
]


# ------------------------------------------------------------------------------------------- scores for any method

VARIANTS = list({str(row): row for row in (*ROWS, *CREDIT)}.values())  # each method with each of its options
PADDED = ("logps", "ref_logps", "values")
ENDS = ((0, 5), (1, 4), (0, 4), (2, 3), (0, 2), (0, 5), (3, 4), (1, 4))  # each row's first token and end


def everything(
    data: str, examples: int = 4, dtype: torch.dtype = torch.float64, weight: Tensor | None = None
) -> Scores:
    """All that any method may ask of this kind of data, by a formula, NaN off the mask."""
    n = 2 * examples if data in HALVED else examples
    mask = torch.zeros(n, 5, dtype=torch.bool)
    for row in range(n):
        mask[row, slice(*ENDS[row % len(ENDS)])] = True

    def wave(k: float, *shape: int) -> Tensor:
        count = torch.Size(shape).numel()
        return float64([sin(k + 1.3 * i + 0.05 * k * i * i) for i in range(count)]).view(shape)

    def tokens(x: Tensor) -> Tensor:
        return x.masked_fill(~mask, nan).to(dtype)

    logps = -0.2 - 1.5 * wave(1, n, 5).square()
    columns = {
        "group": torch.arange(n) % examples if data in HALVED else torch.arange(n) // 2,
        "desirable": torch.arange(n) % 3 != 1,
        "prompt_logp": (-3 + wave(3, n)).to(dtype),
        "prompt_tokens": 2 + torch.arange(n) % 4,
        "old_logps": tokens(logps + 0.4 * wave(4, n, 5)),
        "advantages": tokens(1.3 * wave(5, n, 5) + 0.1),
        "returns": tokens(wave(6, n, 5)),
        "old_values": tokens(0.8 * wave(7, n, 5)),
        "entropy": tokens(0.6 + 0.5 * wave(8, n, 5)),
    }
    if data in HALVED:
        columns["margin"] = (0.3 + 0.2 * wave(2, examples)).to(dtype)
    if weight is not None:
        columns["weight"] = weight.to(dtype)
    return Scores(
        logps=tokens(logps),
        mask=mask,
        ref_logps=tokens(logps - 0.5 + 0.9 * wave(9, n, 5)),
        values=tokens(wave(10, n, 5)),
        rewards=(1.2 * wave(11, n)).to(dtype),
        columns=columns,
    )


def take(data: str, scores: Scores, examples: list[int]) -> Scores:
    """Some of the examples: rows, or the same rows of both halves."""
    n = len(scores)
    rows = examples + [n // 2 + i for i in examples] if data in HALVED else examples

    def pick(x: Tensor) -> Tensor:
        return x[rows] if len(x) == n else x[examples]

    parts = {name: pick(value) for name, value in vars(scores).items() if isinstance(value, Tensor)}
    return replace(scores, **parts, columns={name: pick(column) for name, column in scores.columns.items()})


def watched(scores: Scores) -> tuple[Scores, dict[str, Tensor]]:
    """The scores with everything that a model computes as a leaf, and those leaves."""
    leaves = {name: getattr(scores, name) for name in ("logps", "values", "rewards")}
    columns = {name: scores.columns[name] for name in ("entropy", "prompt_logp") if name in scores.columns}
    leaves = {name: x.detach().clone().requires_grad_() for name, x in (leaves | columns).items() if x is not None}
    columns = {name: leaf for name, leaf in leaves.items() if name in scores.columns}
    parts = {name: leaf for name, leaf in leaves.items() if name not in columns}
    return replace(scores, **parts, columns=scores.columns | columns), leaves


def gradients(objective: Objective, scores: Scores) -> dict[str, Tensor]:
    """The gradient of the loss with respect to everything that a model computes, zeros where it does not reach."""
    scores, leaves = watched(scores)
    found = torch.autograd.grad(objective.loss(scores), list(leaves.values()), allow_unused=True)
    return {
        name: torch.zeros_like(leaf) if gradient is None else gradient
        for (name, leaf), gradient in zip(leaves.items(), found, strict=True)
    }
