"""The one LightningModule. It introduces data, policy and objective to each other and names no method."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from prefopt.data.examples import Encoded
from prefopt.errors import RequestError
from prefopt.metrics.held_out import HeldOutTable, measures
from prefopt.metrics.rows import Entries, describe, weighted_means
from prefopt.metrics.sums import Sums, exact_sums
from prefopt.models.policy import Policy
from prefopt.models.reference import Reference, reference_logps
from prefopt.models.sharding import shard, whole
from prefopt.objectives import Objective
from prefopt.objectives.base import Term, means, total
from prefopt.ranks import of_all_ranks
from prefopt.records import Batch, Scores
from prefopt.scoring import score, shares_prompts


class PreferenceModule(L.LightningModule):
    """Scores a batch, asks the objective what that is worth, and divides by the counts of the whole optimiser step.

    reference: whom training holds the policy against; None where no method asks. base: whom held-out rows do, the one
    the run starts from; the reference unless given. optimizer: parameters to an Optimizer. schedule: (step, total
    steps) to a factor of the learning rate.
    """

    def __init__(
        self,
        objective: Objective,
        policy: Policy,
        reference: Reference | None,
        optimizer: Callable[[Iterable[Tensor]], Optimizer],
        schedule: Callable[[int, int], float],
        base: Reference | None = None,
    ) -> None:
        super().__init__()
        self.objective = objective
        self.policy = policy
        self.reference, self.base = reference, base or reference
        self.make_optimizer, self.schedule = optimizer, schedule
        self.step_sums, self.held_out, self.held_out_sums = Sums(), HeldOutTable(), Sums()
        self.statistics: dict[str, Tensor] = {}
        self.step_seen: list[tuple[Batch, Scores, Tensor]] = []  # of the step so far, with its parts of the loss
        self.strict_loading = False  # checkpoints hold what trains; on_load_checkpoint checks that it is exactly that
        self.grad_norm: Tensor | None = None  # of the step under way, where somebody has measured it
        self._resumed_rng: dict[str, Any] | None = None
        self._while_validating = ExitStack()

    def configure_model(self) -> None:
        """Under fsdp, and there by every validation again."""
        if self.device_mesh is None or self.policy.sharded:
            return
        shares_prompts(self.policy, 1)  # tried while it is whole: what a model refuses would leave shards half gathered
        shard(self.policy, self.device_mesh["data_parallel"])

    # ------------------------------------------------------------ training

    def score(self, batch: Batch, against: Reference | None = None, always: bool = False) -> Scores:
        """The policy's scores, and those of whom it is held `against` (the reference, unless named) where the objective
        needs them, or `always` where there is one."""
        needs = self.objective.needs
        scores = score(self.policy, batch, needs.heads, needs.tokens, needs.prompt)
        if needs.reference or (always and against is not None and scores.logps is not None):
            scores = replace(scores, ref_logps=reference_logps(against or self.reference, batch))
        return scores

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        scores = self.score(batch)
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self.statistics = self.gather_statistics(scores, batch.siblings)
            self.step_seen = []
        terms = self.objective.all_terms(scores, self.statistics)
        loss = total(terms, batch.counts)
        with torch.no_grad():
            seen = describe(batch.data, scores, self.objective.reward(scores))
            extra = weighted_means(self.objective.diagnostics(scores), scores)
            parts = {f"loss_{name}": entry for name, entry in term_entries(terms, batch.counts).items()}
            self.step_sums.update(_share_counts(parts, self.trainer) | seen | extra)
        self.step_seen.append((batch, scores.detach(), loss.detach()))  # looked at only where the step is broken
        # Lightning divides by its accumulation, DDP by its ranks; the counts have already divided by everything.
        return loss * self.trainer.accumulate_grad_batches * self.trainer.world_size

    def gather_statistics(
        self, first: Scores, others: Iterable[Batch], against: Reference | None = None
    ) -> dict[str, Tensor]:
        """The objective's step statistics: means over all micro-batches and ranks, whoever has which of them to the
        same bits; {} for most methods. Every rank has as many micro-batches."""
        with torch.no_grad():
            found = [self.objective.statistics(first)]
            if not found[0]:
                return {}
            found += [self.objective.statistics(self.score(batch, against)) for batch in others]
            own = torch.stack([torch.stack([torch.stack(pair) for pair in part.values()]) for part in found])
            of_all = self.trainer.strategy.all_gather(own.double())
            added = torch.tensor(exact_sums(of_all.reshape(-1, *own.shape[1:])), dtype=own.dtype)
            seen = means({name: (s, c) for name, (s, c) in zip(found[0], added, strict=True)})
            return {name: mean.to(own.device) for name, mean in seen.items()}

    def configure_optimizers(self) -> dict[str, Any]:
        model = self.policy.model
        if not any(p.requires_grad for p in model.parameters()):
            raise RequestError("nothing trains: every weight is frozen (an adapter loaded without is_trainable=True?)")
        optimizer = self.make_optimizer(list(self.policy.trainable().values()))
        # Gradients are unscaled, measured and clipped before the step, whatever the precision; a fused optimizer offers
        # to unscale them inside it, and Lightning then refuses to clip.
        optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
        steps = self.trainer.max_steps
        schedule = LambdaLR(optimizer, lambda step: self.schedule(step, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """As Lightning does, to the same bits. On a CPU the norm is not taken again, and where it is below the limit no
        gradient is multiplied by 1: two passes over all of them."""
        norm, self.grad_norm = self.grad_norm, None
        if norm is None or norm.device.type != "cpu" or self.policy.sharded or not gradient_clip_val:
            return self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        if not float(gradient_clip_val / (norm + 1e-6)) >= 1:  # a norm that is no number, too
            clip_grads_with_norm_([p for g in optimizer.param_groups for p in g["params"]], gradient_clip_val, norm)
        return None

    def on_train_start(self) -> None:
        # Hugging Face loads in eval mode, and Lightning leaves modes as it finds them.
        self.policy.train()
        if self._resumed_rng is not None:
            _restore_rng(self._resumed_rng, self.device)

    # ------------------------------------------------------------ held-out rows

    def on_validation_epoch_start(self) -> None:
        self._while_validating.enter_context(whole(self.policy))
        self.held_out.reset()
        self.held_out_sums.reset()
        self.statistics = {}
        loader = self.trainer.val_dataloaders[-1]
        if not self._reads(loader.view.data):
            return
        batches = (batch.to(self.device) for batch in loader)
        with torch.no_grad(), self.trainer.precision_plugin.forward_context():
            scores = self.score(next(batches), self.base)
            self.statistics = self.gather_statistics(scores, batches, self.base)

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Loader 0 shows every held-out completion once; the last one shows them as the objective wants them. Both hold
        the policy against the base, so that rewards and losses do not depend on what the reference has become."""
        scores = self.score(batch, self.base, always=dataloader_idx == 0)
        if dataloader_idx == 0:
            self.held_out.update(batch.data, scores, self.objective.reward(scores))
        if dataloader_idx == len(self.trainer.val_dataloaders) - 1 and self._reads(batch.data):
            terms = self.objective.all_terms(scores, self.statistics)
            counts = batch.units()
            self.held_out_sums.update({t.name: (t.coefficient * t.sum, counts[t.unit]) for t in terms})

    def _reads(self, data: str) -> bool:
        """Whether rows of this kind are what the objective learns from: no recorded row is a rollout."""
        return data == self.objective.needs.data

    def on_validation_epoch_end(self) -> None:
        self._while_validating.close()
        self.policy.train(self.trainer.training)

    def held_out_measures(self, examples: Sequence[Encoded]) -> dict[str, float | None]:
        """What summary.json says of a split, after a validation pass over it."""
        known = bool(self.held_out_sums.names)  # a loss on rollouts has none on recorded rows
        loss = sum(self.held_out_sums.compute().values()) if known else math.nan
        return {"loss": loss if math.isfinite(loss) else None, **measures(self.held_out.compute(), examples)}

    # ------------------------------------------------------------ checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        wanted = {f"policy.{name}" for name in self.policy.trainable()}
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in wanted}
        checkpoint["trains"] = sorted(wanted)  # of shards, one process alone is handed the weights
        checkpoint["rng"] = of_all_ranks(_rng_state(self.device), self.trainer.world_size)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        wanted = {f"policy.{name}" for name in self.policy.trainable()}
        held = set(checkpoint.get("state_dict") or checkpoint["trains"])  # shards have taken theirs out by now
        if wanted != held:
            different = sorted(wanted ^ held)
            raise RequestError(
                f"the checkpoint does not hold what trains here; {len(different)} differ: {different[0]}"
            )
        self._resumed_rng = checkpoint["rng"][self.trainer.global_rank]


