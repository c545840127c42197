"""Reference kinds: whom the policy is held against in training, and whom in evaluation, is what was asked for."""

from __future__ import annotations

import json
import math
import shutil
from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch

from prefopt.callbacks.selfcheck import SelfCheck
from prefopt.callbacks.sync import SyncReference
from prefopt.config import compose_request
from prefopt.data.loader import Plan, Recorded, StepLoader
from prefopt.data.module import PreferenceData
from prefopt.data.views import view
from prefopt.errors import RequestError
from prefopt.models.build import build_policy, build_references, load_base, with_settings
from prefopt.models.policy import Policy
from prefopt.models.reference import AdapterOff, FrozenCopy, Snapshot, reference_logps
from prefopt.module import PreferenceModule
from prefopt.objectives import create
from prefopt.schedules import constant
from prefopt.scoring import score
from tests.models.saved import saved_model, settings, tokenizer, trained
from tests.models.test_adapter import three_steps
from tests.scoring.test_score import batch
from tests.toy import toy_examples, toy_model

LM = frozenset({"lm"})


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    return saved_model(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory) -> str:
    """An adapter with an opinion, as an SFT run leaves it."""
    folder = tmp_path_factory.mktemp("models") / "adapter"
    policy = build_policy(load_base(base, "float32"), settings("hf_lora", base, "model.adapter.rank=2").adapter, LM, 0)
    shake(policy)
    policy.model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


def shake(policy: Policy, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


def parts(name: str, *more: str, option: str = "hf_lora"):
    made = settings(option, name, *more)
    base = with_settings(load_base(name, "float32"), made)
    policy = build_policy(base, made.adapter, LM, seed=0)
    return base, policy, *build_references(made, base, policy)


def raw(base: str) -> torch.Tensor:
    return score(load_base(base, "float32").policy(), batch()).logps


# ---------------------------------------------------------------- an adapter that goes on


@pytest.mark.parametrize("kind", ["auto", "start", "copy"])
def test_continuing_an_adapter_starts_at_its_reference(base, adapter, kind):
    """π = π_ref: DPO's loss is log 2, and the reference stays there while the adapter moves on."""
    _, policy, reference, start = parts(adapter, f"model.reference={kind}")
    before = score(policy, batch()).logps.detach()
    assert not torch.allclose(before, raw(base), atol=0.1)
    assert torch.equal(reference_logps(reference, batch()), before)
    module = PreferenceModule(create("dpo"), policy, reference, partial(torch.optim.SGD, lr=1.0), constant)
    pairs = batch_of_pairs()
    assert module.objective.loss(module.score(pairs)).item() == pytest.approx(math.log(2), abs=1e-6)
    three_steps(policy, reference)
    assert torch.equal(reference_logps(reference, batch()), before)
    assert torch.equal(reference_logps(start, batch()), before)
    assert not torch.allclose(score(policy, batch()).logps, before, atol=0.1)
    assert isinstance(start, Snapshot)
    assert (reference is start) == (kind != "copy")


def batch_of_pairs():
    return next(iter(StepLoader(Recorded(view("pairs", toy_examples(6)), Plan(6, 6, 1, seed=0)), 6)))


def test_the_adapter_off_is_not_where_it_starts(base, adapter):
    """Spelled out it may be asked for; it says so, and evaluation still compares with the start."""
    _, policy, reference, start = parts(adapter, "model.reference=adapter_off")
    torch.testing.assert_close(reference_logps(reference, batch()), raw(base), rtol=0, atol=1e-5)
    assert torch.equal(reference_logps(start, batch()), score(policy, batch()).logps)
    assert not reference.at_start
    assert "the policy does not start as its reference" in reference.who
    assert isinstance(reference, AdapterOff)


def test_an_adapter_may_be_named_in_two_ways_and_its_own_options_hold(base, adapter, tmp_path):
    one, first, *_ = parts(adapter, "model.adapter.dropout=0.25")
    two, second, *_ = parts(base, f"model.adapter.start={adapter}", "model.adapter.dropout=0.25")
    assert one.name == two.name == base
    assert one.hash() == two.hash() != load_base(base, "float32").hash()
    stronger = shutil.copytree(adapter, tmp_path / "stronger")
    config = json.loads((stronger / "adapter_config.json").read_text())
    (stronger / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 3 * config["lora_alpha"]}))
    other, *_ = parts(str(stronger))
    assert one.hash() != other.hash()
    assert one.identity() != other.identity()
    assert torch.equal(score(first.eval(), batch()).logps, score(second.eval(), batch()).logps)
    config = first.model.peft_config["default"]
    assert (config.r, config.lora_dropout) == (2, 0.25)
    assert first.trainable()


