"""A search over intervals: Optuna proposes, the jobs of a sweep answer. What it knows lies beside the ledger."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn

from prefopt.errors import RequestError, first_line, nearest
from prefopt.progress import say
from prefopt.run import ENDED, PLACES
from prefopt.scrub import scrubbed

if TYPE_CHECKING:
    import optuna

DIRECTIONS = ("maximize", "minimize")
EXAMPLE = "loss.beta='tag(log,interval(0.01,1))'"


class Launcher(Protocol):
    """What runs the jobs. A job that has not ended returns {} or a summary that says so."""

    parallel: int

    @property
    def folder(self) -> str: ...

    def check(self, job_overrides: Sequence[Sequence[str]]) -> None: ...

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]: ...


@dataclass(frozen=True)
class Wanted:
    """Of hydra.sweeper. trials: of each study. metric: a place in summary.json, "val.accuracy"."""

    trials: int
    metric: str
    direction: str
    seed: int

    def __post_init__(self) -> None:
        if self.direction not in DIRECTIONS:
            hint = nearest(str(self.direction), DIRECTIONS)
            raise RequestError(f"hydra.sweeper.direction={self.direction}: accepted: {', '.join(DIRECTIONS)}{hint}")
        if not isinstance(self.trials, int) or self.trials < 1:
            raise RequestError(f"hydra.sweeper.trials must be a whole number, at least 1; got {self.trials!r}")


@dataclass(frozen=True)
class Range:
    """An interval of the command line, ends included. whole: of integers."""

    key: str
    low: float
    high: float
    log: bool
    whole: bool

    @classmethod
    def of(cls, override: Override) -> Range:
        given: Any = override.value()
        key, whole = override.get_key_element(), isinstance(given.start, int)
        found = cls(key, given.start, given.end, "log" in given.tags, whole)
        if not (math.isfinite(found.low) and math.isfinite(found.high) and found.low < found.high):
            raise RequestError(f"{override.input_line}: an interval goes from a lower number to a higher one")
        if found.log and found.low <= 0:
            raise RequestError(f"{override.input_line}: a logarithmic interval begins above 0")
        for tag in sorted(given.tags - {"log"}):
            raise RequestError(f"{override.input_line}: no such tag: {tag}{nearest(tag, ['log'])}\naccepted: log")
        return found

    def propose(self, trial: optuna.Trial) -> None:
        if self.whole:
            trial.suggest_int(self.key, int(self.low), int(self.high), log=self.log)
        else:
            trial.suggest_float(self.key, self.low, self.high, log=self.log)

    def holds(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int if self.whole else (int, float)):
            return False
        rounded = any(math.isclose(value, end) for end in (self.low, self.high))  # e^(log x) is not always x
        return self.low <= value <= self.high or rounded


@dataclass
class Search:
    """One study: the runs that differ in nothing but what is searched.

    begun: numbers of trials that have no answer yet, from a sweep that was stopped. unmeasured: how many trials ended
    well in this one and had no number.
    """

    study: optuna.Study
    overrides: list[str]
    ranges: Sequence[Range]
    begun: list[int] = field(default_factory=list)
    unmeasured: int = 0

    @property
    def trials(self) -> list[optuna.trial.FrozenTrial]:
        """Those that say what is searched and nothing else. Others were killed before it was proposed, or are not of
        this search: what the file holds becomes the words of a command."""
        keys = {interval.key for interval in self.ranges}
        return [
            trial
            for trial in self.study.trials
            if trial.params.keys() == keys and all(one.holds(trial.params[one.key]) for one in self.ranges)
        ]

    def next(self) -> int:
        """The number of a trial to run."""
        while not self.begun:
            trial = self.study.ask()
            for interval in self.ranges:
                interval.propose(trial)
            self.begin(trial.number)
        return self.begun.pop(0)

    def begin(self, number: int) -> None:
        if number in [trial.number for trial in self.trials]:
            self.begun.append(number)
        else:
            say(f"trial {number} does not say what is searched: another takes its place")
            self.fail(number)

    def fail(self, number: int) -> None:
        from optuna.trial import TrialState

        self.study.tell(number, state=TrialState.FAIL)

    def job(self, number: int) -> list[str]:
        found = self.study.trials[number].params
        return [*self.overrides, *(f"{key}={_readable(value)}" for key, value in found.items())]


def search(overrides: Sequence[Override], wanted: Wanted, launcher: Launcher) -> None:
    """Runs `wanted.trials` of every combination of the values that are no intervals; those that ran before count.

    Raises RequestError before anything is written where an end of an interval is not accepted.
    """
    ranges = [Range.of(o) for o in overrides if o.is_interval_sweep()]
    if not ranges:
        raise RequestError(f"hydra/sweeper=optuna searches intervals, and none is given; for example {EXAMPLE}")
    named = next((o for o in overrides if o.key_or_group == "sweep"), None)
    if named is not None:
        raise RequestError(
            f"{named.input_line}: a named sweep has grids of its own; hydra/sweeper=optuna searches without"
        )
    ((*points,),) = BasicSweeper.split_arguments([o for o in overrides if not o.is_interval_sweep()], None)
    for end in ("low", "high"):
        ends = [f"{interval.key}={getattr(interval, end)!r}" for interval in ranges]
        launcher.check([[*point, *ends] for point in points])
    intervals = [str(o.input_line) for o in overrides if o.is_interval_sweep()]
    searches = [_begin(point, ranges, intervals, wanted, Path(launcher.folder).expanduser()) for point in points]
    while batch := list(_batch(searches, wanted.trials, launcher.parallel)):
        summaries = _launched(batch, launcher)
        for (of, number), summary in zip(batch, summaries, strict=True):
            _tell(of, number, summary, wanted.metric)
        if any(summary.get("status") not in (*ENDED, "failed") for summary in summaries):
            return  # interrupted: what has begun is the next sweep's to end
    for of in searches:
        _say_best(of, wanted, _own(of, searches))
    for of in searches:
        if of.unmeasured and not any(trial.value is not None for trial in of.trials):
            raise RequestError(
                f"hydra.sweeper.metric={wanted.metric}: no run of {_own(of, searches) or 'this search'} has such a "
                "number; its summary.json says which it has"
            )


def _own(of: Search, searches: Sequence[Search]) -> str:
    """What sets it apart from the others."""
    return " ".join(o for o in of.overrides if any(o not in other.overrides for other in searches))


def _launched(batch: Sequence[tuple[Search, int]], launcher: Launcher) -> list[dict[str, Any]]:
    """The summary of each trial. One between two accepted ends may be refused: it has failed, and the others run."""
    try:
        returned = launcher.launch([of.job(number) for of, number in batch], 0)
        return [one.return_value for one in returned]
    except RequestError as error:
        if len(batch) > 1:
            return [summary for one in batch for summary in _launched([one], launcher)]
        ((of, number),) = batch
        try:
            launcher.check([of.job(number)])
        except RequestError:
            say(f"trial {number} failed: {first_line(error)}")
            return [{"status": "failed"}]
        raise  # not the trial's fault


def _readable(value: float) -> str:
    """Four digits are as many as a person can make use of, in a folder's name too."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _begin(
    point: Sequence[str], ranges: Sequence[Range], intervals: Sequence[str], wanted: Wanted, folder: Path
) -> Search:
    try:
        import optuna
    except ModuleNotFoundError:
        raise RequestError("hydra/sweeper=optuna needs Optuna: pip install 'prefopt[optuna]'") from None
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    places = (*PLACES, "sweep_dir")
    same = sorted(o for o in point if o.partition("=")[0] not in places)
    folder.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        study_name=scrubbed(" ".join([*same, *intervals, wanted.metric])),
        direction=optuna.study.StudyDirection[wanted.direction.upper()],
        storage=optuna.storages.JournalStorage(JournalFileBackend(str(folder / "optuna.journal"))),
        load_if_exists=True,
    )
    # A search that goes on must not propose again what it began with.
    seed, drawn = wanted.seed + len(study.trials), max(2, wanted.trials // 3)
    study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=drawn)
    found = Search(study, list(point), ranges)
    for trial in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):
        found.begin(trial.number)
    return found


