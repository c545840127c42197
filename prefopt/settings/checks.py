"""How a setting is refused: the key, what is wanted, what was found."""

from __future__ import annotations

from prefopt.errors import RequestError, nearest

DTYPES = ("float32", "bfloat16", "float16", "float64")


def require(holds: bool, key: str, wanted: str, value: object) -> None:
    if not holds:
        raise RequestError(f"{key} must be {wanted}; got {value!r}")


def require_seed(key: str, value: int | None) -> None:
    """What numpy's and torch's generators take, each, however a seed is multiplied on the way there."""
    require(value is None or 0 <= value < 2**32, key, "from 0 to 4294967295", value)


def one_of(value: str, key: str, options: tuple[str, ...]) -> None:
    if value not in options:
        raise RequestError(f"{key} must be one of {', '.join(options)}; got {value!r}{nearest(value, options)}")
