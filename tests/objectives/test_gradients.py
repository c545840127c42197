"""Gradients: closed forms, finite differences, the edge of ORPO's odds, and a step that must lower the exact KL."""

from dataclasses import replace
from itertools import product
from math import exp, log

import mpmath
import pytest
import torch
from torch import Tensor

from prefopt.objectives import create
from prefopt.objectives.base import means, total
from prefopt.objectives.orpo import CERTAIN, log1mexp, log_odds_ratio
from prefopt.objectives.surrogate import kl_estimate
from prefopt.records import Scores, units
from tests.objectives.hand import (
    DEMONSTRATIONS,
    LABELS,
    LO,
    PAIRS,
    ROLLOUTS,
    VARIANTS,
    WEIGHTED,
    Row,
    everything,
    float64,
    gradients,
    labels,
    pairs,
    sigmoid,
    watched,
)


def on_every_token(scores: Scores, per_row: list[float]) -> Tensor:
    """[N, T] each row's number on its own tokens, exactly 0 elsewhere."""
    return torch.tensor(per_row, dtype=torch.float64)[:, None] * scores.mask


def check(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-16)
    assert torch.equal(found == 0, expected == 0)


# ------------------------------------------------------------------------------------------- closed forms


@pytest.mark.parametrize(
    ("options", "scores", "factors"),
    [
        # ∂/∂ log π(y_w) = -β σ(-βΔ) / B, the opposite for the rejected; Δ = 1.4, -0.9
        ({"beta": 0.3}, PAIRS, [0.3 * sigmoid(-0.42) / 2, 0.3 * sigmoid(0.27) / 2]),
        ({"beta": 0.3}, WEIGHTED, [0.5 * 0.3 * sigmoid(-0.42) / 2.5, 2 * 0.3 * sigmoid(0.27) / 2.5]),
        # cDPO: (1-ε) σ(-βΔ) - ε σ(βΔ)
        (
            {"beta": 0.3, "label_smoothing": 0.2},
            PAIRS,
            [
                0.3 * (0.8 * sigmoid(-0.42) - 0.2 * sigmoid(0.42)) / 2,
                0.3 * (0.8 * sigmoid(0.27) - 0.2 * sigmoid(-0.27)) / 2,
            ],
        ),
        # robust: ((1-ε) σ(-βΔ) + ε σ(βΔ)) / (1-2ε)
        (
            {"beta": 0.3, "label_smoothing": 0.2, "robust": True},
            PAIRS,
            [
                0.3 * (0.8 * sigmoid(-0.42) + 0.2 * sigmoid(0.42)) / 0.6 / 2,
                0.3 * (0.8 * sigmoid(0.27) + 0.2 * sigmoid(-0.27)) / 0.6 / 2,
            ],
        ),
    ],
)
def test_dpo(options: dict, scores: Scores, factors: list[float]):
    found = gradients(create("dpo", **options), scores)["logps"]
    check(found, on_every_token(scores, [-factors[0], -factors[1], factors[0], factors[1]]))


def test_dpo_averaged():
    # Δ = 0.6, -0.65; each row's share is divided by its length 3, 2, 2, 1
    a, b = 2.0 * sigmoid(-1.2) / 2, 2.0 * sigmoid(1.3) / 2
    found = gradients(create("dpo", beta=2.0, average=True), PAIRS)["logps"]
    check(found, on_every_token(PAIRS, [-a / 3, -b / 2, a / 2, b / 1]))


def test_ipo():
    # 2 (Δ - 1/2β) / B; Δ = 1.4, -0.9 summed and 0.6, -0.65 averaged; 1/2β = 1.25
    a, b = 2 * (1.4 - 1.25) / 2, 2 * (-0.9 - 1.25) / 2
    found = gradients(create("ipo", beta=0.4, average=False), PAIRS)["logps"]
    check(found, on_every_token(PAIRS, [a, b, -a, -b]))
    a, b = 2 * (0.6 - 1.25) / 2, 2 * (-0.65 - 1.25) / 2
    found = gradients(create("ipo", beta=0.4), PAIRS)["logps"]
    check(found, on_every_token(PAIRS, [a / 3, b / 2, -a / 2, -b / 1]))