def _batch(searches: Sequence[Search], trials: int, size: int) -> Iterator[tuple[Search, int]]:
    """Trials to run at once, of as many studies as there are: a study proposes better when it has its answers."""
    for _ in range(size):
        left = [of for of in searches if of.begun or len(of.trials) < trials]
        if not left:
            return
        of = min(left, key=lambda one: len(one.trials) - len(one.begun))
        yield of, of.next()


def _tell(of: Search, number: int, summary: dict[str, Any], metric: str) -> None:
    status = summary.get("status")
    if status in ENDED:
        value = _measure(summary, metric)
        if value is not None:
            of.study.tell(number, value)
            return
        say(f"trial {number} counts as failed: its {metric} is no number")
        of.unmeasured += 1
        of.fail(number)
    elif status == "failed":
        of.fail(number)


def _measure(summary: dict[str, Any], metric: str) -> float | None:
    """None where it is null, as the KL of a method that says nothing is, or not finite. RequestError where it is no
    number's place."""
    found: Any = summary
    for part in metric.split("."):
        if found is None:
            return None
        known = sorted(found) if isinstance(found, dict) else []
        if part not in known:
            raise RequestError(
                f"hydra.sweeper.metric={metric}: this run's summary has no such number{nearest(part, known)}\n"
                f"accepted there: {', '.join(known) or 'nothing'}"
            )
        found = found[part]
    if found is None:
        return None
    if isinstance(found, bool) or not isinstance(found, (int, float)):
        raise RequestError(f"hydra.sweeper.metric={metric}: this run's is {found!r:.40}, not a number")
    return float(found) if math.isfinite(found) else None


def _say_best(of: Search, wanted: Wanted, own: str) -> None:
    answered = [trial for trial in of.trials if trial.value is not None]
    name = own or "best"
    if not answered:
        say(f"{name}: none of {len(of.trials)} trials has an answer")
        return
    best = of.study.best_trial
    at = " ".join(f"{key}={_readable(value)}" for key, value in best.params.items())
    say(f"{name}: {wanted.metric} {best.value:.4g} at {at}, the best of {len(answered)} trials")
