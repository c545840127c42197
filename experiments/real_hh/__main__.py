"""Does anything separate on real pairs: every offline method on HH-RLHF harmless-base rows, by a tiny random model."""

import os
from pathlib import Path

from experiments.common import keep, keep_environment, report, sweep

NAME = "real_hh"
LOSSES = "loss=dpo,ipo,kto,orpo,simpo,sft"

folder = os.environ.get("PREFOPT_TEST_DATA")
if folder is None:
    rows = ["data=hh"]  # from the hub
else:
    files = Path(folder, "hh-harmless")
    rows = ["data=jsonl", f"data.train={files / 'train.jsonl.gz'}", f"data.val={files / 'test.jsonl.gz'}"]
runs = sweep(NAME, LOSSES, "seed=0,1,2", "model=tiny", *rows, "data.batch_size=16", "evaluation.max_new_tokens=32")
keep(report(runs, "--optimum", "off"), NAME)
keep_environment(runs, NAME)
