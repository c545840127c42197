"""From settings to a policy and what it is held against."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from prefopt.errors import RequestError
from prefopt.models.adapter import adapter_file, base_of, check_adapter, continued, new_adapter
from prefopt.models.base import Base, explained
from prefopt.models.files import (
    check_folder,
    check_weights,
    expanded,
    is_adapter,
    is_classifier,
    need_bitsandbytes,
)
from prefopt.models.policy import Policy
from prefopt.models.recompute import recompute_layers
from prefopt.models.reference import AdapterOff, FrozenCopy, Reference, Snapshot, leaking
from prefopt.models.reward import init_from_classifier
from prefopt.progress import say
from prefopt.settings import AdapterSettings, ModelSettings


def load_base(name: str, dtype: str, trust_remote_code: bool = False, key: str = "model.name") -> Base:
    """A Hugging Face causal LM: a hub name or a folder. Everything that can be told without loading its weights is told
    here. The folder of an adapter stands for its base with that adapter to continue.
    """
    name = expanded(name)
    check_folder(name, key)
    start = None
    if is_adapter(name):
        start, name = name, base_of(name, key)
    with explained(key, name):
        AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    check_weights(name, key)
    with explained(key, name):
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    base = Base(name, tokenizer, dtype, adapter=start, trust_remote_code=trust_remote_code, key=key)
    embedding: Any = base.skeleton().get_input_embeddings()
    rows = len(embedding.weight)
    needed = max(tokenizer.get_vocab().values()) + 1
    if needed > rows:
        raise RequestError(
            f"{key}={name}: its tokenizer has ids up to {needed - 1}, its embedding only {rows} rows; "
            "resize_token_embeddings() and save it, or save the tokenizer that belongs to it"
        )
    return base


def with_settings(base: Base, settings: ModelSettings) -> Base:
    """The base as the run wants it: in 4 bits, with an adapter to continue. Checked before any weight is loaded."""
    adapter, start = settings.adapter, base.adapter
    if settings.quant is not None:
        need_bitsandbytes()
        if base.dtype == "float64":
            raise RequestError("model.quant: bitsandbytes has no float64; take model.dtype=float32")
    if start is not None and adapter is None:
        raise RequestError(f"model.name={start} is an adapter: continue it with model=hf_lora, or merge it first")
    if adapter is None:
        return base
    if adapter.start is not None:
        if start is not None:
            raise RequestError(f"model.adapter.start={adapter.start}, but model.name={start} is an adapter too")
        start = expanded(adapter.start)
    if start is None:
        check_adapter(base.skeleton(), adapter)
    else:
        _tell_continued(base, start)
    return replace(base, quant=settings.quant, adapter=start)


def _tell_continued(base: Base, start: str) -> None:
    found = adapter_file(start, "model.adapter.start")
    say(f"continuing the adapter {start}: its own rank ({found.get('r')}), alpha and targets hold")
    trained_on = expanded(str(found.get("base_model_name_or_path")))
    if trained_on != base.name:
        say(f"warning: it was trained on {trained_on}, and the base is {base.name}")


def build_policy(
    base: Base,
    adapter: AdapterSettings | None,
    heads: frozenset[str],
    seed: int,
    critic: str = "shared",
    recompute: bool = False,
) -> Policy:
    """The model that trains. seed: of the adapter's and the heads' first weights. critic: shared, or separate for a
    second model of the same start with the value head, where `heads` has one. recompute: gradient checkpointing."""
    if "lm" in heads and is_classifier(base.name, base.key):
        raise RequestError(f"{base.key}={base.name} is a reward model without a language head, which this loss needs")
    other = None
    if critic == "separate" and "value" in heads:
        other = build_policy(base, adapter, frozenset({"value"}), seed, recompute=recompute)
    causal = base.causal()
    torch.manual_seed(seed)
    model: nn.Module = causal
    if adapter is not None:
        continues = base.adapter is not None
        model = continued(causal, base.adapter, adapter.dropout, True) if continues else new_adapter(causal, adapter)
    if "lm" not in heads:
        # Nothing asks it for log-probs: an untied output layer would only be a weight without gradient.
        for parameter in _own_parameters(causal.get_output_embeddings(), causal.get_input_embeddings()):
            parameter.requires_grad_(False)
    policy = Policy(model, heads, base.end_ids(), other)
    init_from_classifier(policy, base.name, base.key)
    if recompute:
        recompute_layers(policy)
    return policy


def build_references(
    settings: ModelSettings, base: Base, policy: Policy, needed: bool = True
) -> tuple[Reference | None, Reference]:
    """Whom training holds the policy against (None: nobody), and whom evaluation does: always the run's start.

    They are one object where they are one model. needed: whether the method reads reference log-probs.
    """
    start, kind = _start(base, policy), settings.reference
    if kind == "none":
        if needed:
            raise RequestError("model.reference=none, but this loss is held against a reference; take auto")
        return None, start
    if settings.sync_every is not None and needed:
        steps = f"every {settings.sync_every} steps" if settings.sync_every > 1 else "every step"
        how = f"a copy of what trains that moves to the policy {steps}, by {settings.sync_mix:g} of the way"
        return Snapshot(policy, how), start
    own = _kept(kind, settings, base, policy) if needed else start
    return (start if own.at_start and type(own) is type(start) else own), start


def _kept(kind: str, settings: ModelSettings, base: Base, policy: Policy) -> Reference:
    """A reference of the kind."""
    if kind == "adapter_off":
        return AdapterOff(policy, at_start=base.adapter is None, identity=replace(base, adapter=None).identity)
    if kind == "copy":
        return FrozenCopy(base.policy, f"a frozen copy of {_whole(base)}", identity=base.identity)
    if kind == "start":
        return _snapshot(base, policy, "the adapter")
    if kind == "model":
        return other_model(str(settings.reference_name), "model.reference_name", base, settings.trust_remote_code)
    return _start(base, policy)


def _start(base: Base, policy: Policy) -> Reference:
    """Whom the run starts from, at the least cost."""
    if not policy.adapted:
        return FrozenCopy(base.policy, f"a frozen copy of {_whole(base)}", identity=base.identity)
    if base.adapter is None and not leaking(policy):
        return AdapterOff(policy, identity=base.identity)
    return _snapshot(base, policy, base.adapter or "the new adapter, with the weights that train beside it,")


def _snapshot(base: Base, policy: Policy, which: str) -> Snapshot:
    who = f"{which} as the run starts, kept frozen on the weights of {base.name}"
    return Snapshot(policy, who, identity=None if base.adapter is None else base.identity)


def other_model(name: str, key: str, base: Base, trust_remote_code: bool = False) -> FrozenCopy:
    """Another model of the base's vocabulary. key: the setting that named it."""
    other = load_base(name, base.dtype, trust_remote_code, key)
    _same_vocabulary(base.tokenizer, other.tokenizer, f"{key}={name}")
    return FrozenCopy(other.policy, f"another model, {_whole(other)}", at_start=False, identity=other.identity)


def _same_vocabulary(own: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase, what: str) -> None:
    mine, theirs = own.get_vocab(), other.get_vocab()
    if mine != theirs:
        shared = len(mine.items() & theirs.items())
        raise RequestError(
            f"{what}: another vocabulary ({len(theirs)} tokens, {shared} of them as in the policy's {len(mine)}); "
            "log-probs can only be compared token by token"
        )


def _whole(base: Base) -> str:
    return base.name if base.adapter is None else f"{base.name} with the adapter {base.adapter}"


def _own_parameters(module: nn.Module, other: nn.Module) -> list[nn.Parameter]:
    shared = {id(p) for p in other.parameters()}
    return [p for p in module.parameters() if id(p) not in shared]
