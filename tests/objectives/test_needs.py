"""Declared needs are the true ones, dtypes are kept, and a step may be split as one likes."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from prefopt.objectives import Needs, Objective, create
from prefopt.objectives.base import means, total
from prefopt.records import Scores, units
from tests.objectives.hand import VARIANTS, Row, everything, gradients, take

WEIGHT = torch.tensor([0.5, 2.0, 1.25, 1.0])
HEADS = {"logps": "lm", "rewards": "scalar", "values": "value"}
READ = {  # columns that a method reads beside those in `needs.tokens` and `needs.prompt`
    "kto": {"desirable"},
    "ppo": {"old_logps", "advantages", "returns", "old_values"},
    "grpo": {"old_logps", "advantages"},
    "rloo": {"old_logps", "advantages"},
    "reinforce": {"old_logps", "advantages"},
}


def declared(objective: Objective) -> tuple[set[str], set[str]]:
    """The fields of `Scores` and the columns that the objective may read."""
    needs = objective.needs
    fields = {name for name, head in HEADS.items() if head in needs.heads}
    columns = READ.get(objective.name, set()) | needs.tokens | needs.columns
    return (
        fields | ({"ref_logps"} if needs.reference else set()),
        columns | ({"prompt_logp", "prompt_tokens"} if needs.prompt else set()),
    )


def asked_for(data: str) -> Scores:
    """All that a method may ask of this kind of data, soft labels too."""
    scores = everything(data)
    soft = {"target": torch.tensor([0.9, 0.6, 1.0, 0.75])} if data == "pairs" else {}
    return replace(scores, columns=scores.columns | soft)


def spoilt(x: Tensor) -> Tensor:
    return torch.full(x.shape, float("nan"), dtype=torch.float64)


@pytest.mark.parametrize("row", VARIANTS, ids=str)
def test_what_is_not_declared_is_not_read(row: Row):
    objective = row.create()
    fields, columns = declared(objective)
    scores = everything(objective.needs.data, weight=WEIGHT)
    others = [name for name in (*HEADS, "ref_logps") if name not in fields]
    garbage = {name: spoilt(c) for name, c in scores.columns.items() if name not in columns | {"weight", "desirable"}}
    spoilt_scores = replace(
        scores,
        **{name: spoilt(getattr(scores, name)) for name in others},
        columns=scores.columns | garbage,
    )
    bare = replace(
        scores,
        **dict.fromkeys(others),
        columns={name: scores.columns[name] for name in scores.columns if name in columns | {"weight", "desirable"}},
    )
    expected = gradients(objective, scores)
    for other in (spoilt_scores, bare):
        assert torch.equal(objective.loss(other), objective.loss(scores))
        assert torch.equal(objective.reward(other), objective.reward(scores))
        found = gradients(objective, other)
        assert all(torch.equal(found[name], expected[name]) for name in fields & found.keys())


def elsewhere(objective: Objective, name: str) -> bool:
    """KL in the reward is `credit`'s: the loss sees the reference through its columns only."""
    return name == "ref_logps" and getattr(objective, "kl_in", "loss") == "reward"


@pytest.mark.parametrize("row", VARIANTS, ids=str)
def test_what_is_declared_is_read(row: Row):
    objective = row.create()
    fields, columns = declared(objective)
    scores = asked_for(objective.needs.data)
    for name in fields:
        if not elsewhere(objective, name):
            assert objective.loss(replace(scores, **{name: spoilt(getattr(scores, name))})).isnan(), name
    free = {"old_values"} if getattr(objective, "value_clip", 0) is None else set()  # nothing to clip around
    free |= {"prompt_tokens"} if "sum" in row.options.values() else set()  # nothing to divide by
    for name in columns - free - {"desirable"}:
        changed = scores.columns | {name: spoilt(scores.columns[name])}
        assert objective.loss(replace(scores, columns=changed)).isnan(), name


@pytest.mark.parametrize("row", VARIANTS, ids=str)
def test_what_is_declared_and_missing_is_refused_in_one_line(row: Row):
    objective = row.create()
    fields, _ = declared(objective)
    scores = asked_for(objective.needs.data)
    for name in fields:
        without = replace(scores, **{name: None})
        if elsewhere(objective, name):
            assert torch.equal(objective.loss(without), objective.loss(scores))
            continue
        with pytest.raises(ValueError, match=rf"Scores\.{name}\b") as caught:
            objective.loss(without)
        assert "\n" not in str(caught.value)
    asked = objective.needs.tokens | ({"prompt_logp", "prompt_tokens"} if objective.needs.prompt else set())
    for name in asked:
        with pytest.raises(ValueError, match=f"{objective.name} needs the column '{name}'") as caught:
            objective.loss(replace(scores, columns={k: c for k, c in scores.columns.items() if k != name}))
        assert "\n" not in str(caught.value)


