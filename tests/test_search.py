"""A search: what it proposes, that it goes on where it was stopped, and what it refuses."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from optuna.storages.journal import JournalFileBackend

from prefopt.config.search import Range, Wanted, search
from prefopt.errors import RequestError

BETA = "loss.beta=tag(log,interval(0.01,1))"


class Runs:
    """A launcher whose runs are a function of their overrides."""

    def __init__(self, folder: Path, run: Callable[[dict[str, str]], dict[str, Any]], parallel: int = 1) -> None:
        self.folder, self.run, self.parallel = str(folder), run, parallel
        self.checked: list[dict[str, str]] = []
        self.made: list[dict[str, str]] = []

    def check(self, job_overrides: Sequence[Sequence[str]]) -> None:
        self.checked += [dict(o.split("=") for o in overrides) for overrides in job_overrides]

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        found = []
        for overrides in job_overrides:
            self.made.append(dict(o.split("=") for o in overrides))
            found.append(JobReturn(status=JobStatus.COMPLETED))
            found[-1].return_value = self.run(self.made[-1])
        return found


def peak(job: dict[str, str]) -> dict[str, Any]:
    """Best at β = 0.1."""
    return {"status": "finished", "val": {"accuracy": 1 - math.log10(float(job["loss.beta"]) / 0.1) ** 2}}


def ask(runs: Runs, *overrides: str, **wanted: Any) -> None:
    settings = {"trials": 6, "metric": "val.accuracy", "direction": "maximize", "seed": 0, **wanted}
    search(OverridesParser.create().parse_overrides(list(overrides)), Wanted(**settings), runs)


def test_it_finds_the_best_of_every_method_in_as_many_trials(tmp_path, capsys):
    """A method's best is found in its own trials, at four digits, between the ends."""

    def run(job):
        best = 0.03 if job["loss"] == "dpo" else 0.3
        return {"status": "finished", "val": {"accuracy": -abs(math.log(float(job["loss.beta"]) / best))}}

    runs = Runs(tmp_path, run, parallel=2)
    ask(runs, "loss=dpo,ipo", BETA, trials=25)
    assert runs.checked == [{"loss": loss, "loss.beta": beta} for beta in ("0.01", "1.0") for loss in ("dpo", "ipo")], (
        "both ends, of every method, before the first run"
    )
    for loss, best in (("dpo", 0.03), ("ipo", 0.3)):
        tried = [job["loss.beta"] for job in runs.made if job["loss"] == loss]
        assert len(tried) == 25
        assert all(0.01 <= float(beta) <= 1 and len(beta.lstrip("0.")) <= 4 for beta in tried)
        assert abs(math.log(float(min(tried, key=lambda b: abs(math.log(float(b) / best)))) / best)) < 0.2
    assert [job["loss"] for job in runs.made[:4]] == ["dpo", "ipo", "dpo", "ipo"]
    said = capsys.readouterr().err
    assert "loss=dpo: val.accuracy -0.0" in said
    assert "the best of 25 trials" in said


def test_it_goes_on_where_it_was_stopped(tmp_path):
    """Killed in the third trial: that one is run again, the others count, nothing is proposed twice."""
    third: list[str] = []

    def run(job):
        if len(runs.made) == 3 and not third:
            third.append(job["loss.beta"])
            raise KeyboardInterrupt
        return peak(job)

    runs = Runs(tmp_path, run)
    with pytest.raises(KeyboardInterrupt):
        ask(runs, BETA, trials=12)
    ask(runs, BETA, trials=12)
    betas = [job["loss.beta"] for job in runs.made]
    assert betas[3] == third[0]
    assert len(betas) == 13
    assert len(set(betas)) == 12
    ask(runs, BETA, trials=12)
    assert len(runs.made) == 13, "twelve trials were asked for"
    ask(runs, BETA, trials=14)
    assert len(runs.made) == 15
    ask(runs, BETA, "seed=1", trials=1)
    assert len(runs.made) == 16, "another seed is another search"
    ask(runs, BETA, "seed=1", "sweep_dir=elsewhere", "debug=true", trials=1)
    assert len(runs.made) == 16, "where it lies is no part of it"


