"""What holds whatever the numbers are: special cases, limits, and what a batch may do without changing the loss."""

from dataclasses import FrozenInstanceError, fields, replace
from math import exp, log

import pytest
import torch
from torch import Tensor

from prefopt.objectives import Objective, create, names
from prefopt.objectives.ipo import ipo_loss
from prefopt.objectives.registry import get
from prefopt.records import HALVED, Scores
from tests.objectives.hand import NLL, PADDED, VARIANTS, Row, everything, float64, gradients, nls, take

LOG2 = log(2)
OFFLINE = [name for name in names() if get(name).needs.data in ("demonstrations", "pairs", "labels")]
PAIRS = [name for name in names() if get(name).needs.data == "pairs"]
ODDS = [(name, {}, name in ("dpo", "bradley_terry")) for name in PAIRS] + [("dpo", {"label_smoothing": 0.1}, False)]


def close(a: Tensor, b: Tensor | float) -> None:
    torch.testing.assert_close(a, torch.as_tensor(b, dtype=a.dtype), rtol=1e-12, atol=1e-15)


def same(objective: Objective, scores: Scores, other: Objective, other_scores: Scores | None = None) -> None:
    """Equal loss and equal gradient."""
    other_scores = scores if other_scores is None else other_scores
    close(objective.loss(scores), other.loss(other_scores))
    ours, theirs = gradients(objective, scores), gradients(other, other_scores)
    for name, gradient in ours.items():
        rows = slice(len(theirs[name]))
        close(gradient[rows], theirs[name])
        assert not gradient[len(theirs[name]) :].any()


def at_reference(data: str) -> Scores:
    scores = everything(data)
    return replace(scores, ref_logps=scores.logps.clone())


def alike(scores: Scores) -> Scores:
    """Pairs whose rejected answers are their chosen ones."""
    chosen, _ = scores.halves()
    parts = {name: torch.cat((value, value)) for name, value in vars(chosen).items() if isinstance(value, Tensor)}
    return replace(scores, **parts)


@pytest.mark.parametrize(("name", "options", "expected"), ODDS)
def test_rewards_that_are_log_odds_say_so(name, options, expected):
    """The loss is -log σ of the reward difference on every batch, which only a log-odds can be fitted by."""
    objective, scores = create(name, **options), everything(get(name).needs.data)
    scores.columns.pop("target", None)
    scores.columns.pop("margin", None)
    first, second = objective.reward(scores).chunk(2)
    odds = -torch.nn.functional.logsigmoid(first - second)
    weight = scores.weight[: len(odds)]
    fits = torch.isclose(objective.loss(scores), (weight * odds).sum() / weight.sum())
    assert objective.reward_is_log_odds == expected == bool(fits)


# ------------------------------------------------------------------------------------------- policy = reference


@pytest.mark.parametrize(
    ("name", "options", "value"),
    [
        ("dpo", {}, LOG2),
        ("dpo", {"beta": 2.0, "average": True}, LOG2),
        ("dpo", {"label_smoothing": 0.3}, LOG2),
        ("dpo", {"label_smoothing": 0.3, "robust": True}, LOG2),
        ("ipo", {}, 25.0),
        ("ipo", {"average": False}, 25.0),
        ("ipo", {"beta": 0.25}, 4.0),
        ("kto", {}, 0.5),
        ("kto", {"beta": 0.4, "desirable_weight": 1.3, "undesirable_weight": 1.3}, 0.65),
        # `everything` labels its rows True, False, True, True
        ("kto", {"desirable_weight": 1.2, "undesirable_weight": 0.8}, (3 * 0.6 + 0.4) / 4),
    ],
)
def test_value_at_the_reference(name: str, options: dict, value: float):
    objective = create(name, **options)
    scores = at_reference(objective.needs.data)
    close(objective.loss(scores), value)
    assert gradients(objective, scores)["logps"].isfinite().all()
    # A tie everywhere: nobody is ahead, which an accuracy must count as one half.
    assert not objective.reward(scores).any()


