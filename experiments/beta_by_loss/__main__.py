"""Which offline method, at which β: the frontier of gold reward and KL in the controlled world."""

from experiments.common import keep, keep_environment, keep_runs, report, sweep

NAME = "beta_by_loss"


def main() -> None:
    runs = sweep(NAME, "experiment=frontier", "sweep=offline", "seed=0,1")
    keep(report(runs), NAME, "frontier")
    keep_runs(NAME, runs)
    keep_environment(runs, NAME)


if __name__ == "__main__":
    main()
