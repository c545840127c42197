"""The README's table of what runs with what, from prefopt/settings/support.py: `python benchmarks/support.py`."""

from __future__ import annotations

import re
from pathlib import Path

from prefopt.settings.support import table

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- benchmarks/support.py writes this -->", "<!-- until here -->"


def written(readme: str) -> str:
    """The README with the table between its marks."""
    return re.sub(f"{BEGIN}.*?{END}", lambda _: f"{BEGIN}\n\n{table()}\n\n{END}", readme, flags=re.DOTALL)


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(written(path.read_text("utf-8")), "utf-8")