def term_entries(terms: Iterable[Term], counts: Mapping[str, float]) -> Entries:
    """(sum, count) by name; a term whose unit the step has none of counts as 0, not as missing."""
    return {t.name: (t.coefficient * t.sum, counts[t.unit]) if counts[t.unit] else (0.0, 1.0) for t in terms}


def _share_counts(parts: Entries, trainer: L.Trainer) -> Entries:
    """Every micro-batch divides by its step's count, so adding up must count it once over micro-batches and ranks."""
    shares = trainer.accumulate_grad_batches * trainer.world_size
    return {name: (part, count / shares) for name, (part, count) in parts.items()}


def _rng_state(device: torch.device) -> dict[str, Any]:
    """Everything a later draw of this rank depends on, in types that load under weights_only=True. Of GPUs its own
    alone: the run may go on where there are more or fewer."""
    state: Any = np.random.get_state()
    _, keys, *rest = state
    cuda = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    version, words, gauss = random.getstate()
    python = (version, _words(words), gauss)
    return {"torch": torch.get_rng_state(), "cuda": cuda, "python": python, "numpy": (_words(keys), *rest)}


def _words(numbers: Sequence[int]) -> Tensor:
    """Unsigned 32-bit numbers as int32 of the same bits: as a list they take twice the room."""
    return torch.from_numpy(np.asarray(numbers, dtype=np.uint32).view(np.int32).copy())


def _numbers(words: Tensor) -> np.ndarray:
    return words.cpu().numpy().view(np.uint32)


def _restore_rng(state: dict[str, Any], device: torch.device) -> None:
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"][0].cpu(), device)
    version, words, gauss = state["python"]
    random.setstate((version, tuple(_numbers(words).tolist()), gauss))
    words, *rest = state["numpy"]
    np.random.set_state(("MT19937", _numbers(words), *rest))
