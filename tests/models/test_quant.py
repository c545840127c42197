"""4-bit bases under an adapter: the same base by its hash, the same training, nothing done to what must stay whole."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from transformers import AutoModelForCausalLM

from prefopt.config import compose_request
from prefopt.data.loader import Plan, Recorded, StepLoader
from prefopt.data.views import view
from prefopt.errors import RequestError
from prefopt.jobs.precision import local_device
from prefopt.models.base import Base
from prefopt.models.build import build_policy, build_references, load_base, with_settings
from prefopt.models.reference import AdapterOff
from prefopt.models.reward import dequantised
from prefopt.module import PreferenceModule
from prefopt.objectives import create
from prefopt.schedules import constant
from prefopt.scoring import generate, score, sharing
from prefopt.settings import ModelSettings
from tests.models.saved import saved_model, settings, tokenizer, trained
from tests.scoring.test_score import batch
from tests.toy import Watch, toy_examples, toy_model

LM = frozenset({"lm"})
STEPS = 20


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    """Weights as large as trained ones are: quantising them costs tenths of a nat, not nats."""
    return saved_model(tmp_path_factory.mktemp("models") / "small", spread=0.1)


@pytest.fixture
def four(base):
    pytest.importorskip("bitsandbytes")
    made = settings("hf_4bit", base, "model.quant.compute_dtype=float32")
    return made, with_settings(load_base(base, "float32"), made)


@pytest.mark.parametrize(("named", "dtype"), [("bfloat16", torch.bfloat16), ("float32", torch.float32)])
def test_its_precision_is_that_of_its_products(base, named, dtype):
    """Float32 weights around 4-bit layers that round what they are given to bfloat16: no score is nearer than that, so
    neither the trial of shared prompts nor the first step's check may ask for more."""
    pytest.importorskip("bitsandbytes")
    made = settings("hf_4bit", base, f"model.quant.compute_dtype={named}")
    policy = build_policy(with_settings(load_base(base, "float32"), made), made.adapter, LM, seed=0)
    assert policy.causal.dtype == torch.float32
    assert policy.precision == dtype
    assert sharing.why_not(policy) == ""


def curve(base: Base, made: ModelSettings) -> torch.Tensor:
    """[STEPS] DPO's loss before each step of Adam."""
    policy = build_policy(base, made.adapter, LM, seed=0)
    reference, _ = build_references(made, base, policy)
    optimizer = partial(torch.optim.Adam, lr=0.01)
    watch = Watch()
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        max_steps=STEPS,
        callbacks=[watch],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = PreferenceModule(create("dpo", beta=0.5), policy, reference, optimizer, constant)
    trainer.fit(module, StepLoader(Recorded(view("pairs", toy_examples(16)), Plan(16, 16, STEPS, seed=0)), 16))
    return torch.tensor([losses["loss_dpo"] for losses in watch.losses])


def test_the_loss_curve_is_that_of_full_precision(base, four, tmp_path):
    """Within 0.03 nats of LoRA on the whole base, on a curve from log 2 to 0.03; and on the numbers that the 4-bit
    weights stand for, kept in float32, the same to 1e-5."""
    made, quantised = four
    plain = settings("hf_lora", base)
    found, whole = curve(quantised, made), curve(load_base(base, "float32"), plain)
    assert whole[-1] < 0.04
    assert (found - whole).abs().max() < 0.03
    model = load_base(base, "float32").causal()
    with torch.no_grad():
        for name, weight in dequantised(quantised.causal()):
            model.get_submodule(name).weight.copy_(weight)
    model.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    torch.testing.assert_close(found, curve(load_base(str(tmp_path), "float32"), plain), rtol=0, atol=1e-5)
    assert not torch.equal(found, whole)


def test_scoring_sampling_and_counting(base, four):
    made, quantised = four
    policy = build_policy(quantised, made.adapter, LM, seed=0)
    reference, start = build_references(made, quantised, policy)
    assert isinstance(reference, AdapterOff)
    assert reference is start
    kinds = {n: p.dtype for n, p in policy.causal.named_parameters() if "base_layer" in n or "embed" in n}
    assert {d for n, d in kinds.items() if "proj" in n} == {torch.uint8}
    assert policy.causal.get_output_embeddings().weight.dtype == torch.float32
    torch.testing.assert_close(score(policy, batch()).logps, score(quantised.policy(), batch()).logps)
    answers = generate(policy, [torch.tensor([1, 5, 6]), torch.tensor([1, 4])], max_new_tokens=3, temperature=0.0)
    assert all(1 <= len(answer) <= 3 for answer in answers)
    adapter = sum(p.numel() for n, p in policy.named_parameters() if "lora_" in n)
    assert policy.size() - adapter == sum(p.numel() for p in toy_model().parameters())


