"""What the guards see, what they say, and what the run does then."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch

from prefopt.callbacks.guards import Guards
from prefopt.config import compose_request
from prefopt.objectives import create
from prefopt.rewards import Judged
from prefopt.rewards.base import Stateless
from prefopt.rollouts.guards import GUARDS, Alarm, smoothed
from prefopt.settings.guards import GuardSettings, GuardsSettings
from tests.rollouts.test_source import Same, fit
from tests.toy import toy_rollouts


def seen(**measures: list[float]) -> dict[str, np.ndarray]:
    return {name: np.array(values) for name, values in measures.items()}


def test_smoothing_by_hand():
    """One stumble is not seen in a median of three; what lasts is."""
    history = [{"a": value} for value in (1.0, 3.0, 8.0, -90.0, 9.0)]
    assert smoothed(history, 1)["a"].tolist() == [1, 3, 8, -90, 9]
    assert smoothed(history, 2)["a"].tolist() == [2, 5.5, -41, -40.5]
    assert smoothed(history, 3)["a"].tolist() == [3, 3, 8]


# (guard, bound, what trips it, what does not, a word it says)
CASES = [
    ("kl", 5.0, seen(sampled_kl=[1, 5.1]), seen(sampled_kl=[9, 5.0]), "5.1 nats"),
    # The reward was as high when the KL was 1, and 4 when it was higher still.
    (
        "kl_for_nothing",
        2.0,
        seen(annotation=[0, 2, 3, 2], sampled_kl=[0, 1, 4, 3.1]),
        seen(annotation=[0, 2, 3, 2], sampled_kl=[0, 1, 4, 3.0]),
        "from 1.0 to 3.1",
    ),
    (
        "kl_for_nothing",
        2.0,
        seen(annotation=[0, 0], sampled_kl=[0, 3]),
        seen(annotation=[0, 0.1], sampled_kl=[0, 3]),  # more reward than ever
        "no higher",
    ),
    ("entropy", 0.5, seen(entropy=[2, 0.49]), seen(entropy=[0.1, 0.5]), "0.490 nats a token"),
    ("length", 0.5, seen(capped=[0, 0.51]), seen(capped=[0.9, 0.5]), "51%"),
    ("variety", 0.25, seen(distinct=[1, 0.24]), seen(distinct=[0.1, 0.25]), "24%"),
    ("equal_rewards", 0.9, seen(equal_groups=[0, 0.91]), seen(equal_groups=[1, 0.9]), "91%"),
    (
        "below_start",
        2.0,
        seen(annotation=[1.0, 0.0, -0.1], annotation_spread=[0.5, 9, 9]),
        seen(annotation=[1.0, -9.0, 0.0], annotation_spread=[0.5, 9, 9]),
        "from 1.000 to -0.100",
    ),
    # Gained 1 of which 0.11 is lost; on the way up it moved by 0.1 a collection at most.
    (
        "overoptimised",
        0.1,
        seen(watched=[*np.linspace(0, 1, 11), 0.85], annotation=range(12)),
        seen(watched=[*np.linspace(0, 1, 11), 0.95], annotation=range(12)),
        "from 1.000 to 0.850",
    ),
    (
        "overoptimised",
        0.1,
        seen(watched=[*np.linspace(0, 1, 11), 0.85], annotation=range(12)),
        seen(watched=[*np.linspace(0, 1, 11), 0.85], annotation=[*range(11), 9]),  # the reward fell as well
        "mistakes",
    ),
    # In units of its running spread the reward seems to fall.
    (
        "overoptimised",
        0.1,
        seen(watched=[*np.linspace(0, 1, 11), 0.85], annotation=[*range(11), 9], annotation_raw=range(12)),
        seen(watched=[*np.linspace(0, 1, 11), 0.85], annotation=range(12), annotation_raw=[*range(11), 9]),
        "mistakes",
    ),
    ("overoptimised", 0.1, seen(watched=[0, 1, 0, -1], annotation=range(4)), seen(annotation=range(4)), "fell"),
]


@pytest.mark.parametrize(("name", "at", "wrong", "right", "word"), CASES)
def test_what_trips_a_guard_and_what_does_not(name, at, wrong, right, word):
    said = GUARDS[name](wrong, at)
    assert said is not None
    assert word in said
    assert GUARDS[name](right, at) is None


def test_no_loss_within_what_it_moves_anyway():
    """From 0 to 1 and back and forth by 0.4 a collection: a fall of 0.3 from the best is nothing."""
    watched = [0, 0.6, 0.2, 0.8, 0.4, 1.0, 0.7]
    assert GUARDS["overoptimised"](seen(watched=watched, annotation=range(7)), 0.1) is None
    assert GUARDS["overoptimised"](seen(watched=[*watched, 0.3], annotation=range(8)), 0.1) is not None


def test_every_guard_can_be_set():
    request = compose_request(["guards.kl.do=rollback", "guards.kl.at=3"])
    guards = request.settings.guards
    assert set(guards.each()) == set(GUARDS)
    assert (guards.kl.do, guards.kl.at) == ("rollback", 3.0)


# ------------------------------------------------------------------------------------------- the callback


def settings(patience: int = 1, **actions: tuple[float, str]) -> GuardsSettings:
    """All off but the named ones."""
    chosen = {name: GuardSettings(at=0.0, do="off") for name in GUARDS}
    return GuardsSettings(
        window=1, patience=patience, **{**chosen, **{n: GuardSettings(at=at, do=do) for n, (at, do) in actions.items()}}
    )


class Lengths(Stateless):
    """The longer the better."""

    def __call__(self, answers) -> Judged:
        return Judged(np.array([float(len(answer.ids)) for answer in answers]), {})


def run(guards: GuardsSettings, steps: int = 8, **changes):
    """Two steps a collection."""
    objective, told = create("grpo"), []
    source = toy_rollouts(objective, 10, 8, steps, **changes)
    callback = Guards(source, guards, told.append)
    weights: list[dict[str, torch.Tensor]] = []

    class Watch(L.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            weights.append({name: p.detach().clone() for name, p in module.policy.named_parameters()})

    module = fit(objective, source, steps=steps, lr=1.0, callbacks=[Watch(), callback], dtype=torch.float64)
    callback.go_back(module)
    return callback, told, module, weights


def test_a_constant_reward_stops_the_run():
    callback, told, module, _ = run(settings(equal_rewards=(0.9, "stop")), annotator=Same())
    assert module.trainer.global_step == 1
    assert callback.ends.guard == "equal_rewards"
    said = {"guard": "equal_rewards", "step": 0, "action": "stop", "sentence": callback.ends.sentence, "back_to": None}
    assert told == [[said]]


def test_rewarded_length_is_stopped_where_answers_reach_the_cap():
    """Each collection's answers are a token longer, and from six on they are cut."""
    calls = []

    def longer(policy, prompts, generator):
        calls.append(1)
        n = 3 + len(calls)
        return [torch.tensor([5] * n if n > 5 else [5] * (n - 1) + [2])] * len(prompts)

    callback, _, module, _ = run(settings(length=(0.5, "stop")), steps=12, sampler=longer, annotator=Lengths())
    assert (callback.ends.guard, callback.ends.step) == ("length", 4)
    assert module.trainer.global_step == 5


