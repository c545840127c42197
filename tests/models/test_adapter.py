"""LoRA options: what trains, what the reference keeps saying, and what is refused before a weight is loaded."""

from __future__ import annotations

from functools import partial

import lightning as L
import pytest
import torch
from peft import get_peft_model

from prefopt.config import compose_request
from prefopt.data.loader import Plan, Recorded, StepLoader
from prefopt.data.views import view
from prefopt.errors import RequestError
from prefopt.models.adapter import check_adapter, lora_config, new_adapter
from prefopt.models.build import build_policy, build_references, load_base, with_settings
from prefopt.models.policy import Policy
from prefopt.models.reference import Reference, reference_logps
from prefopt.module import PreferenceModule
from prefopt.objectives import create
from prefopt.schedules import constant
from prefopt.scoring import score
from tests.models.saved import saved_model, settings
from tests.scoring.test_score import batch
from tests.toy import toy_examples, toy_model

LM = frozenset({"lm"})
OPTIONS = {
    "plain": [],
    "dropout": ["dropout=0.5"],
    "dora": ["dora=true"],
    "rslora": ["rslora=true"],
    "lora_only": ["bias=lora_only", "targets=[q_proj]"],
    "all": ["bias=all"],
    "modules_to_save": ["modules_to_save=[norm]"],
    "head": ["modules_to_save=[lm_head]"],
    "embedding": ["modules_to_save=[embed_tokens]"],
    "targets": ["targets=[q_proj,embed_tokens,lm_head]"],
    "layers": ["layers=[1]"],
}
LEAKS = ("lora_only", "all")  # biases stay on with the adapter off


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    """With biases everywhere, and with untied embeddings."""
    folder = tmp_path_factory.mktemp("models") / "biased"
    return saved_model(folder, tied=False, attention_bias=True, mlp_bias=True)


def lora(base: str, *options: str, more: tuple[str, ...] = ()):
    return settings("hf_lora", base, *(f"model.adapter.{option}" for option in options), *more)


def three_steps(policy: Policy, reference: Reference, lr: float = 1.0) -> None:
    module = PreferenceModule(create("dpo"), policy, reference, partial(torch.optim.SGD, lr=lr), constant)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        max_steps=3,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, StepLoader(Recorded(view("pairs", toy_examples(12)), Plan(12, 4, 3, seed=0)), 4))
    assert trainer.global_step == 3


CASES = [(option, "auto") for option in OPTIONS]
CASES += [("all", "copy"), ("all", "start"), ("dora", "start"), ("targets", "start")]
CASES += [(option, "adapter_off") for option in ("dropout", *LEAKS)]


@pytest.mark.parametrize(("option", "kind"), CASES)
def test_the_reference_says_the_same_after_three_large_steps(base, option, kind):
    """To the bit, whatever trains; a reference that could not is refused with the weight that would leak into it."""
    made = lora(base, *OPTIONS[option], more=(f"model.reference={kind}",))
    start = with_settings(load_base(base, "float32"), made)
    policy, rows = build_policy(start, made.adapter, LM, seed=0), batch()
    if kind == "adapter_off" and option in LEAKS:
        with pytest.raises(RequestError, match=r"adapter_off, but \S+\.bias trains .*; use model.reference=copy"):
            build_references(made, start, policy)
        return
    reference, base_reference = build_references(made, start, policy)
    before = reference_logps(reference, rows)
    assert torch.allclose(before, score(start.policy(), rows).logps, atol=1e-5)
    three_steps(policy, reference)
    assert torch.equal(reference_logps(reference, rows), before)
    assert torch.allclose(reference_logps(base_reference, rows), before, atol=1e-5)
    assert not torch.allclose(score(policy, rows).logps, before, atol=0.1)


def test_options_reach_the_adapter(base):
    options = ("rank=3", "alpha=5", "dropout=0.25", "dora=true", "rslora=true", "bias=all", "layers=[1]")
    made = lora(base, *options, "targets=[q_proj,v_proj]", "modules_to_save=[norm]")
    policy = build_policy(load_base(base, "float32"), made.adapter, LM, seed=0)
    config = policy.model.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout) == (3, 5, 0.25)
    assert (config.use_dora, config.use_rslora, config.bias) == (True, True, "all")
    where = {name.split(".lora_")[0] for name in policy.trainable() if "lora_" in name}
    assert {name.split("layers.")[1] for name in where} == {"1.self_attn.q_proj", "1.self_attn.v_proj"}
    assert any("norm.modules_to_save" in name for name in policy.trainable())


