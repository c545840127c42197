"""The known optimum's samples: whose they are, what they are worth, what each policy says of them, where they are kept.

Policies of 23 tokens and answers of at most two, so that all answers can be listed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from prefopt.jobs import optimum, pooling
from prefopt.jobs.optimum import known_optimum, parts, spanning
from prefopt.metrics.optimum import Pool, mean_curve, prompt_curve
from prefopt.models.policy import Policy
from prefopt.reports.compare.runs import Run, read_runs
from tests.reports.fake import write_run
from tests.toy import VOCAB, exact_rmsnorm, toy_model

END = 2
PROMPTS = ["1 5 9", "7"]
COUNTS = [400, 300, 200]
ANSWERS = [(END,), *((a, b) for a in range(VOCAB) if a != END for b in range(VOCAB))]


def ids(text: str) -> torch.Tensor:
    return torch.tensor([int(word) for word in text.split()])


@pytest.fixture(scope="module")
def policies() -> Iterator[list[Policy]]:
    """Far enough apart that taking one for another shows."""
    with exact_rmsnorm():
        yield [Policy(toy_model(seed, spread=0.5).eval(), end_ids=(VOCAB,)) for seed in range(3)]


@pytest.fixture(scope="module")
def listed(policies) -> np.ndarray:
    """[P, K, answers] log-probs of every answer, by the models' own forward pass."""
    table = np.empty((len(PROMPTS), len(policies), len(ANSWERS)))
    with torch.no_grad():
        for p, text in enumerate(PROMPTS):
            for k, policy in enumerate(policies):
                prompt = ids(text)
                first = policy.model(prompt[None]).logits[0, -1].log_softmax(-1)
                longer = torch.stack([torch.cat([prompt, torch.tensor([a])]) for a in range(VOCAB)])
                second = policy.model(longer).logits[:, -1].log_softmax(-1)
                table[p, k] = [first[y[0]] if len(y) == 1 else first[y[0]] + second[y] for y in ANSWERS]
    return table


@pytest.fixture(scope="module")
def rewards() -> np.ndarray:
    """[P, answers]: no two are the same, so a reward says which answer to which prompt it is of."""
    return np.random.default_rng(0).normal(size=(len(PROMPTS), len(ANSWERS)))


@pytest.fixture(scope="module")
def kept(policies, rewards, tmp_path_factory) -> tuple[list[Pool], list[float]]:
    """What `save_pools` writes of these policies, read again."""

    def gold(prompt: str, text: str) -> float:
        return rewards[PROMPTS.index(prompt), ANSWERS.index(tuple(map(int, text.split())))]

    renderer = SimpleNamespace(
        prompt=lambda text: ids(text).numpy(), text=lambda said: " ".join(map(str, said)), end_ids=(END,)
    )
    base, *trained = [SimpleNamespace(policy=lambda p=policy: p, renderer=renderer, base=None) for policy in policies]
    world = SimpleNamespace(gold=gold, largest=lambda prompt: rewards[PROMPTS.index(prompt)].max())
    first = SimpleNamespace(config={"evaluation": {"max_new_tokens": 2}})
    folder = tmp_path_factory.mktemp("pools")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pooling, "_start", lambda run, cache: (base, world))
        patch.setattr(pooling, "open_run", lambda run, base: trained[run.number])
        patch.setattr(pooling, "ROWS", 128)
        runs = [SimpleNamespace(number=number, adapted=False) for number in range(2)]
        pooling.save_pools(folder, first, runs, PROMPTS, COUNTS, folder)
    return optimum._read(folder / "pools.npz")


def test_every_sample_has_its_own_reward_and_its_own_log_probs(kept, listed, rewards):
    """Of its prompt and under each policy, as listed."""
    pools, largest = kept
    assert largest == rewards.max(1).tolist()
    for p, pool in enumerate(pools):
        answers = np.array([np.flatnonzero(rewards[p] == reward).item() for reward in pool.rewards])
        np.testing.assert_allclose(pool.logps, listed[p][:, answers], rtol=0, atol=1e-9)
        assert pool.source.tolist() == np.repeat([0, 1, 2], COUNTS).tolist()
        for k in range(3):  # those of a policy are likeliest under it
            said = listed[p][:, answers[pool.source == k]].mean(1)
            assert int(said.argmax()) == k


