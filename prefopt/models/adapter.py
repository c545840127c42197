"""LoRA adapters: their options held against the model's modules, new ones, and ones that a run continues."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from prefopt.errors import RequestError, first_line, nearest
from prefopt.files import write_json
from prefopt.models.files import ADAPTER, expanded, find, looks_like_path, stored_json
from prefopt.scrub import scrubbed
from prefopt.settings import ALL_LINEAR, AdapterSettings

CONFIG = "adapter_config.json"
LINEAR = (nn.Linear, Conv1D)
# What of a saved adapter's configuration its weights mean something else under.
SCALING = ("peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "fan_in_fan_out")


def new_adapter(model: PreTrainedModel, settings: AdapterSettings) -> PeftModel:
    """A LoRA adapter that changes nothing yet, its first weights drawn from torch's generator."""
    refuse_nested(model)
    try:
        return get_peft_model(model, lora_config(model, settings))
    except ValueError as error:
        raise RequestError(f"model.adapter: {first_line(error)}") from error


def continued(model: PreTrainedModel, folder: str, dropout: float = 0.0, trainable: bool = False) -> PeftModel:
    """The adapter of a folder, as it was saved but for its dropout."""
    refuse_nested(model)
    config = PeftConfig.from_pretrained(folder)
    if getattr(config, "peft_type", None) != "LORA":
        raise RequestError(f"model.adapter.start={folder} holds {config.peft_type}; only LoRA adapters are continued")
    config.lora_dropout = dropout
    try:
        return PeftModel.from_pretrained(model, folder, config=config, is_trainable=trainable, low_cpu_mem_usage=False)
    except (ValueError, RuntimeError, OSError) as error:
        lines = str(error).strip().splitlines()  # torch says the reason after a headline
        why = lines[1].strip() if len(lines) > 1 else first_line(error)
        raise RequestError(f"model.adapter.start={folder} does not fit the base: {why}") from error


def check_adapter(skeleton: PreTrainedModel, settings: AdapterSettings) -> None:
    """Refuse, before any weight is loaded, module names and layers that the model does not have."""
    count = skeleton.config.get_text_config().num_hidden_layers
    for layer in settings.layers or ():
        if layer >= count:
            raise RequestError(f"model.adapter.layers: the model has layers 0 to {count - 1}; got {layer}")
    modules: dict[str, nn.Module] = {name: module for name, module in skeleton.named_modules() if name}
    targetable: dict[str, nn.Module] = {n: m for n, m in modules.items() if isinstance(m, (*LINEAR, nn.Embedding))}
    named = [] if settings.targets == ALL_LINEAR else settings.targets
    _check_names("model.adapter.targets", named, targetable, targetable)
    _check_names("model.adapter.modules_to_save", settings.modules_to_save or [], modules, targetable)
    _refuse_tied(skeleton, [*named, *(settings.modules_to_save or [])])


def adapter_file(folder: str, key: str) -> dict[str, Any]:
    """The configuration of a saved adapter; refuse a folder that holds none, or not all of it."""
    config = stored_json(folder, CONFIG, key)
    if config is None:
        raise RequestError(f"{key}={folder}: no {CONFIG} there, so no adapter")
    if find(folder, ADAPTER) is None:
        raise RequestError(f"{key}={folder}: no {ADAPTER} there; adapters are read as safetensors only")
    return config


def tell_no_home(folder: Path) -> None:
    """What PEFT has saved names its base by an absolute path, in a model card too. The adapter keeps its name with `~`,
    which every reader here takes, and PEFT does not: an export has the whole path again."""
    (folder / "README.md").unlink(missing_ok=True)
    write_json(folder / CONFIG, scrubbed(stored_json(str(folder), CONFIG, "model")))


def base_of(folder: str, key: str) -> str:
    """The name of the model that a saved adapter belongs to."""
    name = adapter_file(folder, key).get("base_model_name_or_path")
    name = expanded(name) if name else ""
    if not name or (looks_like_path(name) and not Path(name).is_dir()):
        raise RequestError(
            f"{key}={folder} is an adapter of {name or 'a model it does not name'}, which is not there\n"
            f"name its base: model.name=BASE model.adapter.start={folder}"
        )
    return name


def refuse_nested(model: nn.Module) -> None:
    if hasattr(model, "peft_config") or any(hasattr(module, "lora_A") for module in model.modules()):
        raise RequestError("the model carries an adapter already: continue it (model.adapter.start) or merge it first")


def lora_config(model: PreTrainedModel, settings: AdapterSettings) -> LoraConfig:
    targets = settings.targets if isinstance(settings.targets, str) else list(settings.targets)
    if settings.layers is not None and targets == ALL_LINEAR:
        targets = _all_linear(model)  # PEFT takes layers only with names
    options: dict[str, Any] = {"bias": settings.bias}
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=targets,
        use_dora=settings.dora,
        use_rslora=settings.rslora,
        modules_to_save=settings.modules_to_save and list(settings.modules_to_save),
        layers_to_transform=settings.layers and list(settings.layers),
        **options,
    )


def _all_linear(model: PreTrainedModel) -> list[str]:
    head = model.get_output_embeddings()
    return sorted({_leaf(name) for name, m in model.named_modules() if isinstance(m, LINEAR) and m is not head})


def _check_names(key: str, asked: list[str], found: dict[str, nn.Module], shown: dict[str, nn.Module]) -> None:
    known = {_leaf(name) for name in found}
    for target in asked:
        if not any(_matches(name, target) for name in found):
            accepted = ", ".join(sorted({_leaf(name) for name in shown}))
            raise RequestError(
                f"{key}: the model has no module {target!r} here{nearest(target, known)}\naccepted: {accepted}"
            )


def _refuse_tied(skeleton: PreTrainedModel, asked: list[str]) -> None:
    """Trained on one side only, the two would no longer be one weight: in the run they differ, merged they cannot."""
    if not skeleton.config.get_text_config().tie_word_embeddings:
        return
    pair = [skeleton.get_input_embeddings(), skeleton.get_output_embeddings()]
    names = [name for name, module in skeleton.named_modules() if any(module is end for end in pair)]
    for target in asked:
        if any(_matches(name, target) for name in names):
            raise RequestError(
                f"model.adapter: {target} shares its weight ({' and '.join(names)} are tied in this model), which an "
                "adapter cannot change on one side; leave it out"
            )


def _matches(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]