def test_all_that_is_missing_is_named_at_once():
    bare = replace(everything("rollouts"), logps=None, ref_logps=None)
    with pytest.raises(ValueError, match=r"^grpo needs Scores\.logps, Scores\.ref_logps, and the scores lack it$"):
        create("grpo").loss(bare)


def test_an_error_of_another_kind_is_left_alone():
    scores = everything("rollouts")
    scores.columns.pop("old_logps")
    with pytest.raises(KeyError, match="old_logps"):
        create("grpo").loss(scores)


def test_a_method_that_reads_what_it_did_not_declare_is_told_so():
    class Forgetful(Objective):
        name = "forgetful"
        needs = Needs(data="pairs")

        def terms(self, scores, statistics):
            return scores.logratio.sum()

    with pytest.raises(ValueError, match=r"Scores\.ref_logps is None: nobody asked for it, or the objective's `needs`"):
        Forgetful().loss(replace(everything("pairs"), ref_logps=None))


def test_needs_are_checked_when_they_are_declared():
    with pytest.raises(ValueError, match=r"needs\.data must be one of demonstrations, pairs, .*; got 'pair'"):
        Needs(data="pair")
    with pytest.raises(ValueError, match=r"needs\.heads must be among lm, scalar, value; got critic, lm"):
        Needs(data="pairs", heads={"critic", "lm"})
    assert Needs(data="pairs", heads=["lm"], tokens=["entropy"]) == Needs(data="pairs", tokens=frozenset({"entropy"}))


@pytest.mark.parametrize(
    ("name", "options", "needs"),
    [
        ("sft", {}, Needs(data="demonstrations")),
        ("sft", {"nll_scope": "text"}, Needs(data="demonstrations", prompt=True)),
        ("bradley_terry", {}, Needs(data="pairs", heads={"scalar"}, columns={"margin", "target"})),
        (
            "bradley_terry",
            {"sft_weight": 0.1},
            Needs(data="pairs", heads={"scalar", "lm"}, columns={"margin", "target"}),
        ),
        ("dpo", {}, Needs(data="pairs", reference=True, columns={"target"})),
        ("ipo", {}, Needs(data="pairs", reference=True)),
        ("kto", {"sft_weight": 0.1}, Needs(data="labels", reference=True)),
        ("orpo", {}, Needs(data="pairs")),
        ("orpo", {"nll_scope": "text"}, Needs(data="pairs", prompt=True)),
        ("simpo", {}, Needs(data="pairs")),
        ("ppo", {}, Needs(data="rollouts", reference=True, heads={"lm", "value"})),
        ("ppo", {"beta": 0.0}, Needs(data="rollouts", heads={"lm", "value"})),
        (
            "ppo",
            {"entropy_coef": 0.01},
            Needs(data="rollouts", reference=True, heads={"lm", "value"}, tokens={"entropy"}),
        ),
        ("grpo", {}, Needs(data="rollouts", answers=2, reference=True)),
        ("grpo", {"beta": 0.0}, Needs(data="rollouts", answers=2)),
        ("rloo", {}, Needs(data="rollouts", answers=2, reference=True)),
        ("rloo", {"beta": 0.0}, Needs(data="rollouts", answers=2)),
        ("reinforce", {"kl": "k2", "kl_in": "loss"}, Needs(data="rollouts", reference=True)),
        ("reinforce", {"beta": 0.0}, Needs(data="rollouts")),
    ],
)
def test_declared_needs(name: str, options: dict, needs: Needs):
    assert create(name, **options).needs == needs


# ------------------------------------------------------------------------------------------- dtypes


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("row", VARIANTS, ids=str)
def test_half_precision_is_raised_to_float32_before_any_arithmetic(row: Row, dtype: torch.dtype):
    objective = row.create()
    half = everything(objective.needs.data, dtype=dtype)
    parts = {name: value.float() for name, value in vars(half).items() if isinstance(value, Tensor) and name != "mask"}
    columns = {name: c.float() if c.is_floating_point() else c for name, c in half.columns.items()}
    assert objective.loss(half).dtype == objective.reward(half).dtype == torch.float32
    assert torch.equal(objective.loss(half), objective.loss(replace(half, **parts, columns=columns)))
    given = everything(objective.needs.data, dtype=dtype)
    assert {given.logps.dtype, given.ref_logps.dtype, given.values.dtype, given.rewards.dtype} == {torch.float32}
    assert given.columns["old_logps"].dtype == given.columns["entropy"].dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("row", VARIANTS, ids=str)