def test_the_optimum_is_that_of_all_answers(kept, listed, rewards):
    """β whose π* the samples reach; the gain to 5 % of the mean over both prompts."""
    pools, _ = kept
    betas = np.array([3.0, 1.5, 1.0])
    curve = mean_curve([prompt_curve(pool, betas) for pool in pools])
    for i, beta in enumerate(betas):
        gains, kls = [], []
        for p in range(len(PROMPTS)):
            base = listed[p][0]
            log_best = base + rewards[p] / beta
            log_best -= np.logaddexp.reduce(log_best)
            gains.append(float((np.exp(log_best) - np.exp(base)) @ rewards[p]))
            kls.append(float(np.exp(log_best) @ (log_best - base)))
        assert curve.gain[i] == pytest.approx(np.mean(gains), rel=0.05, abs=3 * curve.gain_stderr[i])
        assert curve.kl[i] == pytest.approx(np.mean(kls), abs=4 * curve.kl_stderr[i])


def test_samples_of_equal_policies_are_others(policies):
    (answers,), _ = pooling.pooled([lambda: policies[0]] * 2, [ids("7")], [20, 20], 2)
    first, second = ([y.tolist() for y in some] for some in (answers[:20], answers[20:]))
    assert first != second


def test_scoring_in_parts_changes_nothing(policies, monkeypatch):
    answers = [[torch.tensor(y) for y in ANSWERS[:7]], [torch.tensor(y) for y in ANSWERS[7:14]]]
    prompts = [ids(text) for text in PROMPTS]
    whole = pooling._scored(lambda: policies[1], prompts, answers)
    monkeypatch.setattr(pooling, "ROWS", 3)
    np.testing.assert_allclose(pooling._scored(lambda: policies[1], prompts, answers), whole, rtol=0, atol=1e-12)


# ---------------------------------------------------------------- whose samples


def world_run(folder: Path, kl: float | None = 1.0, gold: float = 0.5, weights: str = "w", **more) -> Path:
    samples = {"kl": kl, "kl_stderr": 0.03, "gold_reward": gold, "gold_reward_stderr": 0.02, "length": 10.0}
    config = {
        "data": {"kind": "controlled", "batch_size": 16, "batch_tokens": None, "max_length": 64},
        "evaluation": {"batch_size": 64, "prompts": 2, "temperature": 1.0, "max_new_tokens": 16},
        "model": {"quant": None, "tiny": {"seed": 0}},
        "trainer": {"precision": 32},
    }
    run = write_run(
        folder,
        summary={"samples": samples, "model_hash": weights},
        **{**more, "config": config | more.get("config", {})},
    )
    (run / "model").mkdir()
    return run


def runs_of(*folders: Path) -> list[Run]:
    return read_runs(folders).runs


def test_runs_that_nothing_beats_spread_over_the_kl(tmp_path: Path):
    """In √KL 0.5 1 1.5 2 2.5 3, of which 1.5, 2.25 and 3 are wanted; the beaten one lies at 1.05."""
    golds = {0.25: 0.1, 1.0: 0.6, 2.25: 0.7, 4.0: 0.8, 6.25: 0.9, 9.0: 1.0}
    for seed, (kl, gold) in enumerate(golds.items()):
        world_run(tmp_path / f"{kl}", kl, gold, seed=seed)
    world_run(tmp_path / "beaten", 1.1, 0.55, seed=9)
    assert [run.path.name for run in spanning(runs_of(tmp_path))] == ["2.25", "4.0", "9.0"]
    assert [run.path.name for run in spanning(runs_of(tmp_path / "beaten", tmp_path / "4.0"))] == ["beaten", "4.0"]
    assert [run.path.name for run in spanning(runs_of(*(tmp_path / kl for kl in ("0.25", "2.25", "9.0"))))] == [
        "2.25",
        "9.0",
    ]


