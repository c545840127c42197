"""conf/loss and conf/preset: each YAML is its class with its defaults, each preset is its peer's formula.

The peers' formulas are written out beside each preset with `math` alone, on the numbers of `objectives/hand.py` and on
three rollout tokens of their own, chosen so that every peer's clip decides something.
"""

import re
from dataclasses import fields
from itertools import pairwise
from math import exp, log, sqrt
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from omegaconf import OmegaConf

from prefopt.objectives import create, names
from prefopt.objectives.registry import get
from prefopt.records import Scores
from tests.objectives.hand import ANNOTATED, CREDITED, LABELS, PAIRS, PROMPTS, float64, pairs

CONF = Path(__file__).parents[1] / "conf"
PRESETS = sorted(path.stem for path in (CONF / "preset").glob("*.yaml"))


def read(group: str, name: str) -> dict[str, Any]:
    return dict(OmegaConf.to_container(OmegaConf.load(CONF / group / f"{name}.yaml")))


def loss_of(preset: str) -> str:
    (name,) = [name for name in names() if preset.startswith(f"{name}_")]
    return name


# ------------------------------------------------------------------------------------------- conf/loss


def test_every_method_has_its_yaml_and_every_yaml_its_method():
    assert sorted(path.stem for path in (CONF / "loss").glob("*.yaml")) == names()


@pytest.mark.parametrize("name", names())
def test_a_loss_yaml_is_its_class_with_its_defaults(name: str):
    found, cls = read("loss", name), get(name)
    assert found.pop("_target_") == f"{cls.__module__}.{cls.__qualname__}"
    defaults = {option.name: option.default for option in fields(cls)}
    assert found == defaults
    assert {key: type(value) for key, value in found.items()} == {key: type(v) for key, v in defaults.items()}
    assert cls(**found) == create(name)


@pytest.mark.parametrize("name", names())
def test_a_sentence_stands_above_every_key(name: str):
    lines = (CONF / "loss" / f"{name}.yaml").read_text().splitlines()
    assert lines[0].startswith("# ")
    for above, line in pairwise(lines):
        assert line.startswith("#") or (above.startswith("# ") and above.endswith(".")), line


# ------------------------------------------------------------------------------------------- conf/preset


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_names_its_source_and_holds_only_what_differs(preset: str):
    first, second, *_ = (CONF / "preset" / f"{preset}.yaml").read_text().splitlines()
    assert first == "# @package loss"
    assert re.match(r"# [\w-]+/[\w-]+[ ,]", second), "the source is a repository: # owner/name, file: what differs"
    name, options = loss_of(preset), read("preset", preset)
    defaults = {option.name: option.default for option in fields(get(name))}
    assert options.keys() <= defaults.keys()
    for key, value in options.items():
        assert value != defaults[key] or type(value) is not type(defaults[key]), f"{key} is our default already"
    assert create(name, **options) == create(name, **defaults | options)


# ------------------------------------------------------------------------------------------- the peers' formulas


class Peer(NamedTuple):
    scores: Scores
    value: float
    options: dict[str, Any] | None = None  # what the user sets beside the preset


def softplus(x: float) -> float:
    return log(1 + exp(x))


def logit_of_exp(mean_logp: float) -> float:
    return log(exp(mean_logp) / (1 - exp(mean_logp)))


def kto(beta: float, z: float) -> float:
    """Two desirable rows with log-ratios 0.6 and 0.3, an undesirable one with -0.5."""
    return (1 / (1 + exp(beta * (0.6 - z))) + 1 / (1 + exp(beta * (0.3 - z))) + 1 / (1 + exp(beta * (z + 0.5)))) / 3


# log-ratios to the rollout 0.6, -0.9 | 0.05; advantages 1.0, -1.2 | 0.7; log-ratios to the reference 0.3, -0.5 | 0.2
OFF = float("nan")
ROLLED = Scores(
    logps=float64([-0.5, -1.4], [-1.0, OFF]),
    mask=torch.tensor([[True, True], [True, False]]),
    ref_logps=float64([-0.8, -0.9], [-1.2, OFF]),
    values=float64([0.9, -0.3], [0.6, OFF]),
    columns={
        "old_logps": float64([-1.1, -0.5], [-1.05, OFF]),
        "advantages": float64([1.0, -1.2], [0.7, OFF]),
        "old_values": float64([0.2, -0.2], [0.65, OFF]),
        "returns": float64([1.3, 0.4], [0.2, OFF]),
    },
)
INSIDE = -0.7 * exp(0.05)  # of the last token, which no clip touches
POLICY = -1.2 * 1.0 + 0.8 * 1.2 + INSIDE  # clip 0.2
# squared errors of the values: the last two tokens are inside every clip
VALUES = 0.7**2 + 0.4**2
K3 = [exp(-0.3) - 1 + 0.3, exp(0.5) - 1 - 0.5, exp(-0.2) - 1 + 0.2]

