"""`python -m prefopt.compare RUN RUN … --out REPORT`: runs side by side, with statistics, on one page."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from prefopt.config import config_dir
from prefopt.errors import FAILED, INTERRUPTED, RequestError, check_text, first_line, nearest, refuse
from prefopt.files import at_home, check_can_be_made
from prefopt.models.files import check_local
from prefopt.reports.compare.folder import earlier_files
from prefopt.run import judging_run

SAMPLES = 500  # enough for about 2 nats in the controlled world (experiments/beta_by_loss)
FEWEST = 100


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="prefopt compare", description=__doc__, allow_abbrev=False)
    parser.add_argument("runs", nargs="+", type=Path, metavar="DIR", help="a run folder, or one with run folders in it")
    parser.add_argument("--out", type=Path, default=Path("report"), help="a new folder or an earlier report's (report)")
    parser.add_argument(
        "--optimum",
        default=str(SAMPLES),
        metavar="N",
        help=f"where the true reward is known, samples under each prompt for the optimum ({SAMPLES}); off: none",
    )
    parser.add_argument(
        "--reward", metavar="MODEL", help="a reward model that judges all answers: a run's folder, another, a hub name"
    )
    cache = os.environ.get("PREFOPT_CACHE", "~/.cache/prefopt")
    parser.add_argument("--cache-dir", type=Path, default=Path(cache), help="as in training: bases and such samples")
    return parser.parse_args()


def samples_of(asked: str) -> int | None:
    """None where no optimum is wanted."""
    if asked == "off":
        return None
    if not asked.isdecimal() or int(asked) < FEWEST:
        raise RequestError(
            f"--optimum must be off, or a whole number of samples under each prompt from {FEWEST} on; got {asked!r}"
            f"{nearest(asked, ['off'])}"
        )
    return int(asked)


def main() -> int:
    asked = arguments()
    try:
        check_text(sys.argv[1:])
        out, cache = at_home(asked.out, "--out"), at_home(asked.cache_dir, "--cache-dir")
        check_can_be_made(out, "--out")
        earlier_files(out)
        samples = samples_of(asked.optimum)
        if asked.reward and judging_run(asked.reward, "--reward") is None:
            check_local(asked.reward, "--reward")
        if cache.exists() and not cache.is_dir():
            raise RequestError(f"--cache-dir={cache} is a file; name a folder")
        from prefopt.jobs.compare import compare
        from prefopt.reports.compare.settings import loss_defaults

        return compare(asked.runs, out, loss_defaults(Path(config_dir()) / "loss"), samples, cache, asked.reward)
    except RequestError as error:
        return refuse(str(error))
    except Exception as error:  # of the disk, or of what a model's own code does
        print(f"failed: {type(error).__name__}: {first_line(error)}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
