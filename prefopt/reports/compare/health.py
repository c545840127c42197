"""What a person should look at before believing a number, in words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from prefopt.reports.compare.measures import TAIL, Summary, Values
from prefopt.reports.compare.optimum import SURELY, Optimum
from prefopt.reports.compare.settings import Method, Setting

FALLS = 1.0  # nats per completion by which the chosen one's log-prob has fallen
GROWS, SHRINKS = 1.5, 0.5  # times the base's length
COLLAPSES = 0.5  # times the base's share of different bigrams
REPEATS = 0.1  # more repeated trigrams than the base
NEAR_LOG_2 = 0.01


def flags(methods: Sequence[Method], values: Values, optimum: Optimum | None = None) -> list[tuple[str, str]]:
    """(setting, sentence) of everything odd among the settings that are shown, and of each method's grid."""
    found = [(setting.name, s) for method in methods for setting in method.shown for s in _of_setting(setting)]
    found += [(method.name, sentence) for method in methods for sentence in _of_grid(method, values)]
    if optimum is not None:
        found += [("optimum", sentence) for sentence in optimum.doubts()] + impossible(values, optimum)
    return found


def impossible(values: Values, optimum: Optimum) -> list[tuple[str, str]]:
    """(setting, sentence) of every setting that has more gold reward than any policy can have at its KL."""
    return [(setting.name, sentence) for setting, of in values.items() for sentence in _above(of, optimum)]


def _of_setting(setting: Setting) -> Iterator[str]:
    yield from _log_probs(setting)
    yield from _answers(setting)
    stuck = [sentence for run in setting.runs if (sentence := _stuck(run.curves, _rate(run.config)))]
    if stuck:
        yield f"{_some(stuck, setting)}: {stuck[0]}"
    yield from _alarms(setting)


def _alarms(setting: Setting) -> Iterator[str]:
    """What the guards of on-policy runs have said, each guard once."""
    raised: dict[str, list[str]] = {}
    for run in setting.runs:
        for alarm in run.summary.get("health") or []:
            raised.setdefault(alarm["guard"], []).append(f"step {alarm['step']}: {alarm['sentence']}")
    for said in raised.values():
        yield f"{_some(said, setting)}, {said[0]}"


def _log_probs(setting: Setting) -> Iterator[str]:
    chosen, rejected = (_mean(setting, "test", f"{side}_logp_delta") for side in ("chosen", "rejected"))
    if chosen is not None and rejected is not None and chosen < -FALLS and rejected < 0:
        yield (
            f"both log-probs fall: chosen by {-chosen:.1f} nats, rejected by {-rejected:.1f}; what is learnt in their "
            "place is in neither"
        )


def _answers(setting: Setting) -> Iterator[str]:
    own, base = ({m: _mean(setting, s, m) for m in MEANT} for s in ("samples", "samples_reference"))
    if any(value is None for value in (*own.values(), *base.values())):
        return
    if own["length"] > GROWS * base["length"]:
        yield f"answers grow: {own['length']:.1f} tokens, the base's have {base['length']:.1f}"
    if own["length"] < SHRINKS * base["length"]:
        yield f"answers shrink: {own['length']:.1f} tokens, the base's have {base['length']:.1f}"
    if own["distinct_2"] < COLLAPSES * base["distinct_2"]:
        yield f"diversity collapses: distinct-2 is {own['distinct_2']:.3f}, the base's {base['distinct_2']:.3f}"
    if own["repetition"] > base["repetition"] + REPEATS:
        yield f"answers repeat themselves: {own['repetition']:.0%} of trigrams, the base's {base['repetition']:.0%}"


MEANT = ("length", "distinct_2", "repetition")


def _stuck(curves: dict[str, np.ndarray], rate: float | None) -> str | None:
    """A loss that began at log 2, where no reward has a preference, and is there still; and why."""
    loss, norms = curves["loss"], curves["grad_norm"]
    last = loss[-max(1, int(TAIL * len(loss))) :]
    if len(loss) < 2 or abs(loss[0] - math.log(2)) > NEAR_LOG_2 or not abs(last.mean() - math.log(2)) < NEAR_LOG_2:
        return None
    if not np.nanmax(norms, initial=0.0) > 0:
        why = "no gradient reaches the weights"
    elif rate is not None and rate * len(loss) < 1e-3:  # an adaptive step moves a weight by about its rate
        why = f"a learning rate of {rate:g} moves a weight by {rate * len(loss):.1g} at most in {len(loss)} steps"
    else:
        why = "gradients are there, so the labels look like noise to it, or the rate or the strength is too small"
    return f"stuck at log 2 (the loss ends at {last.mean():.4f}): {why}"


def _of_grid(method: Method, values: Values) -> Iterator[str]:
    """KL that is paid for nothing: a setting further away whose gold reward is surely lower."""
    points = []
    for setting in method.settings:
        kl, gold, error = (values[setting][key] for key in ("kl", "gold_reward", "gold_reward_stderr"))
        if kl and gold and error:
            points.append((kl.mean, gold.mean, error.mean, setting.name))
    points.sort(key=lambda point: point[0])
    for near, far in pairwise(points):
        if far[1] + 2 * far[2] < near[1] - 2 * near[2]:
            yield (
                f"KL rises and reward falls: {far[3]} has {far[1]:.2f} at {far[0]:.2f} nats, "
                f"{near[3]} has {near[1]:.2f} at {near[0]:.2f}"
            )


def _above(values: Summary, optimum: Optimum) -> Iterator[str]:
    """Means over seeds are held to the frontier too, as it is concave."""
    gold, gold_error, kl, kl_error = (values[key] for key in OF_THE_POLICY)
    if not (gold and gold_error and kl and kl_error):
        return
    more, error = optimum.above(gold.mean, gold_error.mean, kl.mean, kl_error.mean)
    if more > SURELY * error:
        yield (
            f"above the optimum: gold reward {gold.mean:.3f} at {kl.mean:.3f} nats, where no policy has more than "
            f"{gold.mean - more:.3f} (error {error:.3f}); so a reward, a KL or a log-prob is wrong"
        )


OF_THE_POLICY = ("gold_reward", "gold_reward_stderr", "kl", "kl_stderr")


def _mean(setting: Setting, section: str, name: str) -> float | None:
    values = [run.measured(section, name) for run in setting.runs]
    return None if any(value is None for value in values) else float(np.mean([v for v in values if v is not None]))


def _rate(config: dict) -> float | None:
    rate = (config.get("optimizer") or {}).get("lr")
    return rate if isinstance(rate, (int, float)) else None


def _some(said: list[str], setting: Setting) -> str:
    return "every seed" if len(said) == len(setting.runs) else f"{len(said)} of {len(setting.runs)} seeds"
