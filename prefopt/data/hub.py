"""Data sets of the Hugging Face hub, through `datasets`, which keeps them on disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from prefopt.data.examples import digest
from prefopt.data.published import VERSION, Adapter, adapter_for, adapter_key
from prefopt.data.splits import SPLITS
from prefopt.errors import RequestError, first_line, nearest
from prefopt.settings import DataSettings

USUAL = {"train": ("train",), "val": ("validation", "val", "dev", "valid"), "test": ("test",)}
Tables = dict[str, tuple[str, Callable[[], Iterable[tuple[str, Any]]]]]


def hub_tables(
    settings: DataSettings, left_out: Counter[str], splits: Sequence[str] = SPLITS
) -> tuple[Tables, Callable[[], str]]:
    """Rows by split, adapted where the data set is a well-known one, and the hash of what they are.

    left_out: is told by split how many rows the adapter left out of the last pass over them. splits: those that are
    read, of which the first must be there.
    """
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    name, adapter = str(settings.name), adapter_for(str(settings.name))
    published, subset = name.partition(":")[0], settings.subset or adapter.config
    part = {"data_dir": subset} if adapter.folders else {"name": subset}
    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity_error()
    try:
        found = datasets.load_dataset(published, **part, revision=settings.revision)
    except (DatasetNotFoundError, ValueError, OSError, ConnectionError) as error:
        raise RequestError(f"data.name={name}: cannot be loaded: {first_line(error)}") from error
    chosen = {split: found[title] for split, title in _titles(settings, adapter, list(found), splits).items()}
    tables: Tables = {
        split: (f"{name} ({table.split})", _rows(name, split, table, adapter, left_out))
        for split, table in chosen.items()
    }
    # `datasets` knows the rows as published; the variants of a data set read the same ones each in its own way.
    read = (str(VERSION), adapter_key(name))
    held = [part for split, table in chosen.items() for part in (split, table._fingerprint)]
    return tables, lambda: digest((*read, *held))


def _titles(settings: DataSettings, adapter: Adapter, there: list[str], splits: Sequence[str]) -> dict[str, str]:
    """The data set's own name of each of our splits."""
    titles = {}
    for split in splits:
        asked = getattr(settings, split)
        if asked and asked not in there:
            hint = nearest(asked, there)
            raise RequestError(f"data.{split}={asked}: {settings.name} has the splits {', '.join(there)}{hint}")
        usual = (adapter.splits.get(split), *USUAL[split])
        title = asked or next((title for title in usual if title in there), None)
        if title:
            titles[split] = title
    first = splits[0]
    if first not in titles:
        use = "train on" if first == "train" else "evaluate"
        raise RequestError(f"data.{first}: {settings.name} has the splits {', '.join(there)}; name the one to {use}")
    return titles


def _rows(
    name: str, split: str, table: Any, adapter: Adapter, left_out: Counter[str]
) -> Callable[[], Iterator[tuple[str, Any]]]:
    def rows() -> Iterator[tuple[str, Any]]:
        left_out[split] = 0
        for number, row in enumerate(table, 1):
            where = f"{name}:{table.split}:{number}"
            try:
                adapted = adapter.row(row)
            except (KeyError, TypeError, ValueError) as error:
                raise RequestError(f"{where}: no row of {name} as it was published: {error!r}") from error
            if adapted is None:
                left_out[split] += 1
            else:
                yield where, adapted

    return rows
