"""The one error that is the user's to mend: it ends as exit code 2 and one or two lines, without a traceback."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable

OK, FAILED, WRONG, INTERRUPTED = 0, 1, 2, 130  # exit codes


class RequestError(ValueError):
    """What was asked cannot be done. The message names the key or file, what was found and what is accepted."""


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or nothing."""
    found = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {found[0]!r}?" if found else ""


def first_line(error: BaseException) -> str:
    """What an error says, in one line that steers no terminal; its type where it says nothing."""
    return plain(next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__))


def plain(text: str, keep: str = "") -> str:
    """Text without control codes, but for `keep`: what a model or a file says must not steer a terminal."""
    return "".join(c if c.isprintable() or c in keep else repr(c)[1:-1] for c in text)


def check_text(arguments: Iterable[str]) -> None:
    """What is asked is kept as JSON, which has no place for bytes that are no text."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise RequestError(f"{argument!a:.200}: not UTF-8 text; a file of such a name needs another") from None


def refuse(message: str) -> int:
    """One or two lines on stderr, and the exit code of a wrong request."""
    print("\n".join(map(plain, message.strip().splitlines()[:2])), file=sys.stderr)
    return WRONG
