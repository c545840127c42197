"""Credit by hand, its limits, and what the methods make of annotated rollouts."""

from dataclasses import replace
from math import nan, sqrt

import pytest
import torch
from torch import Tensor

from prefopt.credit import gae, group_relative, rloo, whiten
from prefopt.objectives import create, names
from prefopt.objectives.registry import get
from prefopt.records import Columns, Scores
from tests.objectives.hand import ANNOTATED, CREDIT, CREDITED, Row, everything, float64, gradients

NUMBER = {"rel": 1e-12, "abs": 1e-15}
METHODS = [name for name in names() if get(name).needs.data == "rollouts"]

# Four tokens of an answer that starts at position 1, two of another; the rest is padding.
MASK = torch.tensor([[0, 1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0, 0]], dtype=torch.bool)
REWARDS = float64([nan, -0.1, 0.2, -0.3, 2.0, nan, nan], [0.5, -1.0, nan, nan, nan, nan, nan])
VALUES = float64([nan, 0.5, 0.7, -0.2, 0.4, nan, nan], [0.3, 0.6, nan, nan, nan, nan, nan])


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)


# ------------------------------------------------------------------------------------------- gae


def test_gae_by_hand():
    # γ = 0.9, λ = 0.5, γλ = 0.45. Row 0 from its last token backwards:
    #   δ = 2.0 - 0.4 = 1.6                      A = 1.6
    #   δ = -0.3 + 0.9 · 0.4 + 0.2 = 0.26        A = 0.26 + 0.45 · 1.6 = 0.98
    #   δ = 0.2 + 0.9 · -0.2 - 0.7 = -0.68       A = -0.68 + 0.45 · 0.98 = -0.239
    #   δ = -0.1 + 0.9 · 0.7 - 0.5 = 0.03        A = 0.03 + 0.45 · -0.239 = -0.07755
    # Row 1: δ = -1.0 - 0.6 = -1.6; δ = 0.5 + 0.9 · 0.6 - 0.3 = 0.74, A = 0.74 - 0.72 = 0.02
    advantages, returns = gae(REWARDS, VALUES, MASK, gamma=0.9, lam=0.5)
    close(advantages, float64([0, -0.07755, -0.239, 0.98, 1.6, 0, 0], [0.02, -1.6, 0, 0, 0, 0, 0]))
    close(returns, float64([0, 0.42245, 0.461, 0.78, 2.0, 0, 0], [0.32, -1.0, 0, 0, 0, 0, 0]))
    assert torch.equal(advantages != 0, MASK)
    assert torch.equal(returns != 0, MASK)


def test_gae_of_one_step():
    # λ = 0: the temporal difference alone
    advantages, returns = gae(REWARDS, VALUES, MASK, gamma=0.9, lam=0.0)
    close(advantages, float64([0, 0.03, -0.68, 0.26, 1.6, 0, 0], [0.74, -1.6, 0, 0, 0, 0, 0]))
    close(returns, float64([0, 0.53, 0.02, 0.06, 2.0, 0, 0], [1.04, -1.0, 0, 0, 0, 0, 0]))


@pytest.mark.parametrize("gamma", [1.0, 0.9, 0.0])
def test_gae_of_all_steps_is_the_discounted_return_less_the_value(gamma: float):
    to_go = [2.0]
    for reward in (-0.3, 0.2, -0.1):
        to_go.insert(0, reward + gamma * to_go[0])
    expected = float64([0, *to_go, 0, 0], [0.5 - gamma, -1.0, 0, 0, 0, 0, 0])
    advantages, returns = gae(REWARDS, VALUES, MASK, gamma=gamma, lam=1.0)
    close(returns, expected)
    close(advantages, (expected - VALUES).where(MASK, 0))


def test_gae_defaults_and_that_what_it_is_given_stays():
    rewards, values = REWARDS.clone(), VALUES.clone()
    found = gae(rewards, values, MASK)
    for ours, theirs in zip(found, gae(REWARDS, VALUES, MASK.float(), gamma=1.0, lam=0.95), strict=True):
        close(ours, theirs)
    assert torch.equal(rewards.nan_to_num(), REWARDS.nan_to_num())
    assert torch.equal(values.nan_to_num(), VALUES.nan_to_num())