def test_no_kl_at_the_reference():
    scores = at_reference("rollouts")
    for kl in ("k2", "k3"):
        same(create("grpo", beta=0.7, kl=kl), scores, create("grpo", beta=0))


@pytest.mark.parametrize("name", ["dpo", "bradley_terry", "simpo", "orpo"])
def test_a_pair_of_the_same_answer(name: str):
    scores = alike(everything("pairs"))
    scores.columns["margin"] = torch.zeros(4)
    plain = {"dpo": LOG2, "bradley_terry": LOG2, "simpo": nls(-0.5), "orpo": 0.1 * LOG2}[name]
    if name == "orpo":
        plain += create("sft").loss(take("demonstrations", scores, [0, 1, 2, 3]))
    objective = create(name)
    close(objective.loss(scores), plain)
    rewards = objective.reward(scores)
    assert torch.equal(rewards[:4], rewards[4:])
    gradient = gradients(objective, scores)["rewards" if name == "bradley_terry" else "logps"]
    if name != "orpo":
        close(gradient[:4], -gradient[4:])
        assert (gradient[:4][scores.mask[:4] if gradient.dim() == 2 else slice(None)] < 0).all()


# ------------------------------------------------------------------------------------------- special cases


@pytest.mark.parametrize("options", [{}, {"beta": 0.7}, {"beta": 3.0, "average": True}])
def test_without_smoothing_all_three_forms_of_dpo_are_one(options: dict):
    scores = everything("pairs")
    same(create("dpo", label_smoothing=0.0, **options), scores, create("dpo", **options))
    same(create("dpo", label_smoothing=0.0, robust=True, **options), scores, create("dpo", **options))


def test_cdpo_is_best_where_the_model_believes_in_the_smoothing():
    # σ(βΔ) = 1 - ε at Δ = log((1-ε)/ε) / β
    beta, epsilon = 0.3, 0.1
    gap = log((1 - epsilon) / epsilon) / beta
    logps = torch.tensor([[-1.0], [-1.0 - gap]], dtype=torch.float64)
    scores = Scores(logps=logps, mask=torch.ones(2, 1), ref_logps=torch.full_like(logps, -1.0))
    smoothed = gradients(create("dpo", beta=beta, label_smoothing=epsilon), scores)["logps"]
    torch.testing.assert_close(smoothed, torch.zeros_like(logps), rtol=0, atol=1e-15)
    assert gradients(create("dpo", beta=beta), scores)["logps"][0] < -0.02


@pytest.mark.parametrize("beta", [0.05, 0.4])
def test_ipo_is_best_at_its_target(beta: float):
    target = torch.tensor(1 / (2 * beta), dtype=torch.float64)
    assert ipo_loss(target, beta) == 0 < min(ipo_loss(target - 1e-3, beta), ipo_loss(target + 1e-3, beta))
    logps = torch.tensor([[-1.0], [-1.0 - 1 / (2 * beta)]], dtype=torch.float64)
    scores = Scores(logps=logps, mask=torch.ones(2, 1), ref_logps=torch.full_like(logps, -1.0))
    for average in (True, False):
        objective = create("ipo", beta=beta, average=average)
        assert objective.loss(scores) == 0
        assert not gradients(objective, scores)["logps"].any()


@pytest.mark.parametrize("scope", ["completion", "text"])
@pytest.mark.parametrize("reduction", ["tokens", "sequences", "sum"])
def test_orpo_without_odds_is_sft_on_the_chosen(scope: str, reduction: str):
    scores = everything("pairs", weight=torch.tensor([0.5, 2.0, 1.25, 1.0]))
    chosen = take("demonstrations", scores, [0, 1, 2, 3])
    orpo = create("orpo", beta=0.0, nll_scope=scope, nll_reduction=reduction)
    same(orpo, scores, create("sft", nll_scope=scope, reduction=reduction), chosen)


def test_dpo_is_bradley_terry_on_its_implicit_rewards():
    scores = everything("pairs")
    scores.columns.pop("margin")
    dpo = create("dpo", beta=0.7)
    close(dpo.loss(scores), create("bradley_terry").loss(replace(scores, rewards=dpo.reward(scores))))


