"""Learning from answers of one's own, beside learning from recorded pairs: one frontier of gold reward and KL."""

from experiments.common import keep, keep_environment, keep_runs, report, sweep

NAME = "on_policy"


def main() -> None:
    runs = sweep(NAME, "experiment=on_policy", "sweep=on_policy", "seed=0,1,2")
    keep(report(runs), NAME, "frontier")
    keep_runs(NAME, runs)
    keep_environment(runs, NAME)


if __name__ == "__main__":
    main()
