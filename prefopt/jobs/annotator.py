"""From settings to the annotator of a run's answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from prefopt.errors import RequestError
from prefopt.jobs.loading import open_judge
from prefopt.progress import say
from prefopt.rewards import Calibrating, rule
from prefopt.rewards.ensemble import Ensemble
from prefopt.rewards.gold import Gold
from prefopt.rewards.model import Model
from prefopt.rewards.penalties import Penalised
from prefopt.rewards.scale import Scaled
from prefopt.rewards.sum import Sum
from prefopt.run import judging_run
from prefopt.settings.rewards import PENALTIES, RewardSettings

LEAST_OF_CEILING = 0.9  # of the accuracy that noisy labels allow, in the controlled world


@dataclass(frozen=True)
class Around:
    """What annotators are built with beside their settings. chat: whether the policy speaks in turns of a template."""

    gold: Callable[[Any, str], float] | None
    chat: bool


def build_annotator(
    settings: RewardSettings,
    gold: Callable[[Any, str], float] | None,
    *,
    chat: bool = False,
) -> Calibrating:
    """On the CPU. RequestError where what is asked cannot be had.

    gold: the true reward of (prompt, answer), where the data knows it. chat: whether the policy's tokenizer has a chat
    template.
    """
    return _weighed(settings, "reward", Around(gold, chat))


def _weighed(settings: RewardSettings, key: str, around: Around) -> Calibrating:
    """A weight outside a sum is a sum of one."""
    found = _whole(settings, key, around)
    return found if settings.weight == 1 else Sum({settings.kind: (settings.weight, found)})


def _whole(settings: RewardSettings, key: str, around: Around) -> Calibrating:
    """The judge, scaled, less penalties. key: where the settings stand, for messages."""
    found = _judge(settings, key, around)
    if settings.scale != "none":
        found = Scaled(found, running=settings.scale == "running")
    prices = {name: getattr(settings, name) for name in PENALTIES if getattr(settings, name)}
    return Penalised(found, prices) if prices else found


def _judge(settings: RewardSettings, key: str, around: Around) -> Calibrating:
    if settings.kind == "model":
        return _model(str(settings.name), f"{key}.name", settings, around)
    if settings.kind == "ensemble":
        members = [_model(name, f"{key}.names", settings, around) for name in settings.names or []]
        return Ensemble(members, settings.combine, settings.k)
    if settings.kind == "rule":
        return rule.Rule(_rule(settings, key))
    if settings.kind == "sum":
        asked = {name: settings.part(name) for name in settings.parts or {}}
        return Sum({name: (one.weight, _whole(one, f"{key}.parts.{name}", around)) for name, one in asked.items()})
    if around.gold is None:
        where = "reward=gold" if key == "reward" else f"{key}.kind=gold"
        raise RequestError(
            f"{where} is known in the controlled world only (data=controlled); take reward=model reward.name=RUN"
        )
    return Gold(around.gold)


def _rule(settings: RewardSettings, key: str) -> Callable[..., float]:
    if settings.rule == "regex":
        return rule.regex(str(settings.pattern))
    return rule.function(str(settings.function), key) if settings.rule == "function" else rule.exact(key)


def _model(name: str, key: str, settings: RewardSettings, around: Around) -> Model:
    run = judging_run(name, key)
    if run is not None and settings.least_accuracy is not None:
        _warn_of_weakness(run.summary, f"{key}={name}", settings.least_accuracy)
    judge = open_judge(name, key=key)
    if around.chat and not judge.renderer.tokenizer.chat_template:
        say(f"{key}={name} has no chat template, and the policy has: it judges its answers as plain text")
    return Model(judge)


def _warn_of_weakness(summary: dict[str, Any], named: str, least: float) -> None:
    """Of a reward model that is often wrong: what is optimised against it finds where."""
    of_ceiling = (summary.get("world") or {}).get("accuracy_of_ceiling")
    accuracy = (summary.get("test") or {}).get("accuracy")
    if of_ceiling is not None:
        weak, told = of_ceiling < LEAST_OF_CEILING, f"{of_ceiling:.3f} of the accuracy that its noisy labels allow"
    else:
        weak, told = accuracy is not None and accuracy < least, f"an accuracy of {accuracy or 0:.3f} on its test pairs"
    if weak:
        bound = f"{LEAST_OF_CEILING:g}" if of_ceiling is not None else f"reward.least_accuracy={least:g}"
        say(f"{named}: this reward model attains {told}, under {bound}: answers may learn its mistakes")