def test_simpo_without_a_target_is_averaged_dpo_against_a_uniform_reference():
    scores = everything("pairs")
    uniform = replace(scores, ref_logps=torch.full_like(scores.logps, -log(50)))
    same(create("simpo", beta=1.5, gamma=0.0), scores, create("dpo", beta=1.5, average=True), uniform)


def test_dpo_and_kto_see_log_ratios_only():
    for name in ("dpo", "ipo", "kto"):
        objective = create(name)
        scores = everything(objective.needs.data)
        moved = replace(scores, logps=scores.logps - 0.7, ref_logps=scores.ref_logps - 0.7)
        close(objective.loss(moved), objective.loss(scores))


def test_a_constant_added_to_all_rewards_is_seen_by_centering_alone():
    scores = everything("pairs")
    moved = replace(scores, rewards=scores.rewards + 0.9)
    close(create("bradley_terry").loss(moved), create("bradley_terry").loss(scores))
    centred = create("bradley_terry", centering=0.1)
    before, after = (rewards.view(2, 4).sum(0).square().mean() for rewards in (scores.rewards, moved.rewards))
    close(centred.loss(moved) - centred.loss(scores), 0.1 * (after - before).item())


def test_grpo_on_its_own_samples_has_the_gradient_of_reinforce():
    scores = everything("rollouts")
    scores.columns["old_logps"] = scores.logps.clone()
    mask, advantages = scores.mask, scores.columns["advantages"]
    expected = (-advantages / mask.sum()).where(mask, 0)
    close(gradients(create("grpo", beta=0.0), scores)["logps"], expected)
    per_row = (-advantages / (mask.sum(1, keepdim=True) * len(mask))).where(mask, 0)
    close(gradients(create("grpo", beta=0.0, average="sequences"), scores)["logps"], per_row)


@pytest.mark.parametrize("options", [{}, {"clip": 0.2}], ids=str)
@pytest.mark.parametrize("name", ["rloo", "reinforce"])
def test_a_whole_answer_on_its_own_samples_has_the_policy_gradient(name: str, options: dict):
    # -A ∇ log π(y) / rows, and ∂ log π(y) / ∂ log π(y_t) = 1
    scores = everything("rollouts")
    scores.columns["old_logps"] = scores.logps.clone()
    advantages = float64(0.7, -1.1, 0.4, -0.3)
    scores.columns["advantages"] = advantages[:, None].expand(4, 5)
    close(gradients(create(name, **options), scores)["logps"], -advantages[:, None] * scores.mask / 4)


def test_rloo_on_its_own_samples_is_grpo_with_sums_of_centred_rewards():
    scores = everything("rollouts")  # groups of two: 2 / (2 - 1) times the centred reward
    rloo = create("rloo", beta=0.3)
    grpo = create("grpo", beta=0.3, kl="k1", kl_in="reward", normalize=False, average="sums")
    ours, theirs = (
        gradients(objective, replace(scores, columns=scores.columns | objective.credit(scores, scores.rewards)))
        for objective in (rloo, grpo)
    )
    close(ours["logps"], 2 * theirs["logps"])


def test_reinforce_on_one_group_is_rloo_scaled():
    scores = everything("rollouts")
    scores.columns["group"] = torch.zeros(4, dtype=torch.long)
    reinforce, rloo = (create(name, beta=0.3).credit(scores, scores.rewards) for name in ("reinforce", "rloo"))
    close(4 / 3 * reinforce["advantages"], rloo["advantages"])