def test_runs_that_failed_count_and_interrupted_ones_wait(tmp_path, capsys):
    states = iter(["failed", "finished", "running"])

    def run(job):
        return {**peak(job), "status": next(states)}

    runs = Runs(tmp_path, run)
    ask(runs, BETA, trials=5)
    assert len(runs.made) == 3
    again = Runs(tmp_path, peak)
    ask(again, BETA, trials=5)
    assert again.made[0] == runs.made[2]
    assert len(again.made) == 3
    assert "the best of 4 trials" in capsys.readouterr().err


def test_what_is_refused_between_two_accepted_ends_has_failed(tmp_path, capsys):
    """3 heads divide no 128: that trial is never run, and the search ends with all the others."""

    class Picky(Runs):
        def check(self, job_overrides):
            if ["model.tiny.heads=3"] in [list(job) for job in job_overrides]:
                raise RequestError("model.tiny.heads must be a divisor of hidden_size; got 3")

        def launch(self, job_overrides, initial_job_idx):
            tried.extend(job[0].partition("=")[2] for job in job_overrides)
            self.check(job_overrides)
            return super().launch(job_overrides, initial_job_idx)

    tried: list[str] = []
    runs = Picky(tmp_path, lambda job: {"status": "finished", "loss": float(job["model.tiny.heads"])})
    ask(runs, "model.tiny.heads=int(interval(1,4))", metric="loss", direction="minimize", trials=20)
    assert len(tried) == 20
    assert "3" in tried
    assert [job["model.tiny.heads"] for job in runs.made] == [heads for heads in tried if heads != "3"]
    assert "failed: model.tiny.heads must be a divisor of hidden_size; got 3" in capsys.readouterr().err
    ask(runs, "model.tiny.heads=int(interval(1,4))", metric="loss", direction="minimize", trials=20)
    assert len(tried) == 20, "every trial has its answer"


def test_a_sweep_that_cannot_begin_fails_no_trial(tmp_path):
    """Another process holds the folder: the search ends, and its trials wait."""

    class Held(Runs):
        def launch(self, job_overrides, initial_job_idx):
            raise RequestError("another process runs this sweep")

    with pytest.raises(RequestError, match="another process"):
        ask(Held(tmp_path, peak), BETA, trials=3)
    again = Runs(tmp_path, peak)
    ask(again, BETA, trials=3)
    assert len(again.made) == 3


def test_whole_numbers_and_the_least(tmp_path, capsys):
    runs = Runs(tmp_path, lambda job: {"status": "finished", "loss": float(job["model.lora.rank"])})
    ask(runs, "model.lora.rank=int(interval(1,4))", metric="loss", direction="minimize")
    tried = {job["model.lora.rank"] for job in runs.made}
    assert tried <= {"1", "2", "3", "4"}
    assert len(tried) > 1
    assert f"best: loss {min(tried)} at model.lora.rank={min(tried)}, the best of 6 trials" in capsys.readouterr().err


@pytest.mark.parametrize("unproposed", ["loss.beta", "optimizer.lr"])
def test_a_trial_that_was_killed_before_it_was_proposed_is_not_run(unproposed, tmp_path, monkeypatch, capsys):
    """It says nothing, or not all of it: its run would be one of the defaults. Nor does it count."""
    propose = Range.propose

    def killed(self, trial):
        if self.key == unproposed:
            raise KeyboardInterrupt
        propose(self, trial)

    runs, asked = Runs(tmp_path, peak), (BETA, "optimizer.lr=interval(0.1,0.2)")
    with monkeypatch.context() as patch:
        patch.setattr(Range, "propose", killed)
        with pytest.raises(KeyboardInterrupt):
            ask(runs, *asked, trials=3)
    ask(runs, *asked, trials=3)
    assert [set(job) for job in runs.made] == [{"loss.beta", "optimizer.lr"}] * 3
    said = capsys.readouterr().err
    assert "trial 0 does not say what is searched: another takes its place" in said
    assert "the best of 3 trials" in said