def test_patience_is_collections_in_a_row():
    callback, _, module, _ = run(settings(3, equal_rewards=(0.9, "stop")), steps=12, annotator=Same())
    assert (callback.ends.step, module.trainer.global_step) == (4, 5)  # the third collection, of two steps each

    class Now(Stateless):
        """Alike but for every third collection."""

        calls = 0

        def __call__(self, answers) -> Judged:
            self.calls += 1
            differ = np.arange(len(answers)) * (self.calls % 3 == 0)
            return Judged(differ.astype(float), {})

    callback, _, _, _ = run(settings(3, equal_rewards=(0.9, "stop")), steps=12, annotator=Now())
    assert callback.ends is None


def test_a_warning_is_given_once_and_the_run_goes_on():
    callback, told, module, _ = run(settings(equal_rewards=(0.9, "warn")), annotator=Same())
    assert module.trainer.global_step == 8
    assert callback.ends is None
    assert len(told) == 1


class Falling(Stateless):
    """Rises twice, then falls."""

    def __init__(self) -> None:
        self.said = iter([0.0, 1.0, 3.0, 2.0, 1.0, 0.0])

    def __call__(self, answers) -> Judged:
        return Judged(np.full(len(answers), next(self.said)), {})


class Rising(Stateless):
    def __init__(self) -> None:
        self.calls = 0.0

    def __call__(self, answers) -> Judged:
        self.calls += 1
        noise = [float(answer.ids.double().mean()) / 1000 for answer in answers]
        return Judged(self.calls + np.array(noise), {})