def test_parts_of_the_samples():
    assert parts(600, 3) == [150, 150, 150, 150]
    assert parts(101, 2) == [27, 37, 37]
    assert parts(100, 0) == [100]


# ---------------------------------------------------------------- where they are kept


@pytest.fixture
def made(monkeypatch) -> list[dict]:
    """Pools instead of models: 200 samples of two policies that are the same; what was asked for."""
    asked: list[dict] = []

    def save_pools(folder: Path, **request) -> None:
        asked.append(request)
        rng, n, k = np.random.default_rng(0), sum(request["counts"]), len(request["counts"])
        shape = (len(request["prompts"]), n)
        np.savez(
            folder / "pools.npz",
            rewards=rng.normal(size=shape),
            logps=np.full((shape[0], k, n), -5.0),
            source=np.repeat(np.arange(k), request["counts"]),
            largest=np.full(shape[0], 9.0),
        )

    monkeypatch.setattr(pooling, "save_pools", save_pools)
    return asked


def test_the_second_time_nothing_is_computed_wherever_the_run_lies(tmp_path: Path, made):
    world_run(tmp_path / "a/run")
    found, why = known_optimum(runs_of(tmp_path / "a"), 200, tmp_path / "cache")
    assert why == ""
    (request,) = made
    assert request["counts"] == [50, 150]
    assert request["prompts"] == ["prompt 0?", "prompt 1?"]
    assert [run.path.name for run in (request["first"], *request["trained"])] == ["run", "run"]
    world_run(tmp_path / "b/other", loss="ipo", seed=3)
    again, _ = known_optimum(runs_of(tmp_path / "b"), 200, tmp_path / "cache")
    world_run(tmp_path / "b/a beaten one", kl=2.0, gold=0.1, weights="others", loss="ipo", seed=4)
    known_optimum(runs_of(tmp_path / "b"), 200, tmp_path / "cache")
    assert len(made) == 1
    assert again.curve.gain.tolist() == found.curve.gain.tolist()


@pytest.mark.parametrize(
    "other",
    [
        {"weights": "others"},
        {"config": {"trainer": {"precision": "bf16-true"}}},
        {"config": {"model": {"quant": None, "tiny": {"seed": 1}}}},
        {"config": {"evaluation": {"prompts": 2, "temperature": 1.0, "max_new_tokens": 8}}},
    ],
)
def test_other_samples_are_taken_for_other_policies(tmp_path: Path, made, other):
    world_run(tmp_path / "a")
    known_optimum(runs_of(tmp_path / "a"), 200, tmp_path / "cache")
    world_run(tmp_path / "b", **other)
    known_optimum(runs_of(tmp_path / "b"), 200, tmp_path / "cache")
    known_optimum(runs_of(tmp_path / "b"), 201, tmp_path / "cache")
    assert len(made) == 3


def test_where_none_can_be_known_nothing_is_said(tmp_path: Path, made):
    world_run(tmp_path / "cooled", kl=None)
    write_run(tmp_path / "files")
    for name in ("cooled", "files"):
        assert known_optimum(runs_of(tmp_path / name), 200, tmp_path / "cache") == (None, "")
    assert made == []
    assert not (tmp_path / "cache").exists()


def test_why_there_is_none_is_said(tmp_path: Path, made):
    run = world_run(tmp_path / "a")
    (run / "model").rmdir()
    assert known_optimum(runs_of(run), 200, tmp_path / "cache") == (
        None,
        "No optimum: no run has kept its folder model/.",
    )
    world_run(tmp_path / "b", config={"model": {"quant": {"kind": "nf4"}}})
    world_run(tmp_path / "c", loss="ipo")
    _, why = known_optimum(runs_of(tmp_path / "b", tmp_path / "c"), 200, tmp_path / "cache")
    assert why == "No optimum: the runs' bases are not all quantised alike."
    known_optimum(runs_of(tmp_path / "c"), 200, tmp_path / "cache")
    (file,) = tmp_path.glob("cache/optimum/*/pools.npz")
    file.write_bytes(file.read_bytes()[:-20])
    assert "pools.npz cannot be read" in known_optimum(runs_of(tmp_path / "c"), 200, tmp_path / "cache")[1]
