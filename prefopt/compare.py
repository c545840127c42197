"""`python -m prefopt.compare RUN RUN … --out REPORT`: runs side by side, with statistics, on one page."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from prefopt.config import config_dir
from prefopt.errors import FAILED, INTERRUPTED, RequestError, first_line, refuse
from prefopt.files import check_can_be_made


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="prefopt compare", description=__doc__, allow_abbrev=False)
    parser.add_argument("runs", nargs="+", type=Path, metavar="DIR", help="a run folder, or one with run folders in it")
    parser.add_argument("--out", type=Path, default=Path("report"), help="the folder that is written (report)")
    return parser.parse_args()


def main() -> int:
    asked = arguments()
    out = asked.out.expanduser()
    try:
        check_can_be_made(out, "--out")
        from prefopt.jobs.compare import compare
        from prefopt.reports.compare.settings import loss_defaults

        return compare(asked.runs, out, loss_defaults(Path(config_dir()) / "loss"))
    except RequestError as error:
        return refuse(str(error))
    except OSError as error:
        print(f"failed: {first_line(error)}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
