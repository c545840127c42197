"""What a folder that is handed on must not tell: whose machine it comes from, and what opens a door there."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

HIDDEN = "***"
NAMES = (  # of what is a secret whatever it looks like
    r"token|(?:\w+[_-])?(?:(?:hf|hub|auth|access|api|bearer|github|gitlab)[_-]token"
    r"|api[_-]?key|access[_-]key|passw(?:or)?d|secret(?:[_-]key)?)"
)
NAME = re.compile(NAMES, re.IGNORECASE)
NAMED = re.compile(rf"(?<![\w-])((?:{NAMES})=['\"]?)[^\s'\"&,;)\]}}]+", re.IGNORECASE)
IN_URL = re.compile(r"(?<=://)[^\s/@'\"]+(?=@)")
TOKEN = re.compile(  # as Hugging Face, GitHub, GitLab, OpenAI and those who copied it, AWS and Slack make them
    r"(?<![A-Za-z0-9])(?:hf_[A-Za-z0-9]{20,}|gh[opusr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{20,}"
    r"|sk-(?=[\w-]*[A-Za-z0-9]{16})(?=[\w-]*\d)[\w-]{20,}|AKIA[A-Z0-9]{16}|xox[abprs]-[\w-]{10,})"
)
SHORTEST = 16  # characters of a value in the environment that is taken for a secret: "true" is none


def scrubbed(value: Any) -> Any:
    """A value as JSON holds it, without secrets, and with `~` for the home folder, as every path is read here."""
    if isinstance(value, dict):
        return {key: _entry(key, entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [scrubbed(entry) for entry in value]
    return _text(value) if isinstance(value, str) else value


def _entry(key: Any, value: Any) -> Any:
    secret = isinstance(value, str) and value and isinstance(key, str) and NAME.fullmatch(key)
    return HIDDEN if secret else scrubbed(value)


def _text(text: str) -> str:
    for secret in _of_environment():
        text = text.replace(secret, HIDDEN)
    text = TOKEN.sub(HIDDEN, NAMED.sub(rf"\g<1>{HIDDEN}", IN_URL.sub(HIDDEN, text)))
    for home in _homes():
        text = re.sub(rf"(?<![\w.~-]){re.escape(home)}(?!\.?[\w-])", "~", text)
    return text


def _of_environment() -> Iterator[str]:
    """An option may have read one, by `${oc.env:…}`."""
    for name, value in os.environ.items():
        if len(value) >= SHORTEST and NAME.fullmatch(name):
            yield value


def _homes() -> list[str]:
    """The home folder as it is called and as it lies on the disk, the longer name first."""
    home = os.path.expanduser("~")
    return sorted({home, os.path.realpath(home)} - {"/", "~"}, key=len, reverse=True)
