"""The known optimum of runs on the controlled world: whose samples it rests on, and where they are kept."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from prefopt.errors import RequestError, first_line
from prefopt.files import cached_folder, check_can_be_made
from prefopt.metrics.optimum import Pool
from prefopt.progress import say
from prefopt.reports.compare.optimum import Optimum
from prefopt.reports.compare.runs import Run
from prefopt.reports.compare.statistics import pareto
from prefopt.run import Finished, config_hash, finished_run

VERSION = 1  # another way to sample, to score or to judge must change it: what is kept is found by it
POLICIES = 3  # trained ones in a pool


def known_optimum(runs: Sequence[Run], samples: int, cache: Path) -> tuple[Optimum | None, str]:
    """The optimum under the prompts that these comparable runs answered, or why there is none: nothing where there
    could not be one, as the true reward is not known or no run was held against it. samples: of every prompt."""
    measured = [run for run in runs if _point(run) is not None]
    if not measured or any((run.config.get("data") or {}).get("kind") != "controlled" for run in runs):
        return None, ""
    try:
        return _estimated(measured, samples, cache), ""
    except ValueError as error:
        return None, f"No optimum: {first_line(error)}."


def spanning(runs: Sequence[Run], most: int = POLICIES) -> list[Run]:
    """Runs that no other one beats in KL and gold reward, so those nearest to the optimum, spread evenly over the upper
    half of √KL: under it the base's own samples tell enough."""
    known = {run: point for run in runs if (point := _point(run)) is not None}
    front = [list(known)[i] for i in pareto(*zip(*known.values(), strict=True))]
    roots = np.sqrt([max(known[run][0], 0.0) for run in front])
    wanted = roots[-1] * np.linspace(0.5, 1.0, most)
    chosen = {int(np.abs(roots - root).argmin()) for root in wanted}
    return [front[i] for i in sorted(chosen)]


def parts(samples: int, trained: int) -> list[int]:
    """Of the base a quarter, which is enough near it; of each trained policy an equal part of the rest."""
    each = 3 * samples // (4 * trained) if trained else 0
    return [samples - trained * each, *[each] * trained]


def _estimated(runs: Sequence[Run], samples: int, cache: Path) -> Optimum:
    if len({config_hash(run.config["model"].get("quant")) for run in runs}) > 1:
        raise RequestError("the runs' bases are not all quantised alike")
    held = [run for run in runs if (run.path / "model").is_dir()]
    if not held:
        raise RequestError("no run has kept its folder model/")
    if any(run.config["model"].get("trust_remote_code") for run in held):
        raise RequestError("the runs' models bring code of their own, which is not run here")
    first, *trained = [finished_run(str(run.path)) for run in (held[0], *spanning(held))]
    prompts = [str(row["prompt"]) for row in runs[0].samples]
    counts = parts(samples, len(trained))
    base = [first.summary["base_hash"], *_identity(first)[1:]]
    key = config_hash([VERSION, counts, prompts, base, [_identity(run) for run in trained]])
    make = partial(_make, first=first, trained=trained, prompts=prompts, counts=counts, cache=cache)
    pools, largest = _read(cached_folder(cache / "optimum" / key[:20], make) / "pools.npz")
    return Optimum.of(pools, largest, [run.path.name for run in trained])


def _identity(run: Finished) -> list[Any]:
    """What the answers of its policy depend on, wherever it lies; after its weights what its base's depend on too."""
    longest = run.config["evaluation"]["max_new_tokens"]
    return [run.summary["model_hash"], run.config["model"], run.config["trainer"]["precision"], longest]


def _make(folder: Path, **asked: Any) -> None:
    check_can_be_made(asked["cache"], "--cache-dir")
    counts = asked["counts"]
    say(
        f"the known optimum: {sum(counts)} samples under each of {len(asked['prompts'])} prompts, of the base and "
        f"{len(counts) - 1} trained policies; kept for the next time"
    )
    from prefopt.jobs.pooling import save_pools  # the heavy libraries, only where something is left to do

    save_pools(folder, **asked)


def _read(file: Path) -> tuple[list[Pool], list[float]]:
    """A pool for every prompt, and the prompts' largest rewards [P]."""
    try:
        with np.load(file) as held:
            rewards, logps, source, largest = (held[name] for name in ("rewards", "logps", "source", "largest"))
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise RequestError(f"{file} cannot be read: {first_line(error)}; remove its folder") from error
    return [Pool(r, said, source) for r, said in zip(rewards, logps, strict=True)], largest.tolist()


def _point(run: Run) -> tuple[float, float] | None:
    """KL and gold reward of its answers; None where either is not known."""
    kl, gold = (run.measured("samples", name) for name in ("kl", "gold_reward"))
    return None if kl is None or gold is None or not run.samples else (kl, gold)