@pytest.mark.parametrize(("scores", "z"), [(LABELS, 0.4), (labels(below=True), 0.0)])
def test_kto_and_that_z_carries_no_gradient(scores: Scores, z: float):
    # -λ β σ(x) σ(-x) / B for a desirable row, x = β (ρ - z); + for an undesirable one
    def slope(x: float) -> float:
        return 0.5 * sigmoid(x) * sigmoid(-x) / 3

    expected = [-1.1 * slope(0.5 * (0.6 - z)), 0.7 * slope(0.5 * (-0.5 - z)), -1.1 * slope(0.5 * (0.3 - z)), 0, 0, 0]
    found = gradients(create("kto", beta=0.5, desirable_weight=1.1, undesirable_weight=0.7), scores)["logps"]
    check(found, on_every_token(scores, expected))


def test_kto_statistics_are_detached_and_clamped_only_after_the_mean():
    scores, _ = watched(labels(below=True))
    found = create("kto").statistics(scores)
    summed, count = found["z"]
    assert list(found) == ["z"]
    assert summed.item() == pytest.approx(-1.2, rel=1e-12)
    assert count == 3
    assert not summed.requires_grad
    assert not count.requires_grad


def test_simpo():
    # -β σ(-(βm - γ)) / (B |y|); m = 14/15, -0.2
    a, b = 2 * sigmoid(-(2 * 14 / 15 - 0.5)) / 2, 2 * sigmoid(2 * 0.2 + 0.5) / 2
    found = gradients(create("simpo"), PAIRS)["logps"]
    check(found, on_every_token(PAIRS, [-a / 3, -b / 2, a / 2, b / 1]))


def test_bradley_terry():
    # -σ(-(r_w - r_l - m)) / B + 2 c (r_w + r_l) / B, the first part the opposite for the rejected
    scores = pairs(margin=float64(0.25, 0.6))
    a, b = sigmoid(-0.75) / 2, sigmoid(1.9) / 2
    found = gradients(create("bradley_terry", centering=0.3), scores)
    pull = [0.3 * 0.4, 0.3 * 0.5]
    check(found["rewards"], float64(pull[0] - a, pull[1] - b, pull[0] + a, pull[1] + b))
    assert not found["logps"].any()


def test_orpo():
    # d log odds(p) / d mean log p = 1 / (1 - p); NLL -1 / Σ tokens on the chosen
    def factor(lo: float, mean: float, length: int) -> float:
        return 0.7 * sigmoid(-lo) / (1 - exp(mean)) / length / 2

    expected = [
        -1 / 5 - factor(LO[0], -2 / 3, 3),
        -1 / 5 - factor(LO[1], -1.1, 2),
        factor(LO[0], -1.6, 2),
        factor(LO[1], -0.9, 1),
    ]
    check(gradients(create("orpo", beta=0.7), PAIRS)["logps"], on_every_token(PAIRS, expected))


def test_sft():
    for reduction, per_row in (
        ("tokens", [-1 / 7] * 3),
        ("sequences", [-1 / 9, -1 / 6, -1 / 6]),
        ("sum", [-1 / 3] * 3),
    ):
        found = gradients(create("sft", reduction=reduction), DEMONSTRATIONS)["logps"]
        check(found, on_every_token(DEMONSTRATIONS, per_row))


# tokens of `ROLLOUTS`: -A ρ where the ratio counts, 0 where it is clipped
SURROGATE_SLOPES = [[0, 0.7 * exp(-0.1), -0.4 * exp(-0.05), 0], [0, 0, 0.8 * exp(0.6), 0], [-0.9 * exp(-0.5), 0, 0, 0]]


