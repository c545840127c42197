"""The live policy as a source: what it samples, what it is told of it, and what training sees."""

from __future__ import annotations

from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch

from prefopt.callbacks.selfcheck import SelfCheck
from prefopt.data.module import PreferenceData
from prefopt.errors import RequestError
from prefopt.models.policy import Policy
from prefopt.module import PreferenceModule
from prefopt.objectives import create, get, names
from prefopt.records import Scores
from prefopt.rewards import Answer, Judged
from prefopt.rewards.base import Stateless
from prefopt.rewards.scale import Scaled
from prefopt.rollouts import RolloutPlan
from prefopt.rollouts.collection import Collection, Found, joined, ordered
from prefopt.rollouts.examples import as_examples
from prefopt.rollouts.kl import AdaptiveKL
from prefopt.rollouts.measures import measures_of
from prefopt.scoring import generate, score
from tests.toy import ToyJudge, toy_examples, toy_model, toy_module, toy_rollouts, train_toy

LIVE = [name for name in names() if get(name).needs.data == "rollouts"]


class Same(Stateless):
    """Every answer is worth the same."""

    def __call__(self, answers) -> Judged:
        return Judged(np.full(len(answers), 2.5), {"half": np.full(len(answers), 1.25)})


def fit(objective, source, precision="32-true", steps=4, dtype=torch.float32, callbacks=(), **trainer):
    module = toy_module(objective, dtype, lr=trainer.pop("lr", 0.1))
    trainer = L.Trainer(
        accelerator="cpu",
        precision=precision,
        max_epochs=1,
        max_steps=steps,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **trainer,
    )
    trainer.fit(module, datamodule=PreferenceData(source, source.micro_batch_size))
    return module


class Ratios(L.Callback):
    """log π - log π_old of every micro-batch, as training is about to see it."""

    def __init__(self) -> None:
        self.gaps: list[float] = []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        with trainer.precision_plugin.forward_context():
            scores = module.score(batch).detach()
        self.gaps.append(float((scores.logps - scores.columns["old_logps"])[scores.mask].abs().max()))


# ------------------------------------------------------------------------------------------- the first ratio


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("name", LIVE)
def test_the_first_ratio_is_one_whatever_the_precision(name, precision):
    """A collection of 16 prompts in one step, so every pack of the first pass is scored before the weights move."""
    ratios = Ratios()
    plan = RolloutPlan(16, 16, 3, 0, prompts=16, passes=1)
    source = toy_rollouts(create(name), 18, 16, 3, micro_batch_size=4)
    source.plan, source.prompts = plan, toy_examples(16)
    fit(create(name), source, precision, steps=3, callbacks=[ratios], accumulate_grad_batches=4)
    assert len(ratios.gaps) == 12
    assert max(ratios.gaps) == 0.0


def test_later_steps_of_a_pass_are_off_policy():
    """Else the test above could not fail: the second step of a collection starts from other weights."""
    ratios = Ratios()
    fit(create("grpo"), toy_rollouts(create("grpo"), 22, 16, 4), callbacks=[ratios], lr=1.0)
    assert ratios.gaps[0] == 0.0
    assert min(ratios.gaps[1:]) > 1e-4


def test_every_collection_is_sampled_by_the_policy_of_its_step():
    asked = []

    def sampler(policy, prompts, generator):
        asked.append({name: p.detach().clone() for name, p in policy.named_parameters()})
        return [torch.tensor([5, 6, 2])] * len(prompts)

    objective = create("grpo", beta=0.5, kl="k2")  # equal answers teach nothing, the KL does
    fit(objective, toy_rollouts(objective, 10, 8, 6, sampler=sampler), steps=6, lr=1.0)
    assert len(asked) == 3  # of two steps each: one a pass
    for before, after in ((0, 1), (1, 2)):
        assert any(not torch.equal(asked[before][name], asked[after][name]) for name in asked[0])


