"""Does anything separate on 1,500 real pairs: every offline method at its defaults, by a tiny model that is fitted to
the chosen answers, judged by a reward model of the same pairs."""

from benchmarks.systems.launch import preference_data
from experiments.common import keep, keep_environment, keep_runs, report, sweep

NAME = "real_hh"


def main() -> None:
    train = preference_data()
    rows = ["data=jsonl", f"data.train={train}", f"data.val={train.with_name('test.jsonl.gz')}", "data.batch_size=16"]
    asked = ["model=tiny", "evaluation.max_new_tokens=32"]
    judge = sweep(f"{NAME}_judge", "loss=bradley_terry", *rows, *asked)
    runs = sweep(NAME, "loss=dpo,ipo,kto,orpo,simpo,sft", "seed=0,1,2", *rows, *asked)
    (reward,) = [path.parent for path in judge.glob("*/summary.json")]
    keep(report(runs, "--reward", str(reward)), NAME, "frontier")
    keep_runs(NAME, judge, runs)
    keep_environment(runs, NAME)


if __name__ == "__main__":
    main()