def test_off_policy_the_ratio_of_an_answer_is_exact_and_that_of_a_token_is_not():
    """Answers of two tokens of a vocabulary of three, each with the probability under which the old policy drew it."""
    first = float64(0.3, -0.8, 0.5).requires_grad_()
    second = float64([0.2, -0.4, 0.9], [-0.7, 0.1, 0.6], [1.0, 0.3, -0.5]).requires_grad_()
    old = float64(0.9, 0.2, -0.4).log_softmax(0), float64([0.5, 0.1, -0.2], [0.3, 0.8, -0.6], [0.0, -0.9, 0.4])
    old = old[0], old[1].log_softmax(1)
    credit = float64(1.0, -0.5, 0.3, 0.8, -1.2, 0.4, -0.7, 0.6, 0.1)  # of each of the nine answers

    def logps(one: Tensor, two: Tensor) -> Tensor:
        return torch.stack((one[:, None].expand(3, 3), two), 2).view(9, 2)

    now = logps(first.log_softmax(0), second.log_softmax(1))
    columns = {"old_logps": logps(*old), "advantages": credit[:, None].expand(9, 2), "weight": logps(*old).sum(1).exp()}
    scores = Scores(logps=now, mask=torch.ones(9, 2), columns=columns)

    def gradient(loss: Tensor) -> Tensor:
        return torch.cat([x.flatten() for x in torch.autograd.grad(loss, (first, second), retain_graph=True)])

    exact = gradient(-(now.sum(1).exp() * credit).sum())
    close(gradient(create("rloo", beta=0.0).loss(scores)), exact)
    per_token = gradient(create("grpo", beta=0.0, clip=9.0, average="sums").loss(scores))
    assert (per_token - exact).norm() > 0.1 * exact.norm()


def test_in_a_mean_of_sums_an_answer_does_not_feel_how_long_the_others_are():
    scores = everything("rollouts")
    for average, same_in_both in (("sums", True), ("sequences", True), ("tokens", False)):
        objective = create("grpo", average=average)
        longer, shorter = (
            gradients(objective, take("rollouts", scores, rows))["logps"][0] for rows in ([1, 0], [1, 3])
        )
        assert torch.allclose(longer, shorter, rtol=1e-12) == same_in_both


def test_ppo_on_its_own_samples():
    scores = everything("rollouts")
    scores.columns["old_logps"] = scores.logps.clone()
    scores.columns["old_values"] = scores.values.clone()
    ppo, mask = create("ppo"), scores.mask
    advantages, errors = scores.columns["advantages"], scores.values - scores.columns["returns"]
    expected = -advantages[mask].mean() + 0.1 * errors[mask].square().mean() / 2
    close(ppo.loss(scores), expected.item())
    assert not ppo.diagnostics(scores)["clip_fraction"].any()
    found = gradients(ppo, scores)
    close(found["logps"], (-advantages / mask.sum()).where(mask, 0))
    close(found["values"], (0.1 * errors / mask.sum()).where(mask, 0))


def test_ppo_without_a_critic_is_grpo_without_a_kl():
    scores = everything("rollouts")
    same(create("ppo", value_coef=0.0, clip=0.15), scores, create("grpo", beta=0.0, clip=0.15))


def test_a_clipped_ratio_has_no_gradient_where_clipping_is_the_worse_deal_only():
    # ratios e^0.5 and e^-0.5 with advantages of both signs; only moving further the good way is stopped
    old = torch.full((1, 4), -1.0, dtype=torch.float64)
    logps = old + torch.tensor([[0.5, 0.5, -0.5, -0.5]], dtype=torch.float64)
    columns = {"old_logps": old, "advantages": torch.tensor([[1.0, -1.0, 1.0, -1.0]], dtype=torch.float64)}
    scores = Scores(logps=logps, mask=torch.ones(1, 4), columns=columns)
    expected = torch.tensor([[0.0, exp(0.5), -exp(-0.5), 0.0]], dtype=torch.float64) / 4
    close(gradients(create("grpo", beta=0.0), scores)["logps"], expected)


def test_all_averages_of_grpo_agree_on_answers_of_one_length():
    scores = everything("rollouts")
    scores = replace(scores, mask=torch.tensor([[False, True, True, False, False]]).expand(4, 5))
    for x in (scores.logps, scores.ref_logps, scores.columns["old_logps"], scores.columns["advantages"]):
        x.nan_to_num_(nan=-0.4)
    same(create("grpo"), scores, create("grpo", average="sequences"))
    close(create("grpo", average="sums").loss(scores), 2 * create("grpo").loss(scores))