def test_wrong_adapters(base, adapter, tmp_path, capsys):
    with pytest.raises(RequestError, match="is an adapter: continue it with model=hf_lora"):
        parts(adapter, option="hf")
    with pytest.raises(RequestError, match="is an adapter too"):
        parts(adapter, f"model.adapter.start={adapter}")
    with pytest.raises(RequestError, match=r"model.adapter.start=\S+: no adapter_config.json there"):
        parts(base, f"model.adapter.start={base}")
    lost = Path(shutil.copytree(adapter, tmp_path / "lost"))
    config = json.loads((lost / "adapter_config.json").read_text())
    (lost / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "/gone/base"}))
    with pytest.raises(
        RequestError, match=r"is an adapter of /gone/base, which is not there\nname its base: model.name="
    ):
        parts(str(lost))
    capsys.readouterr()
    assert parts(base, f"model.adapter.start={lost}")
    said = capsys.readouterr().err
    assert "its own rank (2), alpha and targets hold" in said
    assert f"warning: it was trained on /gone/base, and the base is {base}" in said
    parts(adapter)
    assert "warning" not in capsys.readouterr().err
    other = saved_model(tmp_path / "wide", intermediate_size=48)
    with pytest.raises(RequestError, match=r"model.adapter.start=\S+ does not fit the base: size mismatch"):
        parts(other, f"model.adapter.start={adapter}")
    (lost / "adapter_model.safetensors").rename(lost / "adapter_model.bin")
    with pytest.raises(
        RequestError, match=r"no adapter_model.safetensors there; adapters are read as safetensors only"
    ):
        parts(base, f"model.adapter.start={lost}")


# ---------------------------------------------------------------- kinds


def test_auto_takes_the_cheapest_start(base):
    assert isinstance(parts(base)[2], AdapterOff)
    assert isinstance(parts(base, option="hf")[2], FrozenCopy)
    assert isinstance(parts(base, "model.reference=copy")[2], FrozenCopy)
    assert isinstance(parts(base, "model.sync_every=1")[2], Snapshot)
    _, _, reference, start = parts(base, "model.reference=copy", option="hf")
    assert reference is start  # one copy, not two


@pytest.mark.parametrize("option", ["hf", "hf_lora"])
def test_another_model(base, tmp_path, option):
    other = saved_model(tmp_path / "other", seed=1)
    more = ("model.reference=model", f"model.reference_name={other}")
    _, policy, reference, start = parts(base, *more, option=option)
    assert torch.equal(reference_logps(reference, batch()), raw(other))
    assert torch.equal(reference_logps(start, batch()), raw(base))
    module = PreferenceModule(create("dpo"), policy, reference, torch.optim.SGD, constant, start)
    assert torch.equal(module.score(batch_of_pairs()).ref_logps, reference_logps(reference, batch_of_pairs()))
    assert not torch.equal(module.score(batch_of_pairs()).ref_logps, reference_logps(start, batch_of_pairs()))
    stranger = saved_model(tmp_path / "stranger", size=20)
    with pytest.raises(RequestError, match=r"model.reference_name=\S+: another vocabulary \(20 tokens, 20 of them"):
        parts(base, "model.reference=model", f"model.reference_name={stranger}")