def test_seeds_and_collections_draw_answers_of_their_own():
    drawn = []

    def sampler(policy, prompts, generator):
        drawn.append(int(torch.randint(2**60, (1,), generator=generator)))
        return [torch.tensor([5, 6, 2])] * len(prompts)

    for seed in (0, 1, 0):
        source = toy_rollouts(create("grpo"), 10, 8, 4, sampler=sampler)
        source.plan = RolloutPlan(10, 8, 4, seed, prompts=8, passes=2)
        fit(create("grpo"), source, steps=4)
    assert drawn[:2] == drawn[4:]
    assert len(set(drawn)) == 4


# ------------------------------------------------------------------------------------------- credit


@pytest.mark.parametrize("name", ["grpo", "rloo"])
def test_equal_rewards_teach_nothing(name):
    objective = create(name, beta=0.0)
    source = toy_rollouts(objective, 10, 8, 2, annotator=Same())
    before = {n: p.detach().clone() for n, p in toy_module(objective).policy.named_parameters()}
    after = fit(objective, source, steps=2, dtype=torch.float64, lr=1.0)
    assert source.measures["equal_groups"] == 1.0
    assert source.measures["annotation_half"] == 1.25
    assert all(torch.equal(before[n], p) for n, p in after.policy.named_parameters())


def test_what_credit_refuses_is_told_as_a_wrong_request():
    source = toy_rollouts(create("rloo"), 10, 8, 2, samples=1)
    with pytest.raises(RequestError, match="group_size of at least 2"):
        fit(create("rloo"), source, steps=2)


def test_the_reference_is_asked_once_a_collection():
    asked = []
    objective = create("grpo", beta=0.5)
    source = toy_rollouts(objective, 10, 8, 4)

    class Count(L.Callback):
        def on_fit_start(self, trainer, module):
            whole = module.reference.policy
            module.reference.policy = lambda device: asked.append(1) or whole(device)

    fit(objective, source, steps=4, callbacks=[Count()])
    assert len(asked) == 2  # four steps are two collections


def test_adaptive_kl_by_hand():
    # error clipped at 0.2: 0.5 (1 + 100/1000 · 0.2); inside it: (7/6 - 1) · 100/1000
    steer = AdaptiveKL(target=6.0, horizon=1000.0)
    assert steer.follow(0.5, 60.0, 100) == pytest.approx(0.51, abs=1e-15)
    assert steer.follow(0.5, 0.0, 100) == pytest.approx(0.49, abs=1e-15)
    assert steer.follow(0.5, 7.0, 100) == pytest.approx(0.5 * (1 + 0.1 / 6), abs=1e-15)
    assert steer.follow(0.5, 6.0, 100) == 0.5