@pytest.mark.parametrize("kl", ["k2", "k3"])
def test_grpo(kl: str):
    d = [[0.4, -0.2, 0.4, 0], [0, 0.4, -1.2, 0], [0.25, 0, 0, 0]]
    slopes = [[x if kl == "k2" else 1 - exp(-x) for x in row] for row in d]
    expected = (float64(*SURROGATE_SLOPES) + 0.5 * float64(*slopes)) / 6
    check(gradients(create("grpo", beta=0.5, kl=kl), ROLLOUTS)["logps"], expected)


def test_a_bad_action_that_became_likely_stops_costing_with_a_dual_clip():
    # at c = 1.5 the token with ratio e^0.6 costs 0.8 · 1.5 whatever its ratio
    slopes = float64(*SURROGATE_SLOPES)
    slopes[1, 2] = 0
    check(gradients(create("ppo", dual_clip=1.5), ROLLOUTS)["logps"], slopes / 6)
    check(gradients(create("ppo", dual_clip=1.9), ROLLOUTS)["logps"], float64(*SURROGATE_SLOPES) / 6)


@pytest.mark.parametrize("name", ["rloo", "reinforce"])
def test_a_whole_answer(name: str):
    # -A ρ on each of the answer's tokens; at clip 0.2 the first, whose ratio is e^0.25, is stopped
    slopes = [-0.4 * exp(0.25), 1.4 * exp(0.2), -0.9 * exp(-0.5)]
    check(gradients(create(name), ROLLOUTS)["logps"], on_every_token(ROLLOUTS, slopes) / 3)
    check(gradients(create(name, clip=0.2), ROLLOUTS)["logps"], on_every_token(ROLLOUTS, [0, *slopes[1:]]) / 3)


def test_ppo():
    # values: V - R, but 0 where the clipped error is the larger: the first value of the second row
    errors = [[0.3 - 1.0, 1.0 - 0.2, -0.4 - 0.1, 0], [0, 0, -0.2 - 0.5, 0], [0.8 - 0.3, 0, 0, 0]]
    found = gradients(create("ppo", value_coef=0.4, entropy_coef=0.02), ROLLOUTS)
    check(found["logps"], float64(*SURROGATE_SLOPES) / 6)
    check(found["values"], 0.4 * float64(*errors) / 6)
    check(found["entropy"], on_every_token(ROLLOUTS, [-0.02 / 6] * 3))


# ------------------------------------------------------------------------------------------- finite differences


@pytest.mark.parametrize("row", VARIANTS, ids=str)
def test_gradcheck(row: Row):
    """Every method and option, with z and the counts of the step held, as the module holds them."""
    objective = row.create()
    scores = everything(objective.needs.data, examples=2, weight=torch.tensor([0.5, 2.0]))
    statistics = means(objective.statistics(scores))
    counts = units(objective.needs.data, scores.lengths, scores.columns)
    reached = [name for name, gradient in gradients(objective, scores).items() if gradient.any()]
    scores, leaves = watched(scores.zeroed())
    leaves = {name: leaf for name, leaf in leaves.items() if name in reached}

    def loss(*values: Tensor) -> Tensor:
        given = dict(zip(leaves, values, strict=True))
        columns = scores.columns | {name: x for name, x in given.items() if name in scores.columns}
        parts = {name: x for name, x in given.items() if name not in scores.columns}
        return total(objective.all_terms(replace(scores, **parts, columns=columns), statistics), counts)

    assert torch.autograd.gradcheck(loss, tuple(leaves.values()))


@pytest.mark.parametrize("row", VARIANTS, ids=str)
def test_nothing_off_the_mask_is_read_not_even_by_the_gradient(row: Row):
    objective = row.create()
    scores = everything(objective.needs.data)
    zeroed = scores.zeroed()
    assert scores.logps.isnan().any()
    assert not zeroed.logps.isnan().any()
    assert torch.equal(objective.loss(scores), objective.loss(zeroed))
    found, expected = gradients(objective, scores), gradients(objective, zeroed)
    for name, gradient in found.items():
        assert torch.equal(gradient, expected[name])
        if gradient.dim() == 2:
            assert not gradient[~scores.mask].any()
    assert any(gradient.any() for gradient in found.values())


