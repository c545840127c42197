"""A report's folder. report.json names what was written into it: nothing else that lies there is touched."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from prefopt.errors import RequestError
from prefopt.files import check_schema, is_empty, read_json, write_json

SCHEMA = 1
MANIFEST = "report.json"
ALWAYS = ("index.html", "results.csv", "results.md")  # by which a report without it, of an earlier version, is known
WRITTEN = re.compile(r"index\.html|results\.csv|results\.md|optimum\.csv|figures/\w+\.png")


def earlier_files(out: Path) -> set[str]:
    """What an earlier report has written there, as far as it says so. RequestError where other things lie there."""
    named, way_out = f"--out={out}", "\nname a new or empty folder"
    if (out / MANIFEST).is_file():
        held = read_json(out / MANIFEST, named, way_out)
        check_schema(held, SCHEMA, f"{named}: its {MANIFEST}", way_out)
        files = held.get("files")
        if not isinstance(files, list) or not all(isinstance(f, str) and WRITTEN.fullmatch(f) for f in files):
            raise RequestError(f"{named}: its {MANIFEST} is no report's{way_out}")
        return set(files)
    if not is_empty(out) and not all((out / name).is_file() for name in ALWAYS):
        raise RequestError(f"{named} holds other files and no report; name a new or empty folder")
    return set()


def tell_files(out: Path, files: Iterable[str]) -> None:
    write_json(out / MANIFEST, {"schema": SCHEMA, "files": sorted(files)})