@pytest.mark.parametrize("do", ["stop", "rollback"])
def test_going_back_is_to_the_best_of_what_watches(do):
    """Best at the third collection, step 4; the fall shows at the fourth or fifth."""
    guards = settings(overoptimised=(0.1, do))
    callback, _, module, weights = run(guards, steps=12, watch=Falling(), annotator=Rising())
    end = callback.ends.step
    assert end in (6, 8)
    after = dict(module.policy.named_parameters())
    at_best = all(torch.equal(weights[4][name], after[name]) for name in after)
    assert at_best == (do == "rollback")
    assert callback.ends.back_to == (4 if do == "rollback" else None)
    assert module.trainer.global_step == end + 1


def test_a_run_that_was_stopped_stays_stopped():
    first, *_ = run(settings(equal_rewards=(0.9, "stop")), annotator=Same())
    again = Guards(toy_rollouts(create("grpo"), 10, 8, 8), settings(equal_rewards=(0.9, "stop")), partial(print))
    again.load_state_dict(first.state_dict())
    assert again.ends == first.ends
    assert again.history == first.history

    class Trainer:
        should_stop = False

    again.on_train_start(Trainer, None)
    assert Trainer.should_stop


def test_a_guard_that_only_warns_keeps_nobody_from_going_back():
    """Every answer is cut from the start, which is warned of; the best is at the third collection all the same."""
    guards = settings(overoptimised=(0.1, "rollback"), length=(0.0, "warn"))

    def endless(policy, prompts, generator):
        return [torch.tensor([5, 6])] * len(prompts)

    callback, _, _, _ = run(guards, steps=12, sampler=endless, watch=Falling(), annotator=Rising())
    assert "length" in {alarm.guard for alarm in callback.alarms}
    assert callback.ends.back_to == 4


def test_where_something_was_wrong_from_the_start_nothing_is_kept(capsys):
    callback, told, _, _ = run(settings(equal_rewards=(0.9, "rollback")), annotator=Same())
    assert callback.kept_at is None
    assert told[0][0]["back_to"] is None
    assert "nothing to go back to" in capsys.readouterr().err


@pytest.mark.parametrize(("batch_idx", "looks"), [(0, 0), (1, 1.0)])
def test_a_run_that_is_stopped_looks_at_held_out_rows_in_turn_only(batch_idx, looks):
    """After every second step. Lightning would look whenever it stops; the evaluation at the end needs its rows."""
    callback = Guards(SimpleNamespace(), settings(), print)
    trainer = SimpleNamespace(should_stop=False, accumulate_grad_batches=1, val_check_batch=2, limit_val_batches=1.0)
    callback.on_train_batch_end(trainer, None, None, None, batch_idx)
    assert not trainer.should_stop
    callback.alarms.append(Alarm("length", 0, "stop", "too long", None))
    for _ in range(2):
        callback.on_train_batch_end(trainer, None, None, None, batch_idx)
        assert (trainer.should_stop, trainer.limit_val_batches) == (True, looks)
    callback.on_train_end(trainer, None)
    assert trainer.limit_val_batches == 1.0
