"""Every method and every option against numbers worked out by hand, through the class."""

from collections import Counter
from dataclasses import fields, replace

import pytest
import torch

from prefopt.objectives import Term, create, names
from prefopt.objectives.base import total
from prefopt.objectives.registry import get
from prefopt.objectives.surrogate import PolicyGradient, kl_estimate
from tests.objectives.hand import CREDIT, K2, K3, PAIRS, REWARDS, ROLLOUTS, ROWS, Row, float64, k3

NUMBER = {"rel": 1e-12, "abs": 0}
POLICY_GRADIENTS = [name for name in names() if issubclass(get(name), PolicyGradient)]


def numbered(rows: list[Row]) -> list:
    seen = Counter()
    marked = []
    for row in rows:
        seen[str(row)] += 1
        marked.append(pytest.param(row, id=f"{row} #{seen[str(row)]}"))
    return marked


@pytest.mark.parametrize("row", numbered(ROWS))
def test_loss(row: Row):
    loss = row.create().loss(row.scores)
    assert loss.shape == ()
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(row.expected, **NUMBER)


@pytest.mark.parametrize("row", numbered(REWARDS))
def test_reward(row: Row):
    assert row.create().reward(row.scores).tolist() == pytest.approx(row.expected, **NUMBER)


@pytest.mark.parametrize("name", names())
def test_every_option_has_a_number(name: str):
    rows = [row for row in ROWS + CREDIT if row.name == name]
    assert any(not row.options for row in rows), f"no row with the defaults of {name}"
    assert any("weight" in row.scores.columns for row in rows), f"no weighted row for {name}"
    assert any(row.name == name for row in REWARDS), f"no reward of {name}"
    for option in fields(get(name)):
        if option.name in ("sft_weight", "sft_reduction") and get(name).needs.data == "rollouts":
            continue
        moved = [row for row in rows if row.options.get(option.name, option.default) != option.default]
        assert moved, f"no row in hand.py moves {name}.{option.name} from its default"


def test_no_row_is_of_a_method_that_is_not_there():
    assert {row.name for row in ROWS + REWARDS + CREDIT} <= set(names())


def test_kl_estimates():
    logps, ref = float64(-0.5, -1.2), float64(-0.9, -1.0)
    assert kl_estimate(logps, ref, "k1").flatten().tolist() == pytest.approx([0.4, -0.2], **NUMBER)
    assert kl_estimate(logps, ref, "k2").flatten().tolist() == pytest.approx([0.08, 0.02], **NUMBER)
    assert kl_estimate(logps, ref, "k3").flatten().tolist() == pytest.approx([k3(0.4), k3(-0.2)], **NUMBER)


def test_the_share_of_clipped_ratios():
    # outside 1 ± 0.2: e^0.4; e^-0.4 and e^0.6; e^-0.5
    shares = create("ppo").diagnostics(ROLLOUTS)["clip_fraction"]
    assert shares.tolist() == pytest.approx([1 / 3, 1.0, 1.0], **NUMBER)
    # outside 1 ± 0.4, which e^-0.4 = 0.67 and e^-0.5 = 0.61 are not
    shares = create("ppo", clip=0.4).diagnostics(ROLLOUTS)["clip_fraction"]
    assert shares.tolist() == pytest.approx([1 / 3, 1 / 2, 0.0], **NUMBER)
    # e^0.6 = 1.82 alone is above 1.8, nothing is below 0.6
    shares = create("grpo", clip=0.4, clip_high=0.8).diagnostics(ROLLOUTS)["clip_fraction"]
    assert shares.tolist() == pytest.approx([0.0, 1 / 2, 0.0], **NUMBER)
    # of whole answers: e^0.25 = 1.28, e^0.2 = 1.22 and e^-0.5 = 0.61
    assert create("rloo", clip=0.25).diagnostics(ROLLOUTS)["clip_fraction"].tolist() == [1, 0, 1]
    assert "clip_fraction" not in create("rloo").diagnostics(ROLLOUTS)