def test_the_coefficient_follows_its_target():
    objective = create("grpo", beta=0.5)
    source = toy_rollouts(objective, 10, 8, 6)
    source.adaptive = AdaptiveKL(target=1e-6, horizon=24.0)  # 24 answers a collection: a fifth more each time
    betas = []

    class Watch(L.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            betas.append(module.objective.beta)

    fit(objective, source, steps=6, callbacks=[Watch()])
    assert betas == pytest.approx([0.5, 0.5, 0.6, 0.6, 0.72, 0.72])
    assert source.measures["beta"] == pytest.approx(0.72)


# ------------------------------------------------------------------------------------------- a collection


def collection(rewards: list[float], lengths: list[int]) -> Collection:
    answers = [torch.arange(3, 3 + n) for n in lengths]
    per_token = torch.arange(len(lengths) * max(lengths)).view(len(lengths), -1).float()
    return Collection(toy_examples(2), answers, {"annotation": torch.tensor(rewards), "advantages": per_token})


def test_a_batch_is_cut_to_its_own_width_and_a_filler_weighs_nothing():
    made = collection([1.0, 2.0, 3.0, 4.0], [5, 2, 3, 1])
    batch = made.batch([1])
    assert batch.completion_lengths.tolist() == [3, 1]
    assert batch.columns["advantages"].tolist() == [[10.0, 11.0, 12.0], [15.0, 16.0, 17.0]]
    assert batch.columns["annotation"].tolist() == [3.0, 4.0]
    assert batch.columns["weight"].tolist() == [1.0, 1.0]
    assert made.batch([1], filler=True).columns["weight"].tolist() == [0.0, 0.0]
    both = made.batch([1, 0])
    assert both.group.tolist() == [0, 0, 1, 1]
    assert both.columns["row"].tolist() == [1, 1, 0, 0]
    assert both.columns["place"].tolist() == [0, 1, 0, 1]
    assert both.prompts()[0].tolist() == made.prompts[1].prompt.tolist()


def test_ranks_are_put_back_in_the_order_of_the_collection():
    def of(places: list[int], width: int) -> Found:
        n = 2 * len(places)
        mask = torch.zeros(n, width, dtype=torch.bool)
        mask[:, 0] = True
        logps = torch.tensor([[float(10 * place + k)] for place in places for k in range(2)]).expand(n, width)
        answers = {place: [torch.tensor([place, k]) for k in range(2)] for place in places}
        judged = {"annotation": logps[:, 0].double() / 10}
        return Found(answers, judged, Scores(logps=logps, mask=mask, columns={"group": torch.zeros(n)}))

    found = ordered([of([2, 0], 3), of([1], 1)])
    assert list(found.answers) == [0, 1, 2]
    assert found.scores.logps[:, 0].tolist() == [0, 1, 10, 11, 20, 21]
    assert found.judged["annotation"].tolist() == [0, 0.1, 1.0, 1.1, 2.0, 2.1]
    assert found.scores.columns["group"].tolist() == [0, 0, 1, 1, 2, 2]
    assert found.scores.mask.sum(1).tolist() == [1] * 6


def test_joined_scores_are_as_wide_as_the_widest():
    def ones(*shape: int) -> Scores:
        return Scores(torch.ones(shape), torch.ones(shape, dtype=torch.bool), columns={"entropy": torch.ones(shape)})

    both = joined([ones(1, 1), ones(2, 3)])
    assert both.mask.tolist() == [[True, False, False], [True] * 3, [True] * 3]
    assert both.columns["entropy"].tolist() == [[1, 0, 0], [1, 1, 1], [1, 1, 1]]
    assert both.values is None
    assert both.ref_logps is None


def test_measures_by_hand():
    # Two prompts with two answers: rewards 1, 3 and 2, 2. log-ratios 0.5 and 0.5+0.5, then 0 and -1.
    mask = torch.tensor([[1, 0], [1, 1], [1, 0], [1, 0]]).bool()
    gap = torch.tensor([[0.5, 9.0], [0.5, 0.5], [0.0, 9.0], [-1.0, 9.0]]).double()
    entropy = torch.tensor([[1.0, 9.0], [2.0, 3.0], [4.0, 9.0], [0.0, 9.0]]).double()
    scores = Scores(logps=gap - 1, mask=mask, ref_logps=torch.full((4, 2), -1.0).double(), columns={"entropy": entropy})
    answers = {0: [torch.tensor([2]), torch.tensor([5, 2])], 1: [torch.tensor([7]), torch.tensor([7])]}
    judged = {"annotation": torch.tensor([1.0, 3.0, 2.0, 2.0]).double(), "watched": torch.tensor([0.0, 0.0, 0.0, 4.0])}
    found = measures_of(Found(answers, judged, scores), (2,))
    k3 = 3 * (np.exp(-0.5) - 1 + 0.5) + 0 + (np.exp(1) - 1 - 1)
    assert found == pytest.approx(
        {
            "annotation": 2.0,
            "watched": 1.0,
            "annotation_spread": 0.5,  # 1 and 0
            "equal_groups": 0.5,
            "sampled_kl": (0.5 + 1.0 + 0 - 1) / 4,
            "sampled_kl_k3": k3 / 4,
            "entropy": 10 / 5,
            "answer_length": 5 / 4,
            "capped": 0.5,
            "distinct": (2 / 2 + 1 / 2) / 2,
        },
        abs=1e-12,
    )


# ------------------------------------------------------------------------------------------- losses on recorded rows


def test_the_best_and_the_worst_are_a_prompts_pair():
    made = collection([1.0, 5.0, 3.0, 4.0, 4.0, 4.0], [1, 2, 3, 1, 2, 3])
    first, second = as_examples(made, lambda ids: str(len(ids)), "best_worst", np.random.default_rng(0))
    assert first.example.completions == ("2", "3", "1")
    assert first.example.scores == (5.0, 3.0, 1.0)
    assert [len(ids) for ids in first.completions] == [2, 3, 1]
    assert (first.example.confidence, second.example.confidence) == (1.0, 0.0)  # a tie weighs nothing
    assert first.example.prompt == made.prompts[0].example.prompt


def test_a_random_pair_is_any_two_in_their_order():
    made = collection([1.0, 5.0, 3.0, 7.0, 8.0, 9.0], [1, 2, 3, 1, 2, 3])
    seen = set()
    for seed in range(60):
        pair, _ = as_examples(made, str, "random", np.random.default_rng(seed))
        assert pair.example.scores[0] > pair.example.scores[1]
        seen.add(pair.example.scores)
    assert seen == {(5.0, 1.0), (5.0, 3.0), (3.0, 1.0)}


@pytest.mark.parametrize("name", ["sft", "dpo", "kto", "ipo", "simpo", "orpo"])
def test_any_loss_on_pairs_or_demonstrations_learns_from_answers(name):
    """The judge likes large ids: training raises them, which recorded rows say nothing of. Twelve collections, all on
    the same prompts; without training their means are within 0.1 of each other."""
    said = []

    class Liked(ToyJudge):
        def __call__(self, answers) -> Judged:
            found = super().__call__(answers)
            said.append(found.reward.mean())
            return found

    objective = create(name)
    source = toy_rollouts(objective, 22, 20, 24, sampler=sampled, annotator=Liked())
    train_toy(objective, source=source, batch_size=20, micro_batch_size=20, lr=1.0)
    assert source.collections == len(said) == 12
    assert said[-1] > said[0] + 0.3


def sampled(policy, prompts, generator):
    """By the policy, which the toy's own sampler does not ask."""
    options = {"max_new_tokens": 5, "temperature": 1.0, "batch_size": 64, "quiet": True}
    return generate(policy, prompts, generator=generator, **options)


def test_a_first_collection_that_teaches_nothing_is_no_broken_run():
    """All its answers are worth the same, and no weight moves; the check waits for the second."""

    class Later(ToyJudge):
        calls = 0

        def __call__(self, answers) -> Judged:
            self.calls += 1
            return Same()(answers) if self.calls == 1 else Judged(super().__call__(answers).reward, {})

    objective = create("grpo", beta=0.0)
    check = SelfCheck(own_answers=True)
    fit(objective, toy_rollouts(objective, 10, 8, 4, annotator=Later()), callbacks=[check])
    assert not check._before
    with pytest.raises(RequestError, match="have not moved"):
        fit(objective, toy_rollouts(objective, 10, 8, 4, annotator=Later()), callbacks=[SelfCheck()])


def test_the_optimised_reward_of_held_out_answers_leaves_the_statistics_alone():
    """Two in a row are worth the same; a rule that fails on them costs nothing but the number."""
    answers = [Answer("p", "", torch.tensor([i, 2]), True, None) for i in (3, 5, 9)]
    running = Scaled(ToyJudge(), running=True)
    running(answers)
    source = toy_rollouts(create("grpo"), 10, 8, 4, annotator=running)
    more = [Answer("p", "", torch.tensor([i, 2]), True, None) for i in (11, 12)]
    first = source.judge(more)
    assert source.judge(more).tolist() == first.tolist()
    # Means of the ids over ten are .25, .35, .55, then .65 and .7: mean .38333, standard deviation .124722.
    assert first == pytest.approx([2.138090, 2.538981], abs=1e-5)

    class Refusing(ToyJudge):
        def __call__(self, answers) -> Judged:
            raise RequestError("no completion is recorded")

    assert toy_rollouts(create("grpo"), 10, 8, 4, annotator=Refusing()).judge(more) is None


# ------------------------------------------------------------------------------------------- going on


def test_a_run_goes_on_inside_a_collection():
    """Killed after its first step of two: the second trains on the answers of the first's policy, not on new ones."""
    objective = create("grpo", beta=0.5)
    whole = toy_rollouts(objective, 10, 8, 4)
    states, seen = [], []

    class Watch(L.Callback):
        def __init__(self, source):
            self.source = source

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            states.append(self.source.state_dict())
            seen.append(batch)

    fit(objective, whole, steps=4, callbacks=[Watch(whole)], lr=1.0)
    resumed = toy_rollouts(objective, 10, 8, 4, sampler=None)  # which must not be asked
    resumed.load_state_dict(states[0])
    trainer = SimpleNamespace(lightning_module=SimpleNamespace(objective=objective))
    resumed.attach(trainer)
    shown, rows = resumed.step(1)
    batch = shown.batch(rows)
    assert torch.equal(batch.completion_ids, seen[1].completion_ids)
    for name, column in seen[1].columns.items():
        assert torch.equal(batch.columns[name], column), name
    tokens = sum(len(ids) for ids in states[0]["answers"])
    assert resumed.made() == {**states[0]["measures"], "collections": 1, "answers": 24, "answer_tokens": tokens}


def test_nothing_is_kept_before_the_first_collection():
    assert toy_rollouts(create("grpo"), 10, 8, 4).state_dict() == {}


def test_a_judge_that_needs_a_reference_sees_the_first_answers():
    class Held(ToyJudge):
        calibrated, seen = False, 0

        def calibrate(self, answers):
            self.calibrated, self.seen = True, len(answers)

    judge = Held()
    fit(create("grpo"), toy_rollouts(create("grpo"), 10, 8, 4, annotator=judge), steps=4)
    assert judge.seen == 24


# ------------------------------------------------------------------------------------------- a critic of its own


def with_critic(objective, lr=0.1):
    """The toy module with a second model for the values."""
    module = toy_module(objective, lr=lr)
    critic = Policy(toy_model(3), frozenset({"value"})).double()
    policy = Policy(module.policy.model, objective.needs.heads, end_ids=(2,), critic=critic).double()
    return PreferenceModule(objective, policy, module.reference, module.make_optimizer, module.schedule), critic


def test_a_separate_critic_says_the_values_and_learns_them_alone():
    objective = create("ppo", beta=0.0)
    module, critic = with_critic(objective)
    source = toy_rollouts(objective, 10, 8, 2)
    assert list(module.policy.heads) == []
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        max_steps=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    before = {name: p.detach().clone() for name, p in module.policy.named_parameters()}
    trainer.fit(module, datamodule=PreferenceData(source, None))
    shown, rows = source.step(1)
    batch = shown.batch(rows)
    scores = module.score(batch)
    alone = score(critic, batch, frozenset({"value"}))
    assert torch.equal(scores.values, alone.values)
    values = next(term for term in objective.all_terms(scores, {}) if term.name == "value")
    reached = torch.autograd.grad(values.sum, list(module.policy.parameters()), allow_unused=True)
    named = zip(dict(module.policy.named_parameters()), reached, strict=True)
    assert {name.split(".")[0] for name, gradient in named if gradient is not None} == {"critic"}
    moved = {name.split(".")[0] for name, p in module.policy.named_parameters() if not torch.equal(before[name], p)}
    assert moved == {"model", "critic"}
