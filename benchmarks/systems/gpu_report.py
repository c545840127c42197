"""What benchmarks/gpu.py says of its runs: rates, ratios within a round, goals beside them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

import torch

from benchmarks.systems.gpu_common import Step
from benchmarks.systems.gpu_floor import counted
from benchmarks.systems.gpu_inputs import told
from benchmarks.systems.launch import spread

GOALS = {"TRL / prefopt, 1:1": 1.5, "TRL / prefopt, 4:1": 2.5, "share of the measured matmul rate": 0.45}
Found = dict[str, Any]


def has_cuda() -> bool:
    return torch.cuda.is_available()


def hardware(runs: Iterable[Found]) -> str | None:
    return next((run["hardware"] for run in runs if "hardware" in run), None)


def why_not(run: Found) -> str | None:
    """Why a run has no numbers."""
    return run.get("absent") or run.get("failed")


# ---------------------------------------------------------------- speed


def speed(runs: dict[str, dict[str, list[Found]]], floor: Found, steps: list[Step]) -> Found:
    """runs: by mode and system, one a round."""
    found: Found = {"goals": GOALS, "pairs": told(steps), "floor": floor, "modes": {}}
    found["hardware"] = hardware(run for systems in runs.values() for rounds in systems.values() for run in rounds)
    for mode, systems in runs.items():
        found["modes"][mode] = _mode(systems, floor.get(mode), steps)
        say_mode(mode, found["modes"][mode])
    return found


def _mode(systems: dict[str, list[Found]], floor: Found | None, steps: list[Step]) -> Found:
    pairs = sum(map(len, steps)) / len(steps)
    tokens = sum(counted(step)[0] for step in steps) / len(steps)
    found: Found = {}
    for name, rounds in systems.items():
        why = next((why_not(run) for run in rounds if why_not(run)), None)
        if why:
            found[name] = {"absent": why}
            continue
        took = [mean_step(run, len(steps)) for run in rounds]
        middle = statistics.median(took)
        found[name] = {
            "seconds_per_step": spread(took),
            "pairs_per_second": pairs / middle,
            "tokens_per_second": tokens / middle,
            "share_of_matmul_rate": floor["flops"] / middle / floor["rate"] if floor else None,
            "peak_bytes": max((run["peak"] for run in rounds if run["peak"]), default=None),
            "loss": statistics.mean(rounds[0]["loss"]),
            "attention": rounds[0].get("attention"),
            "falls_back": rounds[0].get("falls back"),
            "versions": rounds[0].get("versions"),
            "seconds": [run["seconds"] for run in rounds],
        }
    if all("seconds" in one for one in found.values()):
        means = {name: [mean_step(run, len(steps)) for run in rounds] for name, rounds in systems.items()}
        found["TRL / prefopt"] = spread([a / b for a, b in zip(means["TRL"], means["prefopt"], strict=True)])
    if floor:
        found["floor"] = {"seconds_per_step": floor["flops"] / floor["rate"], "flops": floor["flops"]}
    return found


def mean_step(run: Found, steps: int) -> float:
    """Seconds; the first pass over the steps warms up."""
    return statistics.mean(run["seconds"][steps:])


def say_speed(number: int, mode: str, name: str, run: Found, steps: int) -> None:
    took = why_not(run) or f"{mean_step(run, steps):.4f} s a step"
    print(f"round {number}  {mode:5} {name:8} {took}", flush=True)


def say_mode(mode: str, found: Found) -> None:
    for name in ("prefopt", "TRL"):
        one = found[name]
        if "absent" in one:
            print(f"{mode:5} {name:8} absent: {one['absent']}")
            continue
        share, goal = one["share_of_matmul_rate"], GOALS["share of the measured matmul rate"]
        of_rate = "" if share is None else f", {share:.1%} of the matmul rate (goal {goal:.0%})"
        rates = f"{one['pairs_per_second']:.1f} pairs/s, {one['tokens_per_second']:.0f} tokens/s"
        print(f"{mode:5} {name:8} {rates}{of_rate}, peak {_gib(one['peak_bytes'])}, loss {one['loss']:.5f}")
        if one["falls_back"]:
            print(f"{mode:5} {name:8} pads, because {one['falls_back']}")
    if "TRL / prefopt" in found:
        ratio = found["TRL / prefopt"]
        print(f"{mode:5} TRL / prefopt {ratio['median']:.2f} ({ratio['least']:.2f} to {ratio['most']:.2f})", flush=True)


# ---------------------------------------------------------------- the other parts


def say_memory(name: str, run: Found) -> None:
    if why_not(run):
        print(f"{name:36} absent: {why_not(run)}", flush=True)
        return
    cells = [_case(tokens, case) for tokens, case in run["cases"].items()]
    print(f"{name:36} {'  '.join(cells)}", flush=True)


def _case(tokens: str, case: Found) -> str:
    if "failed" in case:
        return f"{tokens}: {case['failed']}"
    return f"{tokens}: {_gib(case['grown'])}, {case['seconds'] * 1e3:.1f} ms"


def say_attention(run: Found) -> None:
    if why_not(run):
        print(f"attention: {why_not(run)}")
        return
    for name, forest in run["forests"].items():
        masks = ", ".join(f"{kind} {took * 1e3:.2f} ms" for kind, took in forest["masks"].items())
        print(f"{name}: {forest['tokens']} tokens, {forest['trees']} trees; {masks}")
        for way, one in forest["ways"].items():
            worst = max(one["errors"].values(), default=float("nan"))
            if "absent" in one:
                print(f"  {way:14} absent: {one['absent']}")
                continue
            forward, both = (statistics.median(one[kind]) for kind in ("forward", "both"))
            rate = forest["flops"] / forward / 1e12
            times = f"forward {forward * 1e3:.3f} ms ({rate:.0f} TFLOP/s), with backward {both * 1e3:.3f} ms"
            print(f"  {way:14} {times}, error {worst:.0e}")


def sharing(own: Found, theirs: Found, steps: dict[str, list[Step]]) -> Found:
    """Of every ratio: tokens by layout, seconds a step, and those to the shared layout's within a pass. TRL's process
    has passes of its own: their mean is taken."""
    found: Found = {"goals": GOALS, "hardware": hardware([own, theirs]), "ratios": {}}
    for name, some in steps.items():
        one: Found = {"tokens": told(some)}
        found["ratios"][name] = one
        if why_not(own):
            one["failed"] = why_not(own)
            continue
        took = dict(own[name]["seconds"])
        one |= {"peak_bytes": own[name]["peak"], "loss": own[name]["loss"]}
        if why_not(theirs):
            one["TRL"] = {"absent": why_not(theirs)}
        else:
            took["TRL"] = [mean_step(theirs[name], len(some))] * len(took["shared"])
            one["TRL"] = {key: theirs[name][key] for key in ("peak", "attention")} | {"versions": theirs["versions"]}
        one["seconds_per_step"] = {way: spread(times) for way, times in took.items()}
        one["seconds_to_shared"] = {
            way: spread([a / b for a, b in zip(times, took["shared"], strict=True)]) for way, times in took.items()
        }
        one["losses differ by"] = _differ(own[name]["loss"])
    return found


def _differ(losses: dict[str, list[float]]) -> float:
    """The largest difference of a step's loss from the shared layout's, relative to that."""
    pairs = [(a, b) for some in losses.values() for a, b in zip(some, losses["shared"], strict=True)]
    return max(abs(a - b) / max(abs(b), 1e-12) for a, b in pairs)


def say_sharing(found: Found) -> None:
    for name, one in found["ratios"].items():
        if "failed" in one:
            print(f"{name}: {one['failed']}")
            continue
        tokens = one["tokens"]
        read = ", ".join(f"{way} {tokens[way] / tokens['shared']:.2f}" for way in ("unshared", "padded"))
        times = ", ".join(f"{way} {r['median']:.2f}" for way, r in one["seconds_to_shared"].items() if way != "shared")
        goal = GOALS.get(f"TRL / prefopt, {name}")
        beside = f" (goal against TRL {goal})" if goal else ""
        differ = f"losses differ by {one['losses differ by']:.0e}"
        print(f"{name}: tokens to shared: {read}; seconds to shared: {times}{beside}; {differ}")


def _gib(size: int | None) -> str:
    return "unknown" if size is None else f"{size / 2**30:.2f} GiB"