# ------------------------------------------------------------------------------------------- the edge of the odds

EDGES = [0.0, -1e-12, -1e-9, -1e-4, -1.0, -50.0]


def exact_log_odds(mean_logp: float) -> mpmath.mpf:
    x = mpmath.mpf(mean_logp)
    return x - mpmath.log(-mpmath.expm1(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rejected", EDGES)
@pytest.mark.parametrize("chosen", EDGES)
def test_orpo_of_a_certain_policy(chosen: float, rejected: float, dtype: torch.dtype):
    mpmath.mp.dps = 50
    logps = torch.tensor([[chosen] * 2, [rejected] * 2], dtype=dtype)
    scores = Scores(logps=logps, mask=torch.ones(2, 2))
    objective = create("orpo", beta=1.0)
    loss, gradient = objective.loss(scores), gradients(objective, scores)["logps"]
    assert loss.dtype == dtype
    assert loss.isfinite()
    assert gradient.isfinite().all()
    assert gradient[0, 0] < -0.49, "the likelihood of the chosen lost its gradient"
    if not chosen or not rejected:
        return
    chosen, rejected = logps[:, 0].tolist()  # as rounded to the dtype
    lo = exact_log_odds(chosen) - exact_log_odds(rejected)
    wrong = 1 / (1 + mpmath.exp(lo))
    assert loss.item() == pytest.approx(float(-mpmath.mpf(chosen) + mpmath.log1p(mpmath.exp(-lo))), rel=1e-5)
    assert gradient[0, 0].item() == pytest.approx(float((-1 + wrong / mpmath.expm1(chosen)) / 2), rel=1e-5)
    assert gradient[1, 0].item() == pytest.approx(float(-wrong / mpmath.expm1(rejected) / 2), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log1mexp_against_mpmath(dtype: torch.dtype):
    mpmath.mp.dps = 50
    x = torch.tensor([-1e-30, -1e-12, -1e-4, -0.3, -log(2), -0.7, -1.0, -20.0, -50.0, -200.0], dtype=dtype)
    exact = [float(mpmath.log(-mpmath.expm1(mpmath.mpf(value)))) for value in x.tolist()]
    assert log1mexp(x).tolist() == pytest.approx(exact, rel=4 * torch.finfo(dtype).eps, abs=1e-42)


def test_log_odds_are_held_beyond_the_edge():
    at, beyond = (log_odds_ratio(float64(x), float64(-1.0)) for x in (CERTAIN, 0.0))
    assert torch.equal(at, beyond)
    assert 60 < at < 70
    x = float64(0.0).requires_grad_()
    log_odds_ratio(x, float64(-1.0)).sum().backward()
    assert not x.grad.any()


# ------------------------------------------------------------------------------------------- KL in the loss

REFERENCE = float64(0.4, -0.3, 0.9, -1.2, 0.1).log_softmax(0)
PERTURBED = float64(-0.5, 0.6, 0.2, -0.1, 0.8)


def all_samples(logits: Tensor) -> Scores:
    """One row per token of the vocabulary, weighted by its probability, so that a mean over rows is the expectation."""
    logps = logits.log_softmax(0)
    scores = Scores(logps=logps[:, None], mask=torch.ones(5, 1), ref_logps=REFERENCE[:, None])
    return replace(scores, columns={"weight": logps.detach().exp()})


def kl_of_all_samples(logits: Tensor, estimator: str, name: str = "grpo") -> Tensor:
    """The KL in the loss, in expectation."""
    scores = all_samples(logits)
    columns = {"old_logps": scores.logps.detach(), "advantages": torch.zeros(5, 1, dtype=torch.float64)}
    objective = create(name, beta=1.0, kl=estimator, kl_in="loss")
    return objective.loss(replace(scores, columns=scores.columns | columns))


def reward_of_all_samples(logits: Tensor, estimator: str) -> Tensor:
    """The surrogate of answers that nothing but the KL in the reward is held against, in expectation."""
    scores, nothing = all_samples(logits), torch.zeros(5, dtype=torch.float64)
    objective = create("reinforce", beta=1.0, kl=estimator, kl_in="reward", baseline="none")
    return objective.loss(replace(scores, columns=scores.columns | objective.credit(scores.detach(), nothing)))


def exact_kl(logits: Tensor) -> Tensor:
    logps = logits.log_softmax(0)
    return (logps.exp() * (logps - REFERENCE)).sum()


@pytest.mark.parametrize("name", ["grpo", "rloo", "reinforce"])
@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_a_step_on_the_kl_term_alone_lowers_the_exact_kl(estimator: str, name: str):
    logits = PERTURBED.clone().requires_grad_()
    step = torch.optim.SGD([logits], lr=0.5)
    before = exact_kl(logits).item()
    kl_of_all_samples(logits, estimator, name).backward()
    step.step()
    assert 0 < exact_kl(logits).item() < 0.9 * before


def test_which_kl_each_estimator_descends():
    logits = PERTURBED.clone().requires_grad_()
    logps = logits.log_softmax(0)

    def gradient(loss: Tensor) -> Tensor:
        return torch.autograd.grad(loss, logits, retain_graph=True)[0]

    # k2: KL(π ‖ π_ref). k3: KL(π_ref ‖ π). k1: nothing, the reason why it is refused.
    check(gradient(kl_of_all_samples(logits, "k2")), gradient(exact_kl(logits)))
    check(gradient(kl_of_all_samples(logits, "k3")), gradient((REFERENCE.exp() * (REFERENCE - logps)).sum()))
    k1 = gradient((logps.detach().exp() * kl_estimate(logps, REFERENCE, "k1")).sum())
    torch.testing.assert_close(k1, torch.zeros_like(k1), rtol=0, atol=1e-15)


def test_which_estimators_in_the_reward_have_the_gradient_of_the_kl():
    def gradient(value: Tensor, logits: Tensor) -> Tensor:
        return torch.autograd.grad(value, logits)[0]

    logits = PERTURBED.clone().requires_grad_()
    exact = gradient(exact_kl(logits), logits)
    check(gradient(reward_of_all_samples(logits, "k1"), logits), exact)
    # a thousandth of the way from the reference k1 pulls as the KL does, the others a thousandth as much
    logits = (REFERENCE + 1e-3 * (PERTURBED - REFERENCE)).requires_grad_()
    exact = gradient(exact_kl(logits), logits)
    found = gradient(reward_of_all_samples(logits, "k1"), logits)
    torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-15)
    for estimator in ("k2", "k3"):
        assert gradient(reward_of_all_samples(logits, estimator), logits).norm() < 3e-3 * exact.norm()


def test_k1_and_k3_are_unbiased():
    logps = PERTURBED.log_softmax(0)
    for estimator in ("k1", "k3"):
        expected = (logps.exp() * kl_estimate(logps, REFERENCE, estimator)).sum()
        torch.testing.assert_close(expected, exact_kl(PERTURBED), rtol=1e-12, atol=0)
    assert (kl_estimate(logps, REFERENCE, "k3") > 0).all()


def test_the_kl_moves_with_the_reference():
    moved = ROLLOUTS.ref_logps + 0.1
    for name, kl in product(("ppo", "grpo", "rloo", "reinforce"), ("k2", "k3")):
        objective = create(name, beta=0.5, kl=kl, kl_in="loss")
        assert objective.loss(replace(ROLLOUTS, ref_logps=moved)) != objective.loss(ROLLOUTS)