def test_the_dtype_is_kept(row: Row, dtype: torch.dtype):
    objective = row.create()
    scores = everything(objective.needs.data, dtype=dtype, weight=WEIGHT)
    loss = objective.loss(scores)
    assert loss.dtype == objective.reward(scores).dtype == dtype
    torch.testing.assert_close(
        loss.double(), objective.loss(everything(objective.needs.data, weight=WEIGHT)), rtol=1e-5, atol=1e-6
    )
    # a weight column that nobody gave leaves it alone as well
    assert objective.loss(everything(objective.needs.data, dtype=dtype)).dtype == dtype


# ------------------------------------------------------------------------------------------- splitting a step


def step(objective: Objective, micros: list[Scores]) -> Tensor:
    """What a module does: add up statistics and counts over the step, then each micro-batch by itself."""
    summed: dict[str, tuple[Tensor, Tensor]] = {}
    counts: dict[str, float] = {}
    for micro in micros:
        for name, (part, count) in objective.statistics(micro).items():
            before = summed.get(name, (0.0, 0.0))
            summed[name] = (before[0] + part, before[1] + count)
        for unit, count in units(objective.needs.data, micro.lengths, micro.columns).items():
            counts[unit] = counts.get(unit, 0.0) + float(count)
    statistics = means(summed)
    return sum(total(objective.all_terms(micro, statistics), counts) for micro in micros)


SPLITS = [[4], [1, 3], [2, 2], [1, 1, 1, 1]]


@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["plain", "weighted"])
@pytest.mark.parametrize("split", SPLITS, ids=str)
@pytest.mark.parametrize("row", VARIANTS, ids=str)
def test_a_split_step_is_the_whole_step(row: Row, split: list[int], weight: Tensor | None):
    objective = row.create()
    data = objective.needs.data
    whole = everything(data, weight=weight)
    starts = [sum(split[:i]) for i in range(len(split))]
    micros = [take(data, whole, list(range(start, start + size))) for start, size in zip(starts, split, strict=True)]
    torch.testing.assert_close(step(objective, micros), objective.loss(whole), rtol=1e-12, atol=0)


@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_z_of_a_split_step_is_that_of_the_whole(split: list[int]):
    objective = create("kto")
    whole = everything("labels", weight=WEIGHT)
    parts, start = [], 0
    for size in split:
        parts.append(objective.statistics(take("labels", whole, list(range(start, start + size))))["z"])
        start += size
    z = means({"z": (sum(s for s, _ in parts), sum(c for _, c in parts))})["z"]
    torch.testing.assert_close(z, means(objective.statistics(whole))["z"], rtol=1e-12, atol=0)
    # Some of the mismatched log-ratios are below 0: clamping before the mean would raise it.
    ratios = whole.halves()[1].logratio
    assert (ratios < 0).any()
    assert 0 < z < (WEIGHT * ratios.clamp(min=0)).sum() / WEIGHT.sum()


def test_a_batch_of_one_class_is_finite():
    for desirable in (True, False):
        scores = everything("labels")
        scores.columns["desirable"] = torch.full((8,), desirable)
        loss = create("kto", sft_weight=0.3).loss(scores)
        assert loss.isfinite()
        assert gradients(create("kto", sft_weight=0.3), scores)["logps"].isfinite().all()


def test_the_shared_scores_reach_every_branch():
    rollouts = everything("rollouts").zeroed()
    ratio = (rollouts.logps - rollouts.columns["old_logps"]).exp()[rollouts.mask]
    good = rollouts.columns["advantages"][rollouts.mask] > 0
    moved = (rollouts.values - rollouts.columns["old_values"])[rollouts.mask].abs()
    for case in (ratio > 1.28, (ratio > 1) & (ratio < 1.2), ratio < 0.8):
        assert (case & good).any()
        assert (case & ~good).any()
    assert (moved > 0.4).any()
    assert (moved < 0.2).any()
    assert 0 < everything("labels").columns["desirable"][:4].sum() < 4
    assert len(set(everything("pairs").lengths.tolist())) > 2
