"""A classifier that a run trained, as annotator."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from prefopt.errors import RequestError
from prefopt.jobs import annotator
from prefopt.jobs.loading import open_judge
from prefopt.rewards.model import Model, judged, judged_all
from tests.models.saved import pairs_file, saved_model, tokenizer, trained
from tests.rewards.made import answer, built


@pytest.fixture(scope="module")
def rm(tmp_path_factory) -> Path:
    """The folder of a run that trained a reward model."""
    folder = tmp_path_factory.mktemp("rm")
    base = saved_model(folder / "base")
    pairs_file(folder)
    return trained(folder, "model=hf", f"model.name={base}", "loss=bradley_terry", "optimizer.lr=0.05")


@pytest.fixture
def told(monkeypatch) -> list[str]:
    """What was said while an annotator was built."""
    found: list[str] = []
    monkeypatch.setattr(annotator, "say", found.append)
    return found


TURNS = "{% for m in messages %}{{ m['content'] }} {% endfor %}"


def many(n: int) -> list:
    """Answers of different lengths to prompts of different lengths, of which each returns."""
    words = np.random.default_rng(1).integers(1, 20, (n, 12))
    prompts = [" ".join(f"w{i + k}" for k in range(1 + i)) for i in range(5)]
    return [
        answer(" ".join(f"w{k}" for k in row[: 1 + i % 11]), prompts[i % 5]) for i, row in enumerate(words.tolist())
    ]


def test_rewards_are_those_of_one_at_a_time(rm):
    """Over several batches of 64, whatever stands beside an answer."""
    answers = many(150)
    found = built("model", f"name={rm}")(answers)
    judge = open_judge(str(rm))
    alone = [judged(judge, one.prompt, [one.text])[0] for one in answers]
    assert found.reward == pytest.approx(alone, abs=1e-6)
    assert len(np.unique(found.reward.round(6))) > 100
    assert found.reward.dtype == np.float64
    assert list(found.parts) == ["unread"]
    assert not found.parts["unread"].any()


def test_rewards_are_those_of_transformers(rm):
    """Of prompt, answer and end; of the end alone where nothing was said."""
    found = built("model", f"name={rm}")([answer("w5 w6"), answer("")]).reward
    model, words = AutoModelForSequenceClassification.from_pretrained(rm / "model"), tokenizer()
    with torch.no_grad():
        expected = [float(model(**words(f"w3 w4 {said}<eos>", return_tensors="pt")).logits) for said in ("w5 w6 ", "")]
    assert found == pytest.approx(expected, abs=1e-5)


def test_a_prompt_is_rendered_once_and_batches_are_of_like_lengths(rm, monkeypatch):
    judge = open_judge(str(rm))
    rendered, lengths = [], []
    plain, model = judge.renderer.prompt, judge.model

    def render(prompt, source=""):
        rendered.append(prompt)
        return plain(prompt, source)

    class Watched:
        policy = model.policy

        def __call__(self, prompts, completions):
            lengths.extend(len(prompt) + len(said) for prompt, said in zip(prompts, completions, strict=True))
            return model(prompts, completions)

    monkeypatch.setattr(judge.renderer, "prompt", render)
    object.__setattr__(judge, "model", Watched())
    answers = many(30)
    judged_all(judge, [one.prompt for one in answers], [one.text for one in answers])
    assert len(rendered) == len(set(rendered)) == 5
    assert lengths == sorted(lengths, reverse=True)


def test_what_it_cannot_read_never_pays(rm):
    """A template's mark and an answer too long are worth the least of the others; alone, nothing."""
    texts = ["w5", "<|im_start|> w5", "w6 w7", "w5 " * 200, ""]
    judge = built("model", f"name={rm}")
    found = judge([answer(text) for text in texts])
    assert found.parts["unread"].tolist() == [0, 1, 0, 1, 0]
    known = judged(open_judge(str(rm)), "w3 w4", ["w5", "w6 w7", ""])
    least = min(known)
    assert found.reward == pytest.approx([known[0], least, known[1], least, known[2]], abs=1e-6)
    assert least != 0
    nothing = judge([answer("<|im_start|>")])
    assert (nothing.reward.tolist(), nothing.parts["unread"].tolist()) == ([0], [1])
    assert judge([]).reward.shape == (0,)


def test_a_prompt_it_cannot_read_is_named(rm):
    with pytest.raises(RequestError, match=r"the prompt \"<\|im_start\|> w3\": the prompt begins with"):
        built("model", f"name={rm}")([answer(prompt="<|im_start|> w3")])


