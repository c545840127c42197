"""The policy: a causal language model, whole or under an adapter, and the scalar heads an objective asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, PretrainedConfig, PreTrainedModel

from prefopt.errors import RequestError

SCALAR_HEADS = ("scalar", "value")
STRETCHED = ("longrope", "dynamic")  # kinds of rotary positions


class Policy(nn.Module):
    """What scoring and sampling need of a model; they know no other.

    model: the causal LM, or a PEFT model around it. heads: among lm (the model's own), scalar (a reward per answer,
    read on its last token) and value (one per token). Scalar heads are float32 whatever the backbone is. speaks:
    whether anybody asks it for log-probs. critic: who has the value head, where that is another model. sharded: whether
    this process has only shards of its weights, and a batch must go through the backbone in one call.
    """

    heads: nn.ModuleDict
    model: Any  # a PreTrainedModel, or PEFT around one

    def __init__(
        self,
        model: nn.Module,
        heads: frozenset[str] = frozenset({"lm"}),
        end_ids: tuple[int, ...] = (),
        critic: Policy | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.end_ids = end_ids
        self.speaks, self.sharded = "lm" in heads, False
        self.surroundings: Callable[[], AbstractContextManager[None]] = nullcontext
        if self.adapted and hasattr(self.causal, "get_base_model"):
            raise RequestError("the model is an adapter around an adapter; merge the inner one first")
        self.critic = critic
        own = heads - {"value"} if critic else heads
        self.heads = nn.ModuleDict({name: self._scalar_head() for name in SCALAR_HEADS if name in own})

    @property
    def causal(self) -> PreTrainedModel:
        """The causal LM itself; an adapter's layers stay inside it."""
        return self.model.get_base_model() if self.adapted else self.model

    @property
    def adapted(self) -> bool:
        return hasattr(self.model, "peft_config")

    @property
    def config(self) -> PretrainedConfig:
        return self.causal.config.get_text_config()

    @property
    def layers(self) -> list[nn.Module]:
        """Of the backbone; none where they cannot be told."""
        depth = self.config.num_hidden_layers
        lists = [m for m in self.causal.base_model.modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
        return list(lists[0]) if lists else []

    @property
    def rope_bound(self) -> int | None:
        """Tokens of a row beyond which the model turns all positions of a call otherwise, as its longest row asks
        (LongRoPE, dynamic NTK); None where positions turn alike in rows of any length."""
        held = getattr(self.config, "rope_parameters", None) or {}
        kinds = [held] if "rope_type" in held else [kind for kind in held.values() if isinstance(kind, dict)]
        stretched = [kind for kind in kinds if kind.get("rope_type") in STRETCHED]
        whole = getattr(self.config, "max_position_embeddings", None)
        return min((kind.get("original_max_position_embeddings") or whole for kind in stretched), default=None)

    @property
    def vocabulary(self) -> int:
        """Logits of a token."""
        return self.config.vocab_size

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def precision(self) -> torch.dtype:
        """The lowest that its products are done in outside autocast: its weights', or what 4-bit layers round to."""
        rounded = (getattr(module, "compute_dtype", None) for module in self.causal.modules())
        types = {self.causal.dtype, *(dtype for dtype in rounded if isinstance(dtype, torch.dtype))}
        return max(types, key=lambda dtype: torch.finfo(dtype).eps)

    def hidden_states(
        self, ids: Tensor, mask: Tensor | None, positions: Tensor, cache: Cache | None = None, **attention: Any
    ) -> Tensor:
        """[N, L] ids to [N, L, H]. mask covers what the cache holds too; positions are those of `ids`. attention: what
        the attention function in force is to be given besides."""
        out = self.causal.base_model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
            **attention,
        )
        return out.last_hidden_state

    def lm_head(self, hidden: Tensor) -> Tensor:
        """[c, H] to logits [c, V], with what some models do between their head and the softmax."""
        head: Any = self.causal.get_output_embeddings()
        logits = head(hidden.to(head.weight.dtype))
        scale = getattr(self.config, "logit_scale", None)  # Cohere multiplies
        shrink = getattr(self.config, "logits_scaling", None)  # Granite divides
        cap = getattr(self.config, "final_logit_softcapping", None)  # Gemma 2
        logits = logits * scale if scale else logits
        logits = logits / shrink if shrink else logits
        return torch.tanh(logits / cap) * cap if cap else logits

    def scalar(self, name: str, hidden: Tensor) -> Tensor:
        """[c, H] to [c], float32 at least."""
        head: Any = self.heads[name]
        with torch.autocast(hidden.device.type, enabled=False):
            return head(hidden.to(head.weight.dtype)).squeeze(-1)

    @contextmanager
    def within(self, make: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
        """While it lasts `make()` does; whatever of it backward computes again, it computes in another `make()`."""
        before, self.surroundings = self.surroundings, make
        try:
            with make():
                yield
        finally:
            self.surroundings = before

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """No training mode, no dropout; restored whatever happens."""
        was_training = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(was_training)

    @contextmanager
    def adapter_off(self) -> Iterator[None]:
        """The model as it was before its adapter, evaluating."""
        with self.evaluating(), self.model.disable_adapter():
            yield

    def size(self) -> int:
        """Weights, those in 4 bits counted one by one."""
        states = [(p, getattr(p, "quant_state", None)) for p in self.parameters()]
        return sum(p.numel() if state is None else state.shape.numel() for p, state in states)

    def trainable(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def _scalar_head(self) -> nn.Linear:
        size = getattr(self.config, "word_embed_proj_dim", self.config.hidden_size)  # OPT projects its last states
        head = nn.Linear(size, 1, bias=False, dtype=torch.float32)
        # All rewards begin near 0 and a reward model's loss near log 2, as in OpenRLHF and ColossalAI; Stiennon et al.
        # 2020 take the square root. Not 0, or the backbone would stand still.
        nn.init.normal_(head.weight, std=1 / (size + 1))
        return head