@pytest.mark.parametrize("name", POLICY_GRADIENTS)
@pytest.mark.parametrize(("kl", "expected"), [("k1", [0.6, -0.8, 0.25]), ("k2", K2), ("k3", K3)])
def test_the_kl_that_is_shown_is_the_one_that_is_optimised(name: str, kl: str, expected: list[float]):
    found = create(name, kl=kl, kl_in="reward").diagnostics(ROLLOUTS)
    assert found["kl"].tolist() == pytest.approx(expected, **NUMBER)
    assert found["kl_k3"].tolist() == pytest.approx(K3, **NUMBER)
    without = create(name, beta=0.0).diagnostics(replace(ROLLOUTS, ref_logps=None))
    assert not {"kl", "kl_k3"} & without.keys()


def test_a_unit_that_the_step_has_none_of_adds_nothing_and_keeps_the_graph():
    x = float64(3.0).requires_grad_()
    terms = (Term("there", x.sum(), "rows", 2.0), Term("absent", x.sum() ** 2, "tokens"))
    loss = total(terms, {"rows": 4.0, "tokens": 0.0})
    assert loss.item() == 1.5
    loss.backward()
    assert x.grad.tolist() == [0.5]


# ------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("dpo", {"beta": 0}, r"loss\.beta must be a number > 0; got 0"),
        ("dpo", {"beta": float("nan")}, r"loss\.beta must be a number > 0; got nan"),
        ("dpo", {"beta": float("inf")}, r"loss\.beta must be a number > 0; got inf"),
        ("dpo", {"beta": "0.1"}, r"loss\.beta must be a number > 0; got '0\.1'"),
        ("dpo", {"label_smoothing": 0.5}, r"loss\.label_smoothing must be a number >= 0 and < 0\.5; got 0\.5"),
        ("dpo", {"label_smoothing": -0.1}, r"loss\.label_smoothing must be a number >= 0 and < 0\.5; got -0\.1"),
        ("dpo", {"sft_weight": -1.0}, r"loss\.sft_weight must be a number >= 0; got -1\.0"),
        ("dpo", {"sft_weight": True}, r"loss\.sft_weight must be a number >= 0; got True"),
        ("dpo", {"sft_reduction": "mean"}, r"loss\.sft_reduction must be one of tokens, sequences, sum; got 'mean'"),
        ("ppo", {"sft_weight": 0.1}, r"loss\.sft_weight needs demonstrated completions; ppo sees rollouts"),
        ("ipo", {"beta": -0.1}, r"loss\.beta must be a number > 0; got -0\.1"),
        ("kto", {"beta": 0}, r"loss\.beta must be a number > 0"),
        ("kto", {"desirable_weight": -1}, r"loss\.desirable_weight must be a number >= 0; got -1"),
        ("kto", {"undesirable_weight": -1}, r"loss\.undesirable_weight must be a number >= 0; got -1"),
        ("orpo", {"beta": -0.1}, r"loss\.beta must be a number >= 0"),
        ("orpo", {"nll_scope": "prompt"}, r"loss\.nll_scope must be one of completion, text; got 'prompt'"),
        ("orpo", {"nll_reduction": "mean"}, r"loss\.nll_reduction must be one of"),
        ("simpo", {"beta": 0}, r"loss\.beta must be a number > 0"),
        ("simpo", {"gamma": -0.5}, r"loss\.gamma must be a number >= 0"),
        ("sft", {"nll_scope": "all"}, r"loss\.nll_scope must be one of"),
        ("sft", {"reduction": "mean"}, r"loss\.reduction must be one of"),
        ("bradley_terry", {"centering": -0.01}, r"loss\.centering must be a number >= 0"),
        ("ppo", {"beta": -0.1}, r"loss\.beta must be a number >= 0"),
        ("ppo", {"clip": 0}, r"loss\.clip must be a number > 0"),
        ("ppo", {"value_clip": 0}, r"loss\.value_clip must be a number > 0"),
        ("ppo", {"value_coef": -1}, r"loss\.value_coef must be a number >= 0"),
        ("ppo", {"entropy_coef": -1}, r"loss\.entropy_coef must be a number >= 0"),
        ("ppo", {"gamma": -1}, r"loss\.gamma must be a number >= 0"),
        ("ppo", {"lam": -1}, r"loss\.lam must be a number >= 0"),
        ("grpo", {"beta": -0.1}, r"loss\.beta must be a number >= 0"),
        ("grpo", {"clip": 0}, r"loss\.clip must be a number > 0"),
        ("grpo", {"clip_high": -0.2}, r"loss\.clip_high must be a number > 0"),
        ("ppo", {"dual_clip": 1}, r"loss\.dual_clip must be a number > 1; got 1"),
        *(
            (name, options, said)
            for name in POLICY_GRADIENTS
            for options, said in (
                ({"kl": "k4"}, r"loss\.kl must be one of k1, k2, k3; got 'k4'"),
                ({"kl_in": "none"}, r"loss\.kl_in must be one of reward, loss; got 'none'"),
                (
                    {"kl": "k1", "kl_in": "loss"},
                    r"loss\.kl=k1 has no gradient in the loss, .*; take k2 or k3, or kl_in=",
                ),
            )
        ),
        ("grpo", {"average": "rows"}, r"loss\.average must be one of tokens, sequences, sums; got 'rows'"),
        ("rloo", {"beta": -0.1}, r"loss\.beta must be a number >= 0"),
        ("rloo", {"clip": 0}, r"loss\.clip must be a number > 0; got 0"),
        ("reinforce", {"baseline": "value"}, r"loss\.baseline must be one of mean, none; got 'value'"),
        ("dpo", {"betta": 0.1}, r"dpo has no option 'betta'; did you mean 'beta'\? It takes: .*label_smoothing"),
        ("dpo", {"zzz": 0.1}, r"dpo has no option 'zzz'\. It takes: "),
        ("dpoo", {}, r"no objective 'dpoo'; did you mean 'dpo'\? There are: bradley_terry, dpo, "),
        ("zzz", {}, r"no objective 'zzz'\. There are: bradley_terry, dpo, "),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_wrong_setting_is_refused_in_one_line_that_names_it(name: str, options: dict, said: str):
    with pytest.raises(ValueError, match=said) as caught:
        create(name, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "inside", "below", "above"),
    [
        ("dpo", 0.1, 0.009, 11),
        ("ipo", 0.01, 0.009, 1.1),
        ("kto", 0.5, 0.009, 0.6),
        ("orpo", 1.0, 0.04, 1.1),
        ("simpo", 10.0, 0.1, 11),
        ("ppo", 0.0, None, 0.3),
        ("grpo", 0.0, None, 0.2),
        ("rloo", 0.0, None, 0.2),
        ("reinforce", 0.0, None, 0.2),
    ],
)
def test_a_beta_outside_the_published_range_draws_a_warning(name, inside, below, above):
    seen = {"desirable": 5, "undesirable": 5}
    assert create(name, beta=inside).warnings(seen) == []
    for beta in (below, above):
        if beta is not None:
            (said,) = create(name, beta=beta).warnings(seen)
            assert said.startswith(f"loss.beta={beta:g} lies outside the published range of {name}, ")


