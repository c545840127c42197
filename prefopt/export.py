"""`python -m prefopt.export run=RUN out=FOLDER`: a run's model for use elsewhere, checked against the run itself."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from prefopt.config import command, read_keys
from prefopt.errors import RequestError, nearest
from prefopt.files import at_home, check_can_be_made, check_can_be_replaced, is_empty, read_json
from prefopt.run import Finished, finished_run
from prefopt.settings import ExportSettings

if TYPE_CHECKING:
    from omegaconf import DictConfig


def task(cfg: DictConfig) -> int:
    asked = read_keys(cfg, ExportSettings)
    run = finished_run(str(asked.run))
    check_form(asked, run)
    check_out(at_home(str(asked.out), "out"), run)
    from prefopt.jobs.export import export  # the heavy libraries, once the request is known to be sound

    return export(asked, run)


def check_form(asked: ExportSettings, run: Finished) -> None:
    if asked.form is None or asked.form in run.forms:
        return
    why = "trained an adapter" if run.adapted else "holds whole weights"
    if run.judges and run.config["model"].get("adapter"):
        why = "trained a reward model, whose adapter is merged already"
    accepted = ", ".join(run.forms)
    raise RequestError(f"form={asked.form}: {run.path} {why}{nearest(asked.form, run.forms)}\naccepted: {accepted}")


def check_out(out: Path, run: Finished) -> None:
    """A new or empty folder, or an earlier export of the same run, which is replaced."""
    check_can_be_made(out, "out")
    if is_empty(out):
        return
    lineage = out / "lineage.json"
    if not lineage.is_file():
        raise RequestError(f"out={out} exists and is no export of this run; name a new or empty folder")
    earlier = read_json(lineage, f"out={out}", "; name a new or empty folder")
    if earlier.get("model_hash") != run.summary["model_hash"]:
        raise RequestError(f"out={out} holds an export of {earlier.get('run')}; name a new or empty folder")
    check_can_be_replaced(out, "out")


def main() -> int:
    return command("export", task)


if __name__ == "__main__":
    sys.exit(main())
