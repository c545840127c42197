"""`python -m prefopt.evaluate run=RUN`: a run, or any model on any rows, measured as at the end of training."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from prefopt.config import command, config_dir, read_keys, trained_settings
from prefopt.data.origins import open_origin
from prefopt.errors import RequestError
from prefopt.files import at_home, check_can_be_made, is_empty
from prefopt.models.files import check_local
from prefopt.run import finished_run
from prefopt.settings import AskedEvaluation, EvaluateSettings, EvaluationSettings

if TYPE_CHECKING:
    from omegaconf import DictConfig


def task(cfg: DictConfig) -> int:
    asked = read_keys(cfg, EvaluateSettings)
    run = finished_run(asked.run) if asked.run else None
    for key, name in (("model.name", asked.model.name), ("reference", asked.reference)):
        if name:
            check_local(name, key)
    check_out(out := out_folder(asked))
    trained = trained_settings(run) if run else None
    evaluation = how(asked.evaluation, asdict(trained.evaluation) if trained else training_defaults())
    cache = at_home(asked.cache_dir, "cache_dir")
    if asked.data is not None:
        data, origin = asked.data, open_origin(asked.data, cache, ("test",))
    else:
        assert trained is not None  # the settings see to it
        data, origin = trained.data, open_origin(trained.data, cache)
    origin.check()
    from prefopt.jobs.evaluate import evaluate  # the heavy libraries, once the request is known to be sound
    from prefopt.jobs.subject import Rows

    return evaluate(asked, run, Rows(data, origin), evaluation, out)


def out_folder(asked: EvaluateSettings) -> Path:
    if asked.out:
        return at_home(asked.out, "out")
    name = Path(str(asked.run or asked.model.name)).expanduser().absolute().name
    return Path("evaluations") / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}-{name}"


def check_out(out: Path) -> None:
    check_can_be_made(out, "out")
    if not is_empty(out):
        raise RequestError(f"out={out} holds files already; name a new or empty folder")


def how(asked: AskedEvaluation, usual: dict[str, Any]) -> EvaluationSettings:
    """What was asked, over what is usual. Nothing is sampled where `asked.prompts` is 0, whatever stands here."""
    given = {name: value for name, value in asdict(asked).items() if value is not None}
    if asked.prompts == 0:
        del given["prompts"]
    return EvaluationSettings(**{**usual, **given})


def training_defaults() -> dict[str, Any]:
    return dict(yaml.safe_load((Path(config_dir()) / "train.yaml").read_text("utf-8"))["evaluation"])


def main() -> int:
    return command("evaluate", task)


if __name__ == "__main__":
    sys.exit(main())