# ------------------------------------------------------------------------------------------- length


@pytest.mark.parametrize(
    ("longer", "plain"),
    [
        # twice the tokens: twice the log-ratio, the same mean
        (("dpo", {"beta": 0.2}), ("dpo", {"beta": 0.4})),
        (("dpo", {"beta": 2.0, "average": True}), ("dpo", {"beta": 2.0, "average": True})),
        (("ipo", {"beta": 0.3}), ("ipo", {"beta": 0.3})),
        (("kto", {"beta": 0.2}), ("kto", {"beta": 0.4})),
        (("simpo", {}), ("simpo", {})),
        (("orpo", {}), ("orpo", {})),
        (("orpo", {"nll_reduction": "sequences"}), ("orpo", {"nll_reduction": "sequences"})),
        (("sft", {}), ("sft", {})),
        (("sft", {"reduction": "sequences"}), ("sft", {"reduction": "sequences"})),
        (("grpo", {}), ("grpo", {})),
        (("grpo", {"average": "sequences"}), ("grpo", {"average": "sequences"})),
        (("ppo", {"entropy_coef": 0.1}), ("ppo", {"entropy_coef": 0.1})),
    ],
    ids=str,
)
def test_every_token_twice(longer: tuple, plain: tuple):
    ours, theirs = create(longer[0], **longer[1]), create(plain[0], **plain[1])
    scores = everything(ours.needs.data)
    close(ours.loss(twice_as_long(scores)), theirs.loss(scores))


def test_every_token_twice_in_the_summed_forms():
    scores = everything("pairs")
    chosen, rejected = scores.halves()
    margin, beta = chosen.logratio - rejected.logratio, 0.3
    close(create("ipo", average=False, beta=beta).loss(scores), (margin - 1 / (2 * beta)).square().mean().item())
    doubled = create("ipo", average=False, beta=beta).loss(twice_as_long(scores))
    close(doubled, (2 * margin - 1 / (2 * beta)).square().mean().item())
    shown = everything("demonstrations")
    summed = create("sft", reduction="sum")
    close(summed.loss(twice_as_long(shown)), 2 * summed.loss(shown))


def twice_as_long(scores: Scores) -> Scores:
    parts = {name: getattr(scores, name).repeat_interleave(2, 1) for name in (*PADDED, "mask")}
    columns = {name: c.repeat_interleave(2, 1) if c.dim() == 2 else c for name, c in scores.columns.items()}
    return replace(scores, **parts, columns=columns)


# ------------------------------------------------------------------------------------------- the added SFT term


@pytest.mark.parametrize("reduction", list(NLL))
@pytest.mark.parametrize("name", OFFLINE)
def test_the_sft_term_is_added_and_not_normalised_twice(name: str, reduction: str):
    """w1 · L + w2 · SFT on the demonstrated rows, each computed apart."""
    weight = torch.tensor([0.5, 2.0, 1.25, 1.0])
    scores = everything(get(name).needs.data, weight=weight)
    shown = [0, 2, 3] if get(name).needs.data == "labels" else [0, 1, 2, 3]
    demonstrations = take("demonstrations", replace(scores, columns=scores.columns | {"weight": weight}), shown)
    demonstrations.columns["weight"] = weight[shown]
    alone = gradients(create(name), scores)["logps"]
    sft = create("sft", reduction=reduction)
    mixed = create(name, sft_weight=0.7, sft_reduction=reduction)
    close(mixed.loss(scores), create(name).loss(scores) + 0.7 * sft.loss(demonstrations))
    alone[shown] += 0.7 * gradients(sft, demonstrations)["logps"]
    close(gradients(mixed, scores)["logps"], alone)
    # by the terms: the method's own are untouched, whatever stands in front of them
    own, (*also, added) = (
        create(name, **options).all_terms(scores, {"z": torch.tensor(0.2)})
        for options in ({}, {"sft_weight": 0.7, "sft_reduction": reduction})
    )
    assert [(t.name, t.sum, t.unit, t.coefficient) for t in own] == [
        (t.name, t.sum, t.unit, t.coefficient) for t in also
    ]
    assert (added.name, added.coefficient) == ("sft", 0.7)