DPO = (softplus(-0.1 * (0.6 + 0.8)) + softplus(0.1 * (0.5 + 0.4))) / 2
ODDS = [logit_of_exp(-2 / 3) - logit_of_exp(-1.6), logit_of_exp(-1.1) - logit_of_exp(-0.9)]
ORPO = (softplus(-ODDS[0]) + softplus(-ODDS[1])) / 2
SEQUENCES = ((0.5 + 1.2 + 0.3) / 3 + (1.5 + 0.7) / 2) / 2  # NLL of the chosen

PEERS = {
    # (1-ε) · -log σ(x) + ε · -log σ(-x)
    "dpo_halos": Peer(
        PAIRS,
        (0.8 * softplus(-0.14) + 0.2 * softplus(0.14) + 0.8 * softplus(0.09) + 0.2 * softplus(-0.09)) / 2,
    ),
    "dpo_handbook": Peer(PAIRS, (softplus(-0.014) + softplus(0.009)) / 2),
    "dpo_llamafactory": Peer(PAIRS, DPO + 0.2 * SEQUENCES, {"sft_weight": 0.2}),
    "dpo_nemo": Peer(PAIRS, (softplus(-0.28) + softplus(0.18)) / 2 + 0.5 * (2.0 + 2.2) / 2, {"sft_weight": 0.5}),
    "dpo_nemorl": Peer(PAIRS, (softplus(-0.07) + softplus(0.045)) / 2 + 0.5 * (2.0 + 2.2) / 2, {"sft_weight": 0.5}),
    "dpo_openrlhf": Peer(PAIRS, DPO + 0.2 * SEQUENCES, {"sft_weight": 0.2}),
    # β 5 on (S_w - Ŝ_w)/|y_w| - (S_l - Ŝ_l)/|y_l|
    "dpo_tulu": Peer(PAIRS, (softplus(-5 * (0.6 / 3 + 0.8 / 2)) + softplus(5 * (0.5 / 2 + 0.4 / 1))) / 2),
    "ipo_halos": Peer(PAIRS, ((0.6 / 3 + 0.8 / 2 - 5) ** 2 + (-0.5 / 2 - 0.4 / 1 - 5) ** 2) / 2),
    "ipo_openrlhf": Peer(PAIRS, ((0.6 + 0.8 - 5) ** 2 + (-0.5 - 0.4 - 5) ** 2) / 2),
    "ipo_original": Peer(PAIRS, ((0.6 + 0.8 - 5) ** 2 + (-0.5 - 0.4 - 5) ** 2) / 2),
    "ipo_trl": Peer(PAIRS, ((0.6 / 3 + 0.8 / 2 - 5) ** 2 + (-0.5 / 2 - 0.4 / 1 - 5) ** 2) / 2),
    # z is the mean of the mismatched log-ratios 0.9, -0.2 and 0.5
    "kto_halos": Peer(LABELS, kto(0.1, (0.9 - 0.2 + 0.5) / 3)),
    "kto_nemo": Peer(LABELS, kto(0.2, (0.9 - 0.2 + 0.5) / 3)),
    "kto_trl": Peer(LABELS, kto(0.1, (0.9 - 0.2 + 0.5) / 3)),
    "orpo_llamafactory": Peer(PAIRS, SEQUENCES + 0.1 * ORPO),
    # the chosen rows with their prompts: 2.0 + 3.0 and 2.2 + 4.5 nats over 3 + 2 and 2 + 6 tokens
    "orpo_original": Peer(pairs(**PROMPTS), (5.0 + 6.7) / (5 + 8) + 1.0 * ORPO),
    "orpo_trl": Peer(pairs(**PROMPTS), (5.0 + 6.7) / (5 + 8) + 0.1 * ORPO),
    # β (mean log-prob difference - γ/β)
    "simpo_halos": Peer(PAIRS, (softplus(-10 * (1.6 - 2 / 3 - 0.3)) + softplus(-10 * (0.9 - 1.1 - 0.3))) / 2),
    "simpo_original": Peer(PAIRS, (softplus(-2 * (1.6 - 2 / 3 - 0.25)) + softplus(-2 * (0.9 - 1.1 - 0.25))) / 2),
    "simpo_trl": Peer(
        PAIRS,
        (softplus(-0.1 * (1.6 - 2 / 3 - 5)) + softplus(-0.1 * (0.9 - 1.1 - 5))) / 2 + 1.0 * (2.0 + 2.2) / (3 + 2),
    ),
    # value error of the first token: 1.3 - 0.9 free, 1.3 - (0.2 + 0.5) or 1.3 - (0.2 + 0.2) clipped
    "ppo_halos": Peer(ROLLED, (-1.5 * 1.0 + 0.5 * 1.2 + INSIDE) / 3 + 0.01 * 0.5 * (0.4**2 + VALUES) / 3),
    "ppo_openrlhf": Peer(ROLLED, POLICY / 3 + 0.5 * (0.6**2 + VALUES) / 3),
    "ppo_trl": Peer(ROLLED, POLICY / 3 + 0.1 * 0.5 * (0.9**2 + VALUES) / 3),
    "grpo_dapo": Peer(ROLLED, (-1.28 * 1.0 + 0.8 * 1.2 + INSIDE) / 3),
    "grpo_drgrpo": Peer(ROLLED, POLICY / 2),
    "grpo_original": Peer(
        ROLLED,
        ((-1.2 * 1.0 + 0.8 * 1.2) / 2 + INSIDE) / 2 + 0.04 * ((K3[0] + K3[1]) / 2 + K3[2]) / 2,
    ),
    "grpo_trl": Peer(ROLLED, POLICY / 3),
    # of the answers: ratios e^-0.3, clipped to 0.8, and e^0.05; advantages (1.0 - 1.2) / 2 and 0.7
    "rloo_trl": Peer(ROLLED, (0.1 * 0.8 + INSIDE) / 2),
}


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_its_peers_formula(preset: str):
    assert preset in PEERS, "a preset without its peer's formula"
    peer = PEERS[preset]
    found = create(loss_of(preset), **read("preset", preset), **(peer.options or {})).loss(peer.scores)
    assert found.item() == pytest.approx(peer.value, rel=1e-12, abs=0)