def test_gae_does_not_see_its_padding():
    for fill in (0.0, 1e6, nan, float("inf")):
        found = gae(REWARDS.nan_to_num(fill), VALUES.nan_to_num(fill), MASK)
        for ours, theirs in zip(found, gae(REWARDS, VALUES, MASK), strict=True):
            close(ours, theirs)
    alone = gae(REWARDS[:1, 1:5], VALUES[:1, 1:5], MASK[:1, 1:5])[0]
    close(gae(REWARDS, VALUES, MASK)[0][:1, 1:5], alone)


# ------------------------------------------------------------------------------------------- groups


def test_group_relative_by_hand():
    # means 2 and 0.5; sample variances (1 + 1 + 4 + 4) / 3 and (9 + 1 + 4 + 4) / 16 / 3 ...
    rewards = float64(1.0, 3.0, 0.0, 4.0, -0.25, 0.75, 1.0, 0.5)
    first = [-1.0, 1.0, -2.0, 2.0]
    second = [-0.75, 0.25, 0.5, 0.0]
    std = sqrt(10 / 3), sqrt((0.5625 + 0.0625 + 0.25) / 3)
    expected = [x / std[0] for x in first] + [x / std[1] for x in second]
    assert group_relative(rewards, 4).tolist() == pytest.approx(expected, **NUMBER)
    assert group_relative(rewards, 4, normalize=False).tolist() == pytest.approx(first + second, **NUMBER)
    pairs = group_relative(rewards[:4], 2).tolist()
    assert pairs == pytest.approx([-sqrt(0.5), sqrt(0.5), -sqrt(0.5), sqrt(0.5)], **NUMBER)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, 1 / 3, -7.7, 1e6 + 0.1, 1e-20])
def test_equal_rewards_say_nothing(reward: float, dtype: torch.dtype):
    for size in (2, 3, 7, 8, 64):
        rewards = torch.full((2 * size,), reward, dtype=dtype)
        for normalize in (True, False):
            assert not group_relative(rewards, size, normalize).any()
        assert not rloo(rewards, size).any()


def test_rewards_equal_but_for_rounding_say_nothing():
    assert not group_relative(float64(0.1 + 0.2, 0.3), 2).any()
    almost = torch.tensor([0.1, 0.1, 0.1, 0.1])
    almost[3] = torch.nextafter(almost[3], torch.tensor(1.0))
    assert not group_relative(almost, 4).any()


def test_group_relative_keeps_small_but_real_differences():
    rewards = float64(5.0, 5.0 + 1e-9)
    assert group_relative(rewards, 2).tolist() == pytest.approx([-sqrt(0.5), sqrt(0.5)], rel=1e-6)


def test_group_relative_knows_no_unit():
    rewards = everything("rollouts", examples=8).rewards
    close(group_relative(3.7 * rewards - 1.2, 4), group_relative(rewards, 4))
    close(group_relative(-rewards, 4), -group_relative(rewards, 4))
    close(group_relative(3.7 * rewards - 1.2, 4, normalize=False), 3.7 * group_relative(rewards, 4, normalize=False))


def test_groups_are_apart():
    rewards = everything("rollouts", examples=8).rewards
    for credit in (group_relative, rloo):
        close(credit(rewards, 4)[4:], credit(rewards[4:], 4))


def test_a_group_of_one_says_nothing():
    assert group_relative(float64(1.5, -2.0), 1).tolist() == [0.0, 0.0]


def test_rloo_by_hand():
    # 1 - (3 + 0 + 4)/3, 3 - 5/3, 0 - 8/3, 4 - 4/3
    found = rloo(float64(1.0, 3.0, 0.0, 4.0), 4).tolist()
    assert found == pytest.approx([-4 / 3, 4 / 3, -8 / 3, 8 / 3], **NUMBER)
    assert rloo(float64(1.0, 3.0, 0.0, 4.5), 2).tolist() == pytest.approx([-2.0, 2.0, -4.5, 4.5], **NUMBER)


@pytest.mark.parametrize("size", [2, 4, 8])
def test_rloo_is_the_centred_reward_scaled(size: int):
    rewards = everything("rollouts", examples=8).rewards
    close(rloo(rewards, size), group_relative(rewards, size, normalize=False) * size / (size - 1))


@pytest.mark.parametrize("dtype", [torch.long, torch.bool, torch.bfloat16, torch.float16])
def test_rewards_of_any_dtype(dtype: torch.dtype):
    rewards = torch.tensor([0, 1, 1, 1, 0, 0]).to(dtype)
    for credit in (group_relative, rloo):
        assert credit(rewards, 3).dtype == torch.float32
        assert torch.equal(credit(rewards, 3), credit(rewards.float(), 3))


