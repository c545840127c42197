"""Dropout wherever models keep it: in layers of its own, and as plain numbers that they hand to a function."""

from __future__ import annotations

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel


def dropouts(holder: nn.Module | PretrainedConfig) -> dict[str, float]:
    """The probabilities that are set on a module itself, or on a configuration, by the attribute's name."""
    if isinstance(holder, nn.Dropout):
        return {"p": holder.p} if holder.p else {}
    return {name: held for name, held in vars(holder).items() if "drop" in name and isinstance(held, float) and held}


def without_dropout(model: PreTrainedModel) -> PreTrainedModel:
    """Policy, reference and rollouts must be the same network; only an adapter's own dropout is a choice. Falcon looks
    into its configuration at every step, and so what is saved says, too, how the model has trained."""
    holders: list[nn.Module | PretrainedConfig] = list(model.modules())
    holders += [config for m in model.modules() if isinstance(config := getattr(m, "config", None), PretrainedConfig)]
    for holder in holders:
        for name in dropouts(holder):
            setattr(holder, name, 0.0)
    return model


def drops_attention(model: nn.Module) -> bool:
    """By what its layers do, not by its configuration: a base's dropout is switched off when it is loaded. An adapter's
    dropout comes before what it is given is multiplied, and is no attention's."""
    for path, module in model.named_modules():
        if "lora" not in path and any(_is_attention(f"{path}.{name}") for name in dropouts(module)):
            return True
    return False


def _is_attention(path: str) -> bool:
    return "attn" in path.lower() or "attention" in path.lower()
