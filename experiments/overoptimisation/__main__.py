"""What a reward model is worth once it is optimised: reward models of several sizes and amounts of data, by policies
without a KL term and by best-of-n, while the true reward watches; and what keeps it from going wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from experiments.common import HERE, keep_environment, keep_runs, summaries, sweep
from experiments.overoptimisation.figures import draw
from experiments.overoptimisation.runs import Judge, Run
from experiments.overoptimisation.tables import tabulate

NAME = "overoptimisation"
JUDGED = ("experiment=frontier", "loss=bradley_terry", "trainer.max_epochs=3", "sweep=judges")
FEW = {"evaluation.samples_per_prompt": 20}
MANY = {"evaluation.samples_per_prompt": 200}  # answers of the base, of which best-of-n takes one
DO = "guards.overoptimised.do"
REMEDIED = (0, 2)  # seeds that the remedies are tried on
SEVERAL = (0, 1, 2)  # seeds of the judges that are asked together


def main() -> None:
    judged = sweep(f"{NAME}/judges", "--config-dir", str(HERE / NAME / "conf"), *JUDGED)
    judges = [Judge.of(judged / name, config, summary) for name, config, summary in summaries(judged)]
    conf = write_grids(grids(judges), Path("sweeps", NAME, "conf"))
    policies = sweep(f"{NAME}/policies", "--config-dir", str(conf), "experiment=overoptimisation", "sweep=policies")
    runs = [Run(policies / name, config, summary, judges) for name, config, summary in summaries(policies)]
    tabulate(runs, HERE / NAME)
    draw(runs, HERE / NAME)
    keep_runs(NAME, judged, policies)
    keep_environment(policies, NAME)


def grids(judges: Sequence[Judge]) -> Iterator[dict[str, object]]:
    """One seed against every judge; every seed against the judge of its own, with the guard and without; the other
    remedies."""
    ppo, rloo = {"loss": "ppo"}, {"loss": "rloo"}
    for judge in judges:
        if judge.seed == 0:
            yield {"seed": 0, **ppo, "reward.name": judge.path, **MANY}
    own = {judge.seed: judge for judge in judges if judge.usual}
    for seed, judge in own.items():
        yield {"seed": seed, **ppo, "reward.name": judge.path, DO: "warn,rollback" if seed else "rollback", **FEW}
        yield {"seed": seed, **rloo, "reward.name": judge.path, DO: "warn,rollback", **FEW}
    for seed in REMEDIED:
        yield {"seed": seed, **rloo, "reward.name": own[seed].path, "loss.beta": "0.05,0.2", **FEW}
        several = "[" + ",".join(own[other].path for other in SEVERAL) + "]"
        yield {"seed": seed, **rloo, "reward": "ensemble", "reward.names": several, "reward.combine": "worst", **FEW}


def write_grids(grids: Iterator[dict[str, object]], folder: Path) -> Path:
    """A named sweep of one's own: a folder for --config-dir."""
    file = folder / "sweep/policies.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"grids": list(grids)}), "utf-8")  # which is YAML
    return folder


if __name__ == "__main__":
    main()