def test_a_saved_adapter_continues_in_full_precision_and_in_4_bits(base, four, tmp_path):
    made, quantised = four
    policy = build_policy(quantised, made.adapter, LM, seed=0)
    for parameter in policy.trainable().values():
        parameter.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
    policy.model.save_pretrained(tmp_path)
    again = with_settings(load_base(str(tmp_path), "float32"), made)
    assert torch.equal(score(again.policy(), batch()).logps, score(policy, batch()).logps)
    whole = with_settings(load_base(str(tmp_path), "float32"), settings("hf_lora", str(tmp_path)))
    assert not torch.equal(score(whole.policy(), batch()).logps, score(policy, batch()).logps)
    torch.testing.assert_close(score(whole.policy(), batch()).logps, score(policy, batch()).logps, atol=0.5, rtol=0)


def test_one_base_has_one_hash(base, four, tmp_path):
    """Whole, in 4 bits, in another dtype, and cut into other files; not with other weights."""
    expected = load_base(base, "float32").hash()
    assert four[1].hash() == expected
    assert load_base(base, "bfloat16").hash() == expected
    load_base(base, "float32").causal().save_pretrained(tmp_path, max_shard_size="5KB")
    tokenizer().save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors.index.json").is_file()
    assert load_base(str(tmp_path), "float32").hash() == expected
    other = saved_model(tmp_path / "other", seed=1, spread=0.1)
    assert load_base(other, "float32").hash() != expected


def test_refused_before_weights_load(base, monkeypatch):
    with pytest.raises(RequestError, match=r"model.quant must be null without an adapter: 4-bit weights do not train"):
        compose_request(["model=hf_4bit", f"model.name={base}", "model.adapter=null"])
    with pytest.raises(RequestError, match=r"model.quant.kind must be one of nf4, fp4; got 'nf5'; did you mean 'nf4'"):
        compose_request(["model=tiny_4bit", "model.quant.kind=nf5"])
    made = settings("hf_4bit", base)
    monkeypatch.setattr(Base, "causal", lambda self: pytest.fail("weights were loaded"))
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(RequestError, match=r"needs bitsandbytes: pip install 'prefopt\[quant\]'"):
        with_settings(load_base(base, "float32"), made)
    monkeypatch.undo()
    pytest.importorskip("bitsandbytes")
    with pytest.raises(RequestError, match="bitsandbytes has no float64"):
        with_settings(load_base(base, "float64"), made)


def test_a_run_in_4_bits_stands_beside_one_in_full_precision(base, tmp_path):
    pytest.importorskip("bitsandbytes")
    found = {}
    for option in ("hf_lora", "hf_4bit"):
        (tmp_path / option).mkdir()
        run = trained(tmp_path / option, f"model={option}", f"model.name={base}")
        found[option] = json.loads((run / "summary.json").read_text())
    for key in ("base_hash", "comparable_hash", "parameters", "trainable"):
        assert found["hf_4bit"][key] == found["hf_lora"][key], key
    assert found["hf_4bit"]["model_hash"] != found["hf_lora"]["model_hash"]


def test_bitsandbytes_is_imported_where_it_is_used():
    found = [p.name for p in Path("prefopt").rglob("*.py") if "\nimport bitsandbytes" in p.read_text("utf-8")]
    assert found == []


@pytest.mark.parametrize(("cuda", "expected"), [(True, "cuda:1"), (False, "cpu")])
def test_every_process_loads_to_a_device_of_its_own(base, cuda, expected, monkeypatch):
    """Not all of them to the first one, nor one copy spread over all of them."""
    pytest.importorskip("bitsandbytes")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    accelerator = "gpu" if cuda else "cpu"
    trainer = SimpleNamespace(accelerator=accelerator)
    places = []

    def load(name, *, device_map, **_):
        places.append(device_map)
        return toy_model()

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", load)
    made = settings("hf_4bit", base)
    start = replace(with_settings(load_base(base, "float32"), made), device=local_device(trainer))
    start.causal()
    assert places == [{"": expected}]