def test_an_ensemble_asks_every_member(rm, tmp_path):
    """The run and its model/ are the same; they agree, and so the lower bound is the mean."""
    found = built("ensemble", f"names=[{rm},{rm}/model]", "combine=lower", "k=5")(many(5))
    alone = built("model", f"name={rm}")(many(5)).reward
    for name in ("member_0", "member_1"):
        assert found.parts[name] == pytest.approx(alone, abs=1e-6)
    assert found.parts["disagreement"] == pytest.approx([0] * 5, abs=1e-6)
    assert found.reward == pytest.approx(alone, abs=1e-5)


def test_a_name_is_refused_under_its_key(tmp_path):
    for option, override, key in (
        ("model", f"name={tmp_path}/rn", "reward.name"),
        ("ensemble", f"names=[{tmp_path}/rn,{tmp_path}/rm]", "reward.names"),
        ("sum", f"parts={{a:{{kind:model,name:{tmp_path}/rn}}}}", "reward.parts.a.name"),
    ):
        with pytest.raises(RequestError) as error:
            built(option, override)
        assert str(error.value).startswith(f"{key}={tmp_path}/rn: no such folder")


# ---------------------------------------------------------------- warnings


def graded(rm: Path, monkeypatch, test: float | None, world: float | None = None) -> None:
    """The run's summary says so much of its accuracy."""
    summary = json.loads((rm / "summary.json").read_text())
    summary["test"] = {**(summary["test"] or {}), "accuracy": test}
    summary["world"] = None if world is None else {"accuracy_of_ceiling": world}
    real = annotator.judging_run

    def found(name: str, key: str):
        run = real(name, key)
        run.summary.update(summary)
        return run

    monkeypatch.setattr(annotator, "judging_run", found)


@pytest.mark.parametrize(
    ("test", "world", "least", "said"),
    [
        (0.69, None, "0.7", "an accuracy of 0.690 on its test pairs, under reward.least_accuracy=0.7:"),
        (0.70, None, "0.7", None),
        (0.75, None, "0.8", "an accuracy of 0.750 on its test pairs, under reward.least_accuracy=0.8:"),
        (0.1, None, "null", None),
        (None, None, "0.7", None),
        (0.68, 0.91, "0.7", None),  # as right as its noisy labels let it be
        (0.99, 0.89, "0.7", "0.890 of the accuracy that its noisy labels allow, under 0.9:"),
        (0.1, 0.1, "null", None),
    ],
)
def test_a_weak_model_draws_a_warning(rm, monkeypatch, told, test, world, least, said):
    graded(rm, monkeypatch, test, world)
    built("model", f"name={rm}", f"least_accuracy={least}")
    assert told == ([] if said is None else [f"reward.name={rm}: this reward model attains {said} answers may learn"
                                              " its mistakes"])  # fmt: skip


def test_every_member_is_warned_of(rm, monkeypatch, told):
    graded(rm, monkeypatch, 0.5)
    built("ensemble", f"names=[{rm},{rm}/model]")
    assert [line.partition(":")[0] for line in told] == [f"reward.names={rm}", f"reward.names={rm}/model"]


def test_a_model_of_no_run_draws_none(rm, tmp_path, told):
    (tmp_path / "elsewhere").symlink_to(rm / "model")
    built("model", f"name={tmp_path / 'elsewhere'}")
    assert told == []


def test_turns_judged_as_plain_text_draw_a_warning(rm, tmp_path, told):
    """Of a policy with a template, where the reward model has none."""
    (tmp_path / "plain").symlink_to(rm / "model")
    built("model", f"name={tmp_path / 'plain'}", chat=True)
    assert len(told) == 1
    assert told[0].startswith(f"reward.name={tmp_path / 'plain'} has no chat template, and the policy has")
    told.clear()
    for file in (rm / "model").iterdir():
        (tmp_path / "turns").mkdir(exist_ok=True)
        (tmp_path / "turns" / file.name).write_bytes(file.read_bytes())
    words = tokenizer()
    words.chat_template = TURNS
    words.save_pretrained(tmp_path / "turns")
    built("model", f"name={tmp_path / 'turns'}", chat=True)
    assert told == []


def test_an_overflow_is_not_a_reward(rm, monkeypatch):
    """What the model says that is no number counts as unread."""
    judge = Model(open_judge(str(rm)))
    monkeypatch.setattr("prefopt.rewards.model.judged_all", lambda *_: np.array([math.inf, 2.0]))
    found = judge([answer(), answer()])
    assert (found.reward.tolist(), found.parts["unread"].tolist()) == ([2, 2], [1, 0])
