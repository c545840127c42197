"""The audit of prepared data, and rows as a model will see them."""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO
from pathlib import Path

from rich.console import Console

from prefopt.config import Request
from prefopt.data.examples import Encoded
from prefopt.errors import OK
from prefopt.files import replacing
from prefopt.jobs.assemble import prepare_data
from prefopt.reports.rows import audit_view, legend, row_view


def show(request: Request, split: str, count: int, page: Path | None) -> int:
    """Prepare the data as training would, without training; `count` rows of a split are shown. Returns the exit code.

    page: a file to write instead of the terminal's text.
    """
    _, renderer, dataset = prepare_data(request)
    rows: Sequence[Encoded] = getattr(dataset, split)
    console = Console(highlight=False)
    if page is not None:
        console = Console(highlight=False, record=True, width=120, file=StringIO())
    console.print(audit_view(dataset.audit))
    console.print(legend())
    for number, row in enumerate(rows[:count]):
        console.print(row_view(number, row, lambda ids: str(renderer.tokenizer.decode(ids)), renderer.end_ids))
    if page is not None:
        with replacing(page) as temporary:
            temporary.write_text(console.export_html(), "utf-8")
        print(f"page        {page}")
    return OK
