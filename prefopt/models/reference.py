"""Who the policy is held against."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from prefopt.errors import RequestError
from prefopt.models.policy import Policy
from prefopt.records import Batch
from prefopt.scoring.score import score
from prefopt.scoring.store import ReferenceStore

Identity = Callable[[], str] | None


class Reference(Protocol):
    """who: in words. at_start: whether the policy starts as this one, so that their first log-probs must agree.
    identity: makes what tells its weights from all others; None where nothing can. store: what it has said already,
    where that is kept."""

    who: str
    at_start: bool
    identity: Identity
    store: ReferenceStore | None

    def policy(self, device: torch.device) -> AbstractContextManager[Policy]:
        """A policy that speaks with the reference's weights for as long as the block lasts."""


@torch.no_grad()
def reference_logps(reference: Reference, batch: Batch) -> Tensor:
    """[N, T] nats: log-probs of the batch's completions under the reference. Rollouts bring them along."""
    if "ref_logps" in batch.columns:
        return batch.columns["ref_logps"]
    known = reference.store.logps(batch) if reference.store is not None else None
    if known is not None:
        return known
    with reference.policy(batch.prompt_ids.device) as policy:
        return score(policy, batch).logps


class AdapterOff:
    """The policy's own weights with its adapter switched off: no second model.

    Refused where a trainable weight is not switched off with the adapter, for then the reference would learn too.
    """

    store: ReferenceStore | None = None

    def __init__(self, policy: Policy, at_start: bool = True, identity: Identity = None) -> None:
        if not policy.adapted:
            raise RequestError("model.reference=adapter_off needs an adapter; model.adapter is null")
        leaks = leaking(policy)
        if leaks:
            raise RequestError(
                f"model.reference=adapter_off, but {leaks[0]} trains with the adapter off too; use model.reference=copy"
            )
        self.at_start, self.identity = at_start, identity
        self.who = "the same model with its adapter off"
        if not at_start:
            self.who += ", which is not the adapter that the run continues: the policy does not start as its reference"
        self._policy = policy

    @contextmanager
    def policy(self, device: torch.device) -> Iterator[Policy]:
        with self._policy.adapter_off():
            yield self._policy


class FrozenCopy:
    """A second model, loaded when first asked. Not a module: it is neither trained nor saved."""

    store: ReferenceStore | None = None

    def __init__(
        self,
        load: Callable[[], Policy],
        who: str = "a frozen copy of it",
        at_start: bool = True,
        identity: Identity = None,
    ) -> None:
        self.who, self.at_start, self.identity = who, at_start, identity
        self._load = load
        self._copy: Policy | None = None

    @contextmanager
    def policy(self, device: torch.device) -> Iterator[Policy]:
        """Loaded when first asked, so that a method without a reference pays for it only while it is evaluated."""
        if self._copy is None:
            self._copy = self._load().requires_grad_(False).eval()
        if self._copy.device != device:
            self._copy = self._copy.to(device)
        yield self._copy

    def release(self) -> None:
        """Give its memory back until it is asked again."""
        self._copy = None


class Snapshot:
    """What trains in the policy (all of it, or an adapter with whatever trains beside it), kept frozen as it was when
    this was made. While the reference speaks these weights stand in the places of the trained ones, on the weights
    that both share: no second model, and nothing that trains can leak. `sync` moves it to the policy.
    """

    at_start = True
    store: ReferenceStore | None = None

    def __init__(self, policy: Policy, who: str, identity: Identity = None) -> None:
        self.who, self.identity = who, identity
        self._policy = policy
        trained = {name: p for name, p in policy.trainable().items() if name.startswith("model.")}
        self.weights = {name: p.detach().clone() for name, p in trained.items()}

    @contextmanager
    def policy(self, device: torch.device) -> Iterator[Policy]:
        with self._policy.evaluating(), self._in_place():
            yield self._policy

    @torch.no_grad()
    def sync(self, mix: float) -> None:
        """reference ← mix · policy + (1 - mix) · reference (TR-DPO, https://arxiv.org/abs/2404.09656, Eq. 3).

        An adapter's factors are mixed one by one; unless mix is 1 that is not the mixture of their products.
        """
        own = self._policy.trainable()
        for name, weight in self.weights.items():
            weight.copy_(mix * own[name].to(weight.device) + (1 - mix) * weight)

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        """Other parameters in the same places, not other data in the same parameters: autocast keeps low-precision
        copies of trained parameters, and the reference would speak with the policy's."""
        own = {id(p): name for name, p in self._policy.trainable().items()}
        frozen = {
            name: nn.Parameter(weight.to(self._policy.device), requires_grad=False)
            for name, weight in self.weights.items()
        }
        places = [
            (module, slot, parameter)
            for module in self._policy.modules()
            for slot, parameter in module._parameters.items()
            if parameter is not None and own.get(id(parameter)) in frozen
        ]
        try:
            for module, slot, parameter in places:
                module._parameters[slot] = frozen[own[id(parameter)]]
            yield
        finally:
            for module, slot, parameter in places:
                module._parameters[slot] = parameter


def leaking(policy: Policy) -> list[str]:
    """Trainable weights that stay on with the adapter off. LoRA's own matrices, copies in `modules_to_save` and our
    scalar heads and critic play no part in the base's log-probs."""
    off = ("lora_", "modules_to_save", "trainable_tokens_")
    return [n for n in policy.trainable() if n.startswith("model.") and not any(part in n for part in off)]