@pytest.mark.parametrize("name", POLICY_GRADIENTS)
def test_an_estimator_that_hardly_pulls_from_the_reward_draws_a_warning(name: str):
    for kl in ("k2", "k3"):
        (said,) = create(name, kl=kl, kl_in="reward").warnings({})
        assert said.startswith(f"loss.kl={kl} in the reward does not have the KL's gradient")
        assert create(name, kl=kl, kl_in="loss").warnings({}) == []
        assert create(name, kl=kl, kl_in="reward", beta=0.0).warnings({}) == []
    assert create(name, kl="k1", kl_in="reward").warnings({}) == []


def test_kto_warns_outside_the_range_of_equation_8():
    assert create("kto").warnings({"desirable": 4, "undesirable": 3}) == []
    assert create("kto", undesirable_weight=2.0).warnings({"desirable": 8, "undesirable": 3}) == []
    (said,) = create("kto").warnings({"desirable": 1, "undesirable": 4})
    assert "= 0.25; Eq. 8" in said
    assert said.endswith("loss.desirable_weight=4")
    (said,) = create("kto", desirable_weight=2.0).warnings({"desirable": 3, "undesirable": 2})
    assert "= 3.00; Eq. 8" in said
    assert said.endswith("loss.desirable_weight=0.667")
    (said,) = create("kto").warnings({"desirable": 4})
    assert said.startswith("kto sees only one class of labels")


def test_names():
    assert names() == sorted(names())
    assert len(names()) >= 9
    assert all(create(name).name == name == get(name).name for name in names())


def test_only_methods_for_rollouts_give_credit():
    with pytest.raises(NotImplementedError, match="dpo takes recorded pairs; it gives no credit to rollouts"):
        create("dpo").credit(PAIRS, float64(1.0))
