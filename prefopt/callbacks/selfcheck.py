"""A check of every run's first step: silent no-ops are the second most common bug of the field."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import lightning as L
import torch
from torch import Tensor

from prefopt.callbacks.steps import between_steps, scaler_of
from prefopt.errors import RequestError
from prefopt.models.sharding import whole, whole_tensor
from prefopt.module import PreferenceModule
from prefopt.ranks import of_all_ranks
from prefopt.records import Batch, Scores, at_least_float32

TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}  # nats per token, by the type of the products
LOW = 0.1  # nats, of lower precisions


class SelfCheck(L.Callback):
    """Before the first step: scoring agrees with the model's own logits, and the policy with its reference, so that
    the loss is what theory says at π = π_ref. After it: every group of trainable weights has moved. A step whose
    gradients overflow under 16-mixed is skipped and moves nothing, nor does one that is left out for what is no finite
    number, and nothing is learnt from answers of the policy's own that are all worth the same; the first other counts.
    """

    def __init__(
        self, paused: Callable[[], AbstractContextManager[None]] = nullcontext, own_answers: bool = False
    ) -> None:
        """paused: a context in which no training time counts. own_answers: whether the policy learns from its own."""
        self._paused, self._own_answers = paused, own_answers
        self._before: dict[str, Tensor] = {}
        self._skipped = False

    def on_train_batch_start(self, trainer: L.Trainer, module: PreferenceModule, batch: Batch, batch_idx: int) -> None:
        if trainer.global_step or batch_idx:
            return
        as_in_training = trainer.precision_plugin.forward_context()
        with self._paused(), module.policy.evaluating(), whole(module.policy), torch.no_grad(), as_in_training:
            found = of_all_ranks(_wrong_at_start(module, batch), trainer.world_size)
        wrong = next(filter(None, found), None)
        if wrong is not None:  # every rank refuses: one that left alone would be waited for
            raise RequestError(wrong)
        self._before = {name: _glimpse(p) for name, p in module.policy.trainable().items()}

    def on_before_optimizer_step(
        self, trainer: L.Trainer, module: PreferenceModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if not self._before:
            return
        gradients = [p.grad for p in module.policy.trainable().values() if p.grad is not None]
        overflown = scaler_of(trainer) is not None and not all(bool(g.isfinite().all()) for g in gradients)
        nothing = self._own_answers and not any(bool(g.any()) for g in gradients)
        self._skipped = overflown or nothing

    def on_train_batch_end(
        self, trainer: L.Trainer, module: PreferenceModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if not self._before or not between_steps(trainer, batch_idx) or self._skipped:
            return
        if all(p.grad is None for p in module.policy.trainable().values()):  # taken away: the step was left out
            return
        moved: dict[str, bool] = {}
        for name, parameter in module.policy.trainable().items():
            group = _group(name)
            moved[group] = moved.get(group, False) or not torch.equal(_glimpse(parameter), self._before[name])
        self._before = {}
        still = sorted(group for group, has_moved in moved.items() if not has_moved)
        if still:
            raise RequestError(
                f"after the first optimiser step these weights have not moved: {', '.join(still)}\n"
                "is optimizer.lr 0 (or lost in the precision of model.dtype), or does the loss not depend on them?"
            )


def _wrong_at_start(module: PreferenceModule, batch: Batch) -> str | None:
    """What of this rank's rows is not as it must be."""
    scores = module.score(batch)
    try:
        if scores.logps is not None:
            _agrees_with_logits(module, batch, scores)
        if module.objective.needs.reference and module.reference.at_start:
            _starts_at_reference(module, scores)
    except RequestError as error:
        return str(error)
    return None


def _agrees_with_logits(module: PreferenceModule, batch: Batch, scores: Scores) -> None:
    """The first row, scored the textbook way with the model's own forward."""
    ids = torch.cat((batch.prompts()[int(batch.group[0])], batch.completions()[0]))
    logits = at_least_float32(module.policy.causal(input_ids=ids[None]).logits[0, :-1])
    n = int(batch.completion_lengths[0])
    own = logits.log_softmax(-1).gather(1, ids[1:, None])[-n:, 0]
    _close(module, "scoring and the model's own logits", scores.logps[0][scores.mask[0]], own)


def _starts_at_reference(module: PreferenceModule, scores: Scores) -> None:
    objective = module.objective
    pair = scores.logps[scores.mask], scores.ref_logps[scores.mask]
    hint = "model.reference_store=false asks the reference in every step"
    _close(module, "the policy and its reference", *pair, hint)
    if objective.needs.data == "rollouts":
        return
    loss = float(objective.loss(scores))
    theory = float(objective.loss(replace(scores, ref_logps=scores.logps)))
    if not math.isfinite(loss) or abs(loss - theory) > 0.05 * max(1.0, abs(theory)):
        raise RequestError(
            f"the first loss is {float(loss):.4f}; at π = π_ref {objective.name} has {float(theory):.4f}"
        )


def _close(module: PreferenceModule, what: str, a: Tensor, b: Tensor, hint: str = "") -> None:
    """In low precision the mean counts: one token may be off by what rounds differently in another batch."""
    gaps = (a - b).abs()
    precision = module.policy.precision
    low = torch.is_autocast_enabled(a.device.type) or precision not in TOLERANCE
    gap, allowed = (gaps.mean(), LOW) if low else (gaps.max(), TOLERANCE[precision])
    if not gap <= allowed:
        how = "on average over the tokens" if low else "on a token"
        said = f"before the first step {what} differ by {float(gap):.3g} nats {how}, at most {allowed:g} is right"
        raise RequestError("\n".join(line for line in (said, hint) if line))


def _glimpse(parameter: Tensor) -> Tensor:
    """Enough of a weight to see it move; a whole copy would show in the run's peak memory."""
    flat = whole_tensor(parameter.detach()).flatten()
    return flat[:: max(1, len(flat) // 4096)].clone()


def _group(name: str) -> str:
    """The adapter, each head, the backbone; those of a critic by themselves."""
    if name.startswith("critic."):
        return f"critic's {_group(name.removeprefix('critic.'))}"
    if "lora_" in name:
        return "adapter"
    return name.split(".")[1] + " head" if name.startswith("heads.") else "backbone"
