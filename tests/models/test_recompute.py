"""Gradient checkpointing changes no gradient, on whatever path a batch takes, and keeps less."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from prefopt.errors import RequestError
from prefopt.models import recompute
from prefopt.models.build import build_policy, load_base
from prefopt.models.policy import Policy
from prefopt.models.recompute import recompute_layers
from prefopt.scoring import forest, score, sharing
from tests.models.saved import saved_model, trained
from tests.scoring.test_forest import batch_of, llama, lora
from tests.toy import toy_gpt2

pytestmark = pytest.mark.usefixtures("exact_rmsnorm")  # in float64, too, norms are fused
ROWS = [(5, [2, 3], False), (3, [1], False), (6, [4, 1, 2], False)]
PATHS = ("forest", "several forests", "padded")


def dropped() -> nn.Module:
    model = get_peft_model(llama(), LoraConfig(r=2, lora_dropout=0.5, target_modules=["q_proj", "down_proj"])).double()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    return model


def policies(make) -> list[Policy]:
    """One that keeps everything and one that computes it again; what a model can share is known before it trains."""
    found = [Policy(make()).train() for _ in range(2)]
    recompute_layers(found[1])
    return found


def gradients(policy: Policy, path: str, monkeypatch) -> dict[str, Tensor]:
    """Of a loss on scores with the prompts' ends and completions read, so that the last layer skips the rest."""
    monkeypatch.setattr(forest, "ROOM", 12 if path == "several forests" else 4096)
    monkeypatch.setitem(sharing._known, policy.causal, {("cpu", None): "told so" if path == "padded" else ""})
    torch.manual_seed(3)
    rows = batch_of(ROWS)
    loss = (score(policy, rows).logps.double().exp()).sum()
    policy.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("make", [llama, toy_gpt2, lora, dropped])
def test_gradients_are_the_same_to_the_bit(make, path, monkeypatch):
    plain, again = (gradients(policy, path, monkeypatch) for policy in policies(make))
    assert plain.keys() == again.keys()
    assert any(bool(gradient.any()) for gradient in plain.values())
    for name, gradient in plain.items():
        assert torch.equal(again[name], gradient), name


def test_forests_and_padded_rows_in_one_backward(monkeypatch):
    """Backward comes when all of them are over; each is computed again as it was."""
    found = []
    for policy in policies(llama):
        monkeypatch.setattr(forest, "ROOM", 12)
        monkeypatch.setitem(sharing._known, policy.causal, {("cpu", None): ""})
        parts = [score(policy, batch_of(ROWS)).logps.sum()]
        monkeypatch.setitem(sharing._known, policy.causal, {("cpu", None): "told so"})
        parts.append(2 * score(policy, batch_of(ROWS)).logps.exp().sum())
        sum(parts).backward()
        found.append([p.grad for p in policy.parameters()])
    for plain, again in zip(*found, strict=True):
        assert torch.equal(plain, again)


def kept(policy: Policy) -> int:
    """Numbers that a forward keeps for its backward."""
    sizes = []

    def pack(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    weights = {p.data_ptr() for p in policy.parameters()}
    with saved_tensors_hooks(lambda t: t if t.data_ptr() in weights else pack(t), lambda t: t):
        score(policy, batch_of(ROWS))
    return sum(sizes)


def test_a_layer_keeps_its_input():
    """64 tokens of 16 numbers for each further layer, where it was many times that."""
    further = []
    for asked in (False, True):
        found = []
        for layers in (2, 5):
            policy = Policy(llama(num_hidden_layers=layers)).train()
            assert sharing.shares_prompts(policy, 1)  # tried before anything is counted
            if asked:
                recompute_layers(policy)
            found.append(kept(policy))
        further.append((found[1] - found[0]) / 3)
    plain, again = further
    assert again <= 64 * 16 < plain / 10


def test_a_model_without_such_layers_is_refused():
    policy = Policy(llama())
    for layer in policy.causal.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.__class__ = type("Own", (nn.Module,), {"forward": layer.forward})
    with pytest.raises(RequestError, match=r"model.gradient_checkpointing: LlamaForCausalLM has no layers that"):
        recompute_layers(policy)


def test_a_run_asks_for_it(tmp_path, monkeypatch):
    """Its two layers, in its one step."""
    calls = []
    monkeypatch.setattr(
        recompute, "checkpoint", lambda *given, **how: (calls.append(how), checkpoint(*given, **how))[1]
    )
    name = saved_model(tmp_path / "base", size=23)
    trained(
        tmp_path,
        "loss=sft",
        "model=hf",
        f"model.name={name}",
        "trainer.max_steps=1",
        "model.gradient_checkpointing=true",
    )
    assert len(calls) == 2
    assert not any(how["use_reentrant"] for how in calls)


def test_a_critic_of_its_own_is_computed_again_too(tmp_path):
    base = load_base(saved_model(tmp_path), "float32")
    policy = build_policy(base, None, frozenset({"lm", "value"}), 0, "separate", recompute=True)
    for one in (policy, policy.critic):
        assert all(layer.gradient_checkpointing for layer in one.layers)


@pytest.mark.long
@pytest.mark.parametrize("loss", ["loss=dpo", "loss=ppo reward.kind=rule reward.rule=exact model.critic=separate"])
def test_a_run_ends_with_the_same_weights(loss, tmp_path):
    name = saved_model(tmp_path / "base", size=23)
    found = []
    for asked in ("true", "false"):
        folder = tmp_path / asked
        folder.mkdir()
        fixed = ["model=hf_lora", f"model.name={name}", "model.adapter.rank=2", "trainer.max_steps=2"]
        trained(folder, *fixed, *loss.split(), f"model.gradient_checkpointing={asked}")
        found.append(json.loads((folder / "run/summary.json").read_text())["model_hash"])
    assert found[0] == found[1]
