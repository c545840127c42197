"""Looks at every collection of a policy's own answers, and warns, stops or goes back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import lightning as L
import torch
from torch import Tensor

from prefopt.callbacks.steps import between_steps
from prefopt.module import PreferenceModule
from prefopt.progress import say
from prefopt.records import Batch
from prefopt.rollouts.guards import GUARDS, Alarm, smoothed
from prefopt.rollouts.source import Rollouts
from prefopt.settings import GuardsSettings


class Guards(L.Callback):
    """Each guard raises one alarm, once so many collections in a row are wrong. A collection shows the policy that was
    about to train on it: to go back is to have its weights again, those of the last collection at which no guard that
    may end the run was crossed and what watches, if anything does, was at its best. What has happened is part of the
    checkpoint, so this callback comes before the one that saves."""

    def __init__(
        self, source: Rollouts, settings: GuardsSettings, tell: Callable[[list[dict[str, Any]]], None]
    ) -> None:
        """tell: is handed all alarms as plain JSON when one more is raised."""
        self.source, self.settings, self.tell = source, settings, tell
        self.on = {name: guard for name, guard in settings.each().items() if guard.do != "off"}
        self.history: list[dict[str, float]] = []
        self.alarms: list[Alarm] = []
        self.wrong: dict[str, int] = {}  # by guard, collections in a row
        self.kept: dict[str, Tensor] = {}
        self.kept_at: int | None = None
        self._looks: float | None = None

    @property
    def ends(self) -> Alarm | None:
        """The alarm that ended the run."""
        return next((alarm for alarm in self.alarms if alarm.action != "warn"), None)

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        trainer.should_stop = trainer.should_stop or self.ends is not None

    def on_train_batch_start(self, trainer: L.Trainer, module: PreferenceModule, batch: Batch, batch_idx: int) -> None:
        if self.source.collections == len(self.history):
            return
        self.history.append(dict(self.source.measures))
        if len(self.history) < self.settings.window:
            return
        seen = smoothed(self.history, self.settings.window)
        wrong = {name: said for name, guard in self.on.items() if (said := GUARDS[name](seen, guard.at))}
        self.wrong = {name: self.wrong.get(name, 0) + 1 for name in wrong}
        for name, said in wrong.items():
            if self.wrong[name] >= self.settings.patience and name not in {alarm.guard for alarm in self.alarms}:
                action = self.on[name].do
                back_to = self.kept_at if action == "rollback" else None
                self._raise(Alarm(name, trainer.global_step, action, said, back_to))
        best = "watched" not in seen or seen["watched"].argmax() == len(seen["watched"]) - 1
        ending = [name for name in wrong if self.on[name].do != "warn"]
        if not ending and best and any(guard.do == "rollback" for guard in self.on.values()):
            self.kept = {name: p.detach().cpu().clone() for name, p in module.policy.trainable().items()}
            self.kept_at = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, module: PreferenceModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if self.ends is None or trainer.should_stop or not between_steps(trainer, batch_idx):
            return
        trainer.should_stop = True
        if (batch_idx + 1) % trainer.val_check_batch:  # Lightning would look at the held-out rows, out of turn
            self._looks, trainer.limit_val_batches = trainer.limit_val_batches, 0

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self._looks is not None:
            trainer.limit_val_batches = self._looks

    @torch.no_grad()
    def go_back(self, module: PreferenceModule) -> None:
        """When training has ended: where that was asked for, to the weights that were kept."""
        if self.ends is None or self.ends.action != "rollback":
            return
        if not self.kept:
            say("there is nothing to go back to: something was wrong from the first collections on")
            return
        for name, parameter in module.policy.trainable().items():
            parameter.copy_(self.kept[name])
        say(f"back to the weights of step {self.kept_at}, the last at which nothing was wrong")

    def _raise(self, alarm: Alarm) -> None:
        self.alarms.append(alarm)
        say(f"{WORDS[alarm.action]}: step {alarm.step}: {alarm.sentence} (guards.{alarm.guard})")
        self.tell([asdict(alarm) for alarm in self.alarms])

    def state_dict(self) -> dict[str, Any]:
        alarms, kept = [asdict(alarm) for alarm in self.alarms], {"kept": self.kept, "kept_at": self.kept_at}
        return {"history": self.history, "alarms": alarms, "wrong": self.wrong, **kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.history, self.wrong = state["history"], state["wrong"]
        self.kept, self.kept_at = state["kept"], state["kept_at"]
        self.alarms = [Alarm(**alarm) for alarm in state["alarms"]]


WORDS = {"warn": "warning", "stop": "stopping", "rollback": "going back"}