def test_no_reference(base):
    with pytest.raises(RequestError, match=r"model.reference=none, but this loss is held against a reference"):
        parts(base, "model.reference=none")
    made = settings("hf", base, "model.reference=none", "loss=sft")
    start = with_settings(load_base(base, "float32"), made)
    reference, against = build_references(made, start, build_policy(start, None, LM, 0), needed=False)
    assert reference is None
    assert torch.equal(reference_logps(against, batch()), raw(base))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["model.reference=coppy"], "did you mean 'copy'"),
        (["model.reference=adapter_off"], "model.reference=adapter_off needs an adapter"),
        (["model.reference=start"], "model.reference=start needs an adapter"),
        (["model.reference=model"], "model.reference_name must be a hub name or a folder"),
        (["model.reference_name=x"], "model.reference_name must be null unless model.reference=model"),
        (["model.sync_every=0"], "model.sync_every must be at least 1"),
        (["model.sync_mix=0"], r"model.sync_mix must be in \(0, 1\]"),
        (["model.sync_mix=1.1"], r"model.sync_mix must be in \(0, 1\]"),
        (["model.sync_every=2", "model.reference=none"], "only a copy can follow the policy"),
    ],
)
def test_contradictions(overrides, said):
    with pytest.raises(RequestError, match=said):
        compose_request(["model=tiny", *overrides])


# ---------------------------------------------------------------- weights in the policy's place


def snapshot() -> tuple[Policy, Snapshot, torch.Tensor]:
    policy = Policy(toy_model(dtype=torch.float32))
    reference = Snapshot(policy, "")
    before = reference_logps(reference, batch())
    shake(policy)
    return policy, reference, before


def test_a_snapshot_speaks_with_its_own_weights_under_autocast():
    """autocast keeps a low-precision copy of each trained weight that it meets, here the policy's."""
    policy, reference, _ = snapshot()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = reference_logps(reference, batch())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        own = score(policy, batch()).logps
        assert torch.equal(reference_logps(reference, batch()), expected)
        assert not torch.allclose(own, expected, atol=0.1)


def test_a_snapshot_between_forward_and_backward_changes_no_gradient():
    policy, reference, before = snapshot()
    parameters = list(policy.trainable().values())
    expected = torch.autograd.grad(score(policy, batch()).logps.sum(), parameters)
    loss = score(policy, batch()).logps.sum()
    assert torch.equal(reference_logps(reference, batch()), before)
    found = torch.autograd.grad(loss, parameters)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_snapshot_gives_everything_back_after_an_error():
    policy, reference, _ = snapshot()
    policy.train()
    own = score(policy, batch()).logps

    def fail() -> None:
        with reference.policy(policy.device) as speaking:
            assert not speaking.training
            assert not speaking.trainable()
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        fail()
    assert policy.training
    assert torch.equal(score(policy, batch()).logps, own)


# ---------------------------------------------------------------- TR-DPO


def test_sync_is_a_moving_average():
    """By hand: w = 2, policy at 6: 0.25·6 + 0.75·2 = 3; policy at 11: 0.25·11 + 0.75·3 = 5; mix 1 copies."""
    policy = Policy(toy_model())
    name = next(iter(policy.trainable()))

    def put(value: float) -> None:
        with torch.no_grad():
            policy.trainable()[name].fill_(value)

    put(2.0)
    reference = Snapshot(policy, "")
    for value, mix, expected in ((6.0, 0.25, 3.0), (11.0, 0.25, 5.0), (7.0, 1.0, 7.0)):
        put(value)
        reference.sync(mix)
        assert torch.equal(reference.weights[name], torch.full_like(reference.weights[name], expected))
    put(0.0)
    assert float(reference.weights[name].max()) == 7.0