def test_the_journal_asks_for_nothing_but_what_is_searched(tmp_path):
    """It is a file, perhaps another person's: its trials neither run code nor leave the interval."""
    runs = Runs(tmp_path, peak)
    ask(runs, BETA, trials=2)
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(tmp_path / "optuna.journal")))
    (name,) = optuna.study.get_all_study_names(storage)
    study = optuna.load_study(study_name=name, storage=storage)
    log = optuna.distributions.FloatDistribution(0.01, 1, log=True)
    code = optuna.distributions.CategoricalDistribution([True])
    study.ask().suggest_float("loss.beta", 5, 6, log=True)
    for state in (optuna.trial.TrialState.RUNNING, optuna.trial.TrialState.WAITING):
        held = {"loss.beta": 0.3, "model.trust_remote_code": True}
        more = {"loss.beta": log, "model.trust_remote_code": code}
        study.add_trial(optuna.trial.create_trial(state=state, params=held, distributions=more))
    ask(runs, BETA, trials=4)
    assert len(runs.made) == 4
    assert all(set(job) == {"loss.beta"} and 0.01 <= float(job["loss.beta"]) <= 1 for job in runs.made)


def test_a_run_that_has_no_such_number_counts_as_failed(tmp_path, capsys):
    """As one that came to none, whose null is in the summary; the search goes on."""
    numbers = iter([None, math.inf, 0.5])
    runs = Runs(tmp_path, lambda job: {"status": "finished", "samples": {"kl": next(numbers)}})
    ask(runs, BETA, metric="samples.kl", direction="minimize", trials=3)
    said = capsys.readouterr().err
    assert "trial 1 counts as failed: its samples.kl is no number" in said
    assert "best: samples.kl 0.5 at" in said
    ask(runs, BETA, metric="samples.kl", direction="minimize", trials=3)
    assert len(runs.made) == 3


def test_a_method_that_never_has_the_number_is_refused_at_the_end(tmp_path, capsys):
    """A reward model says nothing and has no KL; what the others found is said."""
    says = {"dpo": {"kl": 1.0}, "bradley_terry": None}
    runs = Runs(tmp_path, lambda job: {"status": "finished", "samples": says[job["loss"]]}, parallel=2)
    asked = ("loss=dpo,bradley_terry", BETA)
    with pytest.raises(RequestError, match=r"metric=samples\.kl: no run of loss=bradley_terry has such a number"):
        ask(runs, *asked, metric="samples.kl", trials=2)
    assert len(runs.made) == 4
    assert "loss=dpo: samples.kl 1 at" in capsys.readouterr().err
    ask(runs, *asked, metric="samples.kl", trials=2)
    assert len(runs.made) == 4, "none of them waits"
    assert "loss=bradley_terry: none of 2 trials has an answer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "wanted", "said"),
    [
        (["loss.beta=0.1,0.2"], {}, "searches intervals, and none is given"),
        ([BETA, "sweep=offline"], {}, "sweep=offline: a named sweep has grids of its own"),
        (["loss.beta=interval(1,0.1)"], {}, "from a lower number to a higher one"),
        (["loss.beta=tag(log,interval(0,1))"], {}, "a logarithmic interval begins above 0"),
        (["loss.beta=tag(lg,interval(0.1,1))"], {}, "no such tag: lg; did you mean 'log'?"),
        ([BETA], {"direction": "maximise"}, "did you mean 'maximize'?"),
        ([BETA], {"trials": 0}, "hydra.sweeper.trials must be a whole number, at least 1; got 0"),
        ([BETA], {"metric": "val.acuracy"}, "no such number; did you mean 'accuracy'?"),
        ([BETA], {"metric": "status"}, "this run's is 'finished', not a number"),
    ],
)
def test_what_it_refuses(overrides, wanted, said, tmp_path):
    with pytest.raises(RequestError) as raised:
        ask(Runs(tmp_path, peak), *overrides, **wanted)
    assert said in str(raised.value)
    assert len(str(raised.value).splitlines()) <= 2