def test_an_added_sft_term_asks_for_log_probs():
    assert create("bradley_terry").needs.heads == {"scalar"}
    assert create("bradley_terry", sft_weight=0.1).needs.heads == {"scalar", "lm"}
    assert get("bradley_terry").needs.heads == {"scalar"}


# ------------------------------------------------------------------------------------------- objectives as objects


@pytest.mark.parametrize("name", names())
def test_frozen_equal_and_printable(name: str):
    objective = create(name)
    for option in fields(objective):
        with pytest.raises(FrozenInstanceError):
            setattr(objective, option.name, option.default)
    assert objective == create(name)
    assert hash(objective) == hash(create(name))
    assert repr(objective).startswith(type(objective).__name__ + "(sft_weight=0.0")
    assert replace(objective) == objective
    assert replace(objective).needs == objective.needs


# ------------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("row", VARIANTS, ids=str)
def test_more_padding_changes_nothing(row: Row):
    objective = row.create()
    scores = everything(objective.needs.data)
    n = len(scores)

    def widen(x: Tensor, fill: float) -> Tensor:
        return torch.cat((torch.full((n, 1), fill, dtype=x.dtype), x, torch.full((n, 2), fill, dtype=x.dtype)), 1)

    columns = {name: widen(c, 1e30) if c.dim() == 2 else c for name, c in scores.columns.items()}
    parts = {name: widen(getattr(scores, name), float("-inf")) for name in PADDED}
    wide = replace(scores, **parts, mask=widen(scores.mask, False), columns=columns)
    close(objective.loss(wide), objective.loss(scores))
    for name, gradient in gradients(objective, scores).items():
        wider = gradients(objective, wide)[name]
        close(wider, widen(gradient, 0.0) if gradient.dim() == 2 else gradient)


@pytest.mark.parametrize("row", VARIANTS, ids=str)
def test_the_order_of_the_examples_changes_nothing(row: Row):
    objective = row.create()
    data = objective.needs.data
    scores = everything(data, weight=torch.tensor([0.5, 2.0, 1.25, 1.0]))
    close(objective.loss(take(data, scores, [2, 0, 3, 1])), objective.loss(scores))


@pytest.mark.parametrize("row", VARIANTS, ids=str)
def test_a_weight_of_0_removes_an_example_and_a_weight_of_2_repeats_it(row: Row):
    objective = row.create()
    data = objective.needs.data
    counted = everything(data, weight=torch.tensor([1.0, 0.0, 2.0, 1.0]))
    listed = take(data, everything(data), [0, 2, 2, 3])
    close(objective.loss(counted), objective.loss(listed))
    found = gradients(objective, take(data, counted, [1]))
    assert not any(gradient.any() for gradient in found.values()), "a step of weight 0 moves the policy"


@pytest.mark.parametrize("row", VARIANTS, ids=str)
def test_only_the_ratios_of_weights_matter(row: Row):
    objective = row.create()
    weight = torch.tensor([0.5, 2.0, 1.25, 1.0])
    losses = [objective.loss(everything(objective.needs.data, weight=w)) for w in (weight, 3 * weight)]
    close(losses[0], losses[1].item())


@pytest.mark.parametrize("name", [name for name in names() if get(name).needs.data in HALVED])
def test_a_column_for_pairs_may_be_given_for_rows(name: str):
    objective = create(name, sft_weight=0.3)
    halved = everything(objective.needs.data, weight=torch.tensor([0.5, 2.0, 1.25, 1.0]))
    columns = {c: torch.cat((x, x)) if c in ("weight", "margin") else x for c, x in halved.columns.items()}
    same(objective, halved, objective, replace(halved, columns=columns))