def test_every_formula_has_its_preset():
    assert sorted(PEERS) == PRESETS


# ------------------------------------------------------------------------------------------- the peers' credit
#
# An answer of two tokens with values 0.3, 0.8, k1 0.4, -0.2 and a reward of 1.0; one of one token with 0.5, 0.4, -2.0.


def discounted(beta: float, gamma: float, lam: float) -> list[float]:
    """Returns A + V."""
    last = (1.0 + 0.2 * beta) - 0.8
    first = (-0.4 * beta) + gamma * 0.8 - 0.3 + gamma * lam * last
    return [first + 0.3, last + 0.8, -2.0 - 0.4 * beta]


RETURNS = {
    "ppo_halos": discounted(0.0, 0.99, 0.95),
    # λ = γ = 1: the reward to go
    "ppo_openrlhf": [1.0 + 0.2 * 0.01 - 0.4 * 0.01, 1.0 + 0.2 * 0.01, -2.0 - 0.4 * 0.01],
    "ppo_trl": discounted(0.05, 1.0, 0.95),
}
ADVANTAGES = {
    "grpo_dapo": 1.5 / (1.5 * sqrt(2)),
    "grpo_drgrpo": 1.5,
    "grpo_original": 1.5 / (1.5 * sqrt(2)),
    "grpo_trl": 1.5 / (1.5 * sqrt(2) + 1e-4),  # to the 1e-4 that it adds
    "rloo_trl": (1.0 - 0.05 * 0.2) - (-2.0 - 0.05 * 0.4),
}


@pytest.mark.parametrize("preset", [name for name in PRESETS if get(loss_of(name)).needs.data == "rollouts"])
def test_a_preset_is_its_peers_credit(preset: str):
    objective = create(loss_of(preset), **read("preset", preset))
    columns = objective.credit(CREDITED, ANNOTATED)
    if preset in RETURNS:
        assert columns["returns"][CREDITED.mask].tolist() == pytest.approx(RETURNS[preset], rel=1e-12)
    else:
        a = ADVANTAGES[preset]
        assert columns["advantages"][CREDITED.mask].tolist() == pytest.approx([a, a, -a], rel=1e-4)