# ------------------------------------------------------------------------------------------- whiten


def test_whiten_by_hand():
    # 1, 2, 6: mean 3, population variance (4 + 1 + 9) / 3
    mask = torch.tensor([[True, False, True], [False, True, False]])
    found = whiten(float64([1.0, nan, 2.0], [nan, 6.0, nan]), mask)
    s = sqrt(14 / 3)
    close(found, float64([-2 / s, 0, -1 / s], [0, 3 / s, 0]))


def test_whitened_advantages_have_mean_0_and_variance_1():
    x = everything("rollouts", examples=8).columns["advantages"] * 3 + 5
    mask = ~x.isnan()
    found = whiten(x, mask)
    assert found[mask].mean().item() == pytest.approx(0, abs=1e-12)
    assert found[mask].var(correction=0).item() == pytest.approx(1, abs=1e-12)
    assert not found[~mask].any()
    close(whiten(2.5 * x + 3, mask), found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, -7.7])
def test_equal_numbers_are_whitened_to_0(value: float, dtype: torch.dtype):
    for length in range(1, 40):
        x = torch.full((2, length), value, dtype=dtype)
        assert not whiten(x, torch.ones(2, length)).any()


def test_nothing_to_whiten():
    assert not whiten(float64([nan, nan]), torch.zeros(1, 2)).any()


# ------------------------------------------------------------------------------------------- methods


@pytest.mark.parametrize("row", CREDIT, ids=str)
def test_credit_by_hand(row: Row):
    columns = row.create().credit(row.scores, ANNOTATED)
    mask = row.scores.mask
    assert columns["old_logps"] is row.scores.logps
    for name, expected in row.expected.items():
        assert columns[name][mask].tolist() == pytest.approx(expected, **NUMBER), name
        assert not columns[name][~mask].any(), f"{name} is not zero off the mask"
    if row.name == "ppo":
        assert columns["old_values"] is row.scores.values
        assert columns.keys() == {"old_logps", "old_values", "advantages", "returns"}


def test_credit_gives_what_the_loss_reads():
    for name in METHODS:
        objective = create(name)
        scores = everything("rollouts")
        credited = replace(scores, columns=objective.credit(scores, scores.rewards))
        assert objective.loss(credited).isfinite()


def test_ppo_without_a_kl_needs_no_reference():
    without = replace(CREDITED, ref_logps=None)
    found = create("ppo", beta=0.0).credit(without, ANNOTATED)
    close(found["returns"], create("ppo", beta=0.0).credit(CREDITED, ANNOTATED)["returns"])


def test_ppo_rewards_the_last_token_whatever_the_row():
    # λ = 1, γ = 1, no KL: every token's return is the answer's reward
    objective, scores = create("ppo", beta=0.0, lam=1.0), everything("rollouts")
    returns = objective.credit(scores, scores.rewards)["returns"]
    close(returns, (scores.rewards[:, None] * scores.mask).to(returns.dtype))
    # γ = 0: only the token that was paid
    paid = create("ppo", beta=0.0, gamma=0.0).credit(scores, scores.rewards)["returns"]
    assert (paid != 0).sum(1).tolist() == [1] * 4
    last = [mask.nonzero().max().item() for mask in scores.mask]
    assert (paid != 0).int().argmax(1).tolist() == last


def test_credit_of_groups_whose_rewards_are_equal_moves_nothing():
    scores = everything("rollouts")
    for name in ("ppo", "grpo"):
        same = torch.full((4,), 0.1, dtype=torch.float32)
        flat = replace(scores, values=torch.zeros_like(scores.values), ref_logps=scores.logps)
        advantages = create(name).credit(flat, same)["advantages"]
        if name == "grpo":
            assert not advantages.any()
        else:
            assert not create("ppo", lam=1.0).credit(flat, same)["advantages"].any()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("grpo", {}),
        ("grpo", {"normalize": False}),
        ("rloo", {}),
        ("reinforce", {}),
        ("reinforce", {"whiten": True}),
        ("reinforce", {"baseline": "none", "whiten": True}),
    ],
)
@pytest.mark.parametrize("examples", [6, 8])
def test_equal_rewards_give_no_gradient_at_all(name: str, options: dict, examples: int):
    objective, scores = create(name, beta=0.0, **options), everything("rollouts", examples)
    scores.columns["group"] = torch.arange(examples) * 2 // examples  # two groups of three or four
    credited = objective.credit(scores, torch.full((examples,), 0.1))
    found = gradients(objective, replace(scores, columns=scores.columns | credited))
    assert not any(gradient.any() for gradient in found.values())