class Trail(L.Callback):
    """The policy's weights after every optimiser step; a checkpoint after one of them."""

    def __init__(self, save_at: int | None = None, path: Path | None = None) -> None:
        self.weights: list[dict[str, torch.Tensor]] = []
        self.save_at, self.path = save_at, path

    def on_train_batch_end(self, trainer, module, outputs, rows, batch_idx):
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self.weights.append({n: p.detach().clone() for n, p in module.policy.trainable().items()})
            if trainer.global_step == self.save_at:
                trainer.save_checkpoint(self.path)


def follow(base: str, option: str, steps: int, trail: Trail, resume: Path | None = None):
    """Steps with a reference that moves half-way to the policy after every second one, two micro-batches each."""
    _, policy, reference, start = parts(base, "model.sync_every=2", "model.sync_mix=0.5", option=option)
    module = PreferenceModule(create("dpo"), policy, reference, partial(torch.optim.SGD, lr=0.1), constant, start)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        max_steps=steps,
        accumulate_grad_batches=2,
        callbacks=[SelfCheck(), SyncReference(reference, 2, 0.5), trail],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = PreferenceData(Recorded(view("pairs", toy_examples(24)), Plan(24, 4, steps, seed=0)), 2)
    trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    return module


@pytest.mark.parametrize("option", ["hf", "hf_lora"])
def test_a_synced_reference_follows_the_policy(base, option):
    """w₀ and the policy after steps 2 and 4: ½·p₄ + ½·(½·p₂ + ½·w₀). The base stays where it was."""
    first = parts(base, "model.sync_every=2", option=option)[2].weights
    trail = Trail()
    module = follow(base, option, 5, trail)
    p2, p4 = trail.weights[1], trail.weights[3]
    for name, weight in module.reference.weights.items():
        expected = 0.5 * p4[name] + 0.5 * (0.5 * p2[name] + 0.5 * first[name])
        torch.testing.assert_close(weight, expected, rtol=0, atol=1e-6)
    assert any(not torch.equal(w, first[name]) for name, w in module.reference.weights.items())
    torch.testing.assert_close(reference_logps(module.base, batch()), raw(base), rtol=0, atol=1e-5)
    assert not torch.allclose(reference_logps(module.reference, batch()), raw(base), atol=1e-3)


def test_a_synced_reference_resumes_exactly(base, tmp_path):
    whole = follow(base, "hf_lora", 5, Trail(save_at=3, path=tmp_path / "3.ckpt"))
    resumed = follow(base, "hf_lora", 5, Trail(), resume=tmp_path / "3.ckpt")
    for name, weight in whole.reference.weights.items():
        assert torch.equal(resumed.reference.weights[name], weight)
        assert torch.equal(resumed.policy.trainable()[name], whole.policy.trainable()[name])


def test_evaluation_holds_the_policy_against_the_start_whatever_the_reference_became(base, tmp_path, capsys):
    """A reference that has just been copied from the policy would give every row the reward 0."""
    folders = {}
    for every in ("null", "1"):
        (tmp_path / every).mkdir()
        more = (f"model.sync_every={every}", "model.sync_mix=1", "optimizer.lr=0.05", "model=hf_lora")
        folders[every] = trained(tmp_path / every, f"model.name={base}", *more)
    rows = {every: [json.loads(line) for line in (f / "val.jsonl").open()] for every, f in folders.items()}
    assert [row["ref_logp"] for row in rows["1"]] == [row["ref_logp"] for row in rows["null"]]
    for row in rows["1"]:
        assert row["reward"] == pytest.approx(0.1 * (row["logp"] - row["ref_logp"]), abs=1e-4)
        assert abs(row["reward"]) > 1e-3
    said = capsys.readouterr()
    assert "reference: the same model with its adapter off" in said.out + said.err
    assert "moves to the policy every step, by 1 of the way" in said.out + said.err
