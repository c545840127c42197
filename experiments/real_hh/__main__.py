"""Does anything separate on 1,500 real pairs: every offline method at its defaults, by a tiny model that is fitted to
the chosen answers, judged by a reward model of the same pairs."""

import os
import sys
from pathlib import Path

from experiments.common import keep, keep_environment, keep_runs, report, sweep

NAME = "real_hh"


def main() -> None:
    folder = Path(os.environ.get("PREFOPT_TEST_DATA", ""), "hh-harmless")
    files = [folder / f"{split}.jsonl.gz" for split in ("train", "test")]
    if not all(file.is_file() for file in files):
        sys.exit("PREFOPT_TEST_DATA must name a folder with hh-harmless/train.jsonl.gz and test.jsonl.gz")
    rows = ["data=jsonl", f"data.train={files[0]}", f"data.val={files[1]}", "data.batch_size=16"]
    asked = ["model=tiny", "evaluation.max_new_tokens=32"]
    judge = sweep(f"{NAME}_judge", "loss=bradley_terry", *rows, *asked)
    runs = sweep(NAME, "loss=dpo,ipo,kto,orpo,simpo,sft", "seed=0,1,2", *rows, *asked)
    (reward,) = [path.parent for path in judge.glob("*/summary.json")]
    keep(report(runs, "--reward", str(reward)), NAME, "frontier")
    keep_runs(NAME, judge, runs)
    keep_environment(runs, NAME)


if __name__ == "__main__":
    main()
