"""What a run starts from: weights and a tokenizer, by folder or hub name, and perhaps an adapter to continue."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from prefopt.errors import RequestError, first_line
from prefopt.models.adapter import SCALING, adapter_file, continued
from prefopt.models.dropout import without_dropout
from prefopt.models.files import need_bitsandbytes, stored_weights
from prefopt.models.policy import Policy
from prefopt.models.sharding import whole_tensor
from prefopt.settings import QuantSettings


@dataclass
class Base:
    """The weights and the tokenizer a run starts from. Loading twice gives the same weights.

    name: a folder or hub name. quant: load it in 4 bits. adapter: the folder of an adapter that the run continues.
    key: the setting that named it, for messages. ends: further tokens that end an answer, a chat template's. device:
    where 4-bit weights are loaded to; others are loaded on the CPU.
    """

    name: str
    tokenizer: PreTrainedTokenizerBase
    dtype: str = "float32"
    quant: QuantSettings | None = None
    adapter: str | None = None
    trust_remote_code: bool = False
    key: str = "model.name"
    ends: tuple[int, ...] = ()
    device: str = "cpu"
    _hash: str = field(default="", init=False, repr=False)

    def causal(self, quantised: bool = True) -> PreTrainedModel:
        """The causal LM, without any adapter. quantised=False: in full precision whatever `quant` says."""
        options: dict[str, Any] = {}
        if self.quant is not None and quantised:
            # Straight to where they stay: what is quantised does not move well, and device_map=auto would spread one
            # copy over the devices of all processes.
            options = {"quantization_config": bitsandbytes_config(self.quant), "device_map": {"": self.device}}
        with explained(self.key, self.name):
            model = AutoModelForCausalLM.from_pretrained(
                self.name,
                dtype=getattr(torch, self.dtype),
                use_safetensors=True,
                trust_remote_code=self.trust_remote_code,
                **options,
            )
        return without_dropout(model)

    def hash(self) -> str:
        """sha256 of the stored weights, tensor by tensor: of one base it is the same whole, under LoRA and in 4 bits,
        whatever `dtype` it is loaded in and however its files are cut. An adapter that the run continues is covered.
        """
        if not self._hash:
            found = weights_hash(stored_weights(self.name, self.key))
            if self.adapter is not None:
                start = weights_hash(stored_weights(self.adapter, "model.adapter.start", adapter=True))
                config = adapter_file(self.adapter, "model.adapter.start")
                scaled = json.dumps([config.get(key) for key in SCALING], sort_keys=True)
                found = hashlib.sha256(f"{found} {start} {scaled}".encode()).hexdigest()
            self._hash = found
        return self._hash

    def identity(self) -> str:
        """sha256 of what its log-probs depend on: weights, configuration, quantisation and dtype."""
        config = self.config().to_diff_dict()
        named = {key: value for key, value in config.items() if key not in ("_name_or_path", "transformers_version")}
        told = [self.hash(), named, self.quant and asdict(self.quant), self.dtype]
        return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()

    def policy(self) -> Policy:
        """Whom the run starts from, as a policy; nothing in it trains."""
        model: Any = self.causal()
        if self.adapter is not None:
            model = continued(model, self.adapter)
        return Policy(model.requires_grad_(False), end_ids=self.end_ids())

    def config(self) -> PretrainedConfig:
        with explained(self.key, self.name):
            return AutoConfig.from_pretrained(self.name, trust_remote_code=self.trust_remote_code)

    def skeleton(self) -> PreTrainedModel:
        """The model without its weights, for questions about its modules that should not wait for them."""
        config = self.config()
        with explained(self.key, self.name), torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=self.trust_remote_code)

    def end_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer: the tokenizer's, what the model's generation settings add, and `ends`."""
        try:
            settings = GenerationConfig.from_pretrained(self.name)
        except OSError:  # many models ship none
            settings = GenerationConfig.from_model_config(self.config())
        ends = settings.eos_token_id
        found = [self.tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends]), *self.ends]
        return tuple(dict.fromkeys(end for end in found if end is not None))


def bitsandbytes_config(quant: QuantSettings) -> BitsAndBytesConfig:
    need_bitsandbytes()
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quant.kind,
        bnb_4bit_use_double_quant=quant.double,
        bnb_4bit_compute_dtype=getattr(torch, quant.compute_dtype),
    )


@contextmanager
def explained(key: str, name: str) -> Iterator[None]:
    """What transformers refuses about a model, in one line that names the setting."""
    try:
        yield
    except (OSError, ValueError, ImportError, KeyError) as error:
        if "trust_remote_code" in str(error):
            raise RequestError(
                f"{key}={name} brings code of its own; model.trust_remote_code=true runs it, if you trust it"
            ) from error
        raise RequestError(f"{key}={name}: cannot be loaded: {first_line(error)}") from error


def weights_hash(weights: Iterable[tuple[str, Tensor]]) -> str:
    """sha256 over the sorted sha256 of every tensor's name, shape, dtype and bytes: in any order, one at a time."""
    found = []
    for name, tensor in weights:
        flat = whole_tensor(tensor.detach()).cpu().contiguous().view(-1)
        one = hashlib.sha256(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
        one.update(flat.view(torch.uint8).numpy().data)
        found.append(one.hexdigest())
    return hashlib.sha256("".join(sorted(found)).encode()).hexdigest()