def test_all_linear_of_some_layers_leaves_the_head_alone(base):
    made = lora(base, "layers=[0]")
    trained = build_policy(load_base(base, "float32"), made.adapter, LM, seed=0).trainable()
    assert trained
    assert all(".layers.0." in name for name in trained)


def test_rslora_scales_by_the_root_of_the_rank(base):
    """alpha / rank = 32/16 = 2; alpha / √rank = 32/4 = 8."""
    for option, scaling in (("rslora=false", 2.0), ("rslora=true", 8.0)):
        model = build_policy(load_base(base, "float32"), lora(base, option).adapter, LM, 0).causal
        assert model.model.layers[0].self_attn.q_proj.scaling["default"] == scaling


WRONG = [
    (
        "targets=[q_prj]",
        r"targets: the model has no module 'q_prj' here; did you mean 'q_proj'\?\naccepted: .*down_proj",
    ),
    ("targets=q_prj", "did you mean 'q_proj'"),
    ("targets=[input_layernorm]", "targets: the model has no module 'input_layernorm'"),  # there, but not linear
    ("modules_to_save=[nrm]", r"modules_to_save: the model has no module 'nrm' here; did you mean 'norm'\?"),
    ("layers=[2]", "layers: the model has layers 0 to 1; got 2"),
]


@pytest.mark.parametrize(("option", "said"), WRONG)
def test_what_the_model_does_not_have(base, option, said):
    with pytest.raises(RequestError, match=said):
        with_settings(load_base(base, "float32"), lora(base, option))


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("bias=some", "model.adapter.bias must be one of none, lora_only, all"),
        ("targets=[]", "model.adapter.targets must be all-linear, or a list"),
        ("targets=3", "model.adapter.targets must be all-linear, or a list"),
        ("layers=[]", "model.adapter.layers must be a list"),
        ("layers=[-1]", "model.adapter.layers must be a list"),
        ("rank=0", "model.adapter.rank must be at least 1"),
        ("alpha=0", "model.adapter.alpha must be at least 1"),
        ("modules_to_save=norm", "model.adapter.modules_to_save"),
        ("dora=perhaps", "model.adapter.dora"),
    ],
)
def test_what_no_model_has(option, said):
    with pytest.raises(RequestError, match=said):
        compose_request(["model=hf_lora", "model.name=x", f"model.adapter.{option}"])


@pytest.mark.parametrize("option", ["targets=[lm_head]", "targets=[embed_tokens]", "modules_to_save=[lm_head]"])
def test_a_tied_weight_is_not_adapted_on_one_side(tmp_path, option):
    tied = saved_model(tmp_path / "tied", tied=True)
    with pytest.raises(RequestError, match=r"shares its weight \(model.embed_tokens and lm_head are tied"):
        with_settings(load_base(tied, "float32"), lora(tied, option))


def test_adapters_do_not_nest(base):
    made = lora(base).adapter
    model = new_adapter(toy_model(), made)
    with pytest.raises(RequestError, match="carries an adapter already"):
        new_adapter(model, made)
    with pytest.raises(RequestError, match="carries an adapter already"):
        new_adapter(model.get_base_model(), made)
    with pytest.raises(RequestError, match="an adapter around an adapter"):
        Policy(get_peft_model(model, lora_config(toy_model(), made)))


def test_a_frozen_adapter_is_refused_even_where_a_head_trains(base):
    """Metrics would move, and nothing of the model would."""
    policy = build_policy(load_base(base, "float32"), lora(base).adapter, frozenset({"scalar"}), 0)
    policy.model.requires_grad_(False)
    with pytest.raises(RequestError, match=r"nothing trains.*is_trainable=True"):
        PreferenceModule(create("bradley_terry"), policy, None, torch.optim.SGD, constant).configure_optimizers()


def test_names_are_checked_without_weights(base):
    check_adapter(load_base(base, "float32").skeleton(), lora(base).adapter)
    assert all(p.is_meta for p in load_base(base, "float32").skeleton().parameters())
