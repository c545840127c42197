"""Which offline method, at which β: the frontier of gold reward and KL in the controlled world."""

from experiments.common import keep, keep_environment, report, sweep

NAME = "beta_by_loss"

runs = sweep(NAME, "experiment=demo", "sweep=offline", "seed=0,1")
keep(report(runs), NAME, "frontier")
keep_environment(runs, NAME)