def test_reinforce_by_hand():
    # 1, 3, 0, 4: mean 2, the population's variance (1 + 1 + 4 + 4) / 4; lengths 5, 3, 4, 1 have no say in it
    scores = everything("rollouts")
    scores.columns.pop("group")
    rewards, s = float64(1.0, 3.0, 0.0, 4.0), sqrt(10 / 4)
    for options, expected in (
        ({}, [-1.0, 1.0, -2.0, 2.0]),
        ({"baseline": "none"}, [1.0, 3.0, 0.0, 4.0]),
        ({"whiten": True}, [-1 / s, 1 / s, -2 / s, 2 / s]),
        ({"baseline": "none", "whiten": True}, [-1 / s, 1 / s, -2 / s, 2 / s]),
    ):
        found = create("reinforce", beta=0.0, **options).credit(scores, rewards)["advantages"]
        close(found, (float64(*expected)[:, None] * scores.mask).to(found.dtype))


def of_answers(scores: Scores, columns: Columns) -> Tensor:
    """[N] the advantage that stands on each token of an answer."""
    return scores.total(columns["advantages"]) / scores.lengths


def test_what_is_whitened_has_mean_0_and_variance_1_over_the_collection():
    scores = everything("rollouts", examples=8)
    tokens = create("ppo").credit(scores, scores.rewards)["advantages"][scores.mask]
    answers = of_answers(scores, create("reinforce", whiten=True).credit(scores, scores.rewards))
    for whitened in (tokens, answers):
        assert whitened.mean().item() == pytest.approx(0, abs=1e-12)
        assert whitened.var(correction=0).item() == pytest.approx(1, abs=1e-12)
    plain = create("ppo", whiten=False).credit(scores, scores.rewards)["advantages"]
    close(whiten(plain, scores.mask)[scores.mask], tokens)


def test_credit_keeps_the_precision_of_the_rewards():
    # float64 rewards of float32 log-probs: 1e6 apart from what tells them from each other
    scores = everything("rollouts", dtype=torch.float32)
    rewards = 1e6 + float64(0.25, 0.75, 0.5, 0.125)
    found = of_answers(scores, create("rloo", beta=0.0).credit(scores, rewards))
    assert found.tolist() == pytest.approx([-0.5, 0.5, 0.375, -0.375], rel=1e-6)


@pytest.mark.parametrize("name", ["grpo", "rloo"])
def test_groups_of_different_sizes_are_refused(name: str):
    scores = everything("rollouts")
    scores.columns["group"] = torch.tensor([0, 0, 1, 2])
    with pytest.raises(ValueError, match=rf"{name} needs equally many rows for each prompt; got \[2, 1, 1\]"):
        create(name).credit(scores, scores.rewards)


def test_rloo_refuses_one_answer_for_each_prompt():
    scores = everything("rollouts")
    scores.columns["group"] = torch.arange(4)
    with pytest.raises(ValueError, match="rloo needs a group_size of at least 2, got 1: it compares with the others"):
        create("rloo").credit(scores, scores.rewards)


# ------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: gae(torch.ones(2, 3), torch.ones(2, 4), torch.ones(2, 3)),
            r"shapes differ: rewards \(2, 3\), values \(2, 4\), mask \(2, 3\)",
        ),
        (lambda: whiten(torch.ones(2, 3), torch.ones(2)), r"shapes differ: x \(2, 3\), mask \(2,\)"),
        (lambda: group_relative(torch.ones(5), 2), r"rewards of shape \(5,\) are not whole groups of 2"),
        (lambda: group_relative(torch.ones(2, 2), 2), r"rewards of shape \(2, 2\) are not whole groups of 2"),
        (lambda: group_relative(torch.ones(4), 0), r"rewards of shape \(4,\) are not whole groups of 0"),
        (lambda: rloo(torch.ones(4), 3), r"rewards of shape \(4,\) are not whole groups of 3"),
        (lambda: rloo(torch.ones(4), 1), "rloo needs a group_size of at least 2, got 1: it compares with the others"),
    ],
)
def test_refusals(make, said: str):
    with pytest.raises(ValueError, match=said) as caught:
        make()
    assert "\n" not in str(caught.value)
