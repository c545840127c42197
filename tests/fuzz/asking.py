"""What a fuzzed case is: a folder of its own, a command asked in this process, and what its answer must be like.

PREFOPT_FUZZ: examples of each test, 130 unless given. The same ones are drawn every time, and more of them where more
are asked for; what fails is shrunk and printed with the line that repeats it.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from prefopt.errors import WRONG

CASES = int(os.environ.get("PREFOPT_FUZZ", "130"))
SECONDS = 3.0  # of CPU, for a refusal; torch is loaded already
PROGRESS = (
    *("data.train: ", "data.val: ", "data.prompts: ", "examples: ", "warning: ", "controlled world: ", "reference: "),
    *(
        "evaluation compares ",
        "resuming ",
        "going on from ",
        "trainer.precision=auto: ",
        "test rows: ",
        "held against ",
        "interrupted; ",
    ),
)

fuzzed = settings(
    max_examples=CASES,
    derandomize=True,
    database=None,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)


class Answer(NamedTuple):
    code: int
    out: str
    err: str


@contextmanager
def case() -> Iterator[Path]:
    """An empty current folder; its cache and its temporary files go to folders beside it, and all of it at the end."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as root, pytest.MonkeyPatch.context() as patch:
        here, tmp = Path(root) / "here", Path(root) / "tmp"
        here.mkdir()
        tmp.mkdir()
        patch.chdir(here)
        patch.setenv("PREFOPT_CACHE", str(Path(root) / "cache"))
        patch.setenv("TMPDIR", str(tmp))
        patch.setattr(tempfile, "tempdir", str(tmp))
        yield here


def ask(main: Callable[[], int], *arguments: str) -> Answer:
    """A command with these arguments. What it raises is a traceback on a person's screen, and fails the test."""
    out, err = StringIO(), StringIO()
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setattr(sys, "argv", ["prefopt", *arguments])
        warnings.simplefilter("ignore")  # a person sees them on stderr, and the run goes on
        with redirect_stdout(out), redirect_stderr(err):
            code = main()
    return Answer(code, out.getvalue(), err.getvalue())


def answered(answer: Answer, *codes: int) -> None:
    """With one of these codes; a refusal in one or two lines of somebody's own words."""
    assert answer.code in codes, f"exit code {answer.code}: {answer.err}"
    assert "Traceback" not in answer.err
    assert "Traceback" not in answer.out
    if answer.code == WRONG:
        lines = [line for line in answer.err.strip().splitlines() if not line.startswith(PROGRESS)]
        assert 1 <= len(lines) <= 2, answer.err
        assert not lines[0].startswith("failed: "), answer.err  # what nobody thought of


def interrupt(*arguments: Any, **options: Any) -> None:
    """Stands for what follows: a request that comes this far was sound."""
    raise KeyboardInterrupt


def whole_run(folder: Path, known: str = "") -> dict[str, Any]:
    """A run's folder in which nothing is half there. known: a hidden file that is somebody's. Returns its summary."""
    stray = [str(p) for p in folder.rglob(".*") if p.name not in (".lock", Path(known).name)]
    assert stray == []
    assert isinstance(json.loads((folder / "config.json").read_text("utf-8")), dict)
    return json.loads((folder / "summary.json").read_text("utf-8"))


# ---------------------------------------------------------------- values

ODD_TEXTS = (
    *(
        "",
        " ",
        "\0",
        "\n",
        "\r\n",
        "\t",
        "\ufeff",
        "\u202eabc",
        "\x1b[31mred",
        "\x07",
        "\u2028",
        "e\u0301",
        "\U0001f9d1",
    ),
    *(
        "null",
        "true",
        "nan",
        "1e999",
        "-0",
        "[1, 2]",
        '{"a": 1}',
        "[/red]",
        "[bold]",
        "{{x}}",
        "${seed}",
        "???",
        "=1+1",
    ),
    *("<eos>", "<bos> w1", "w1 <pad> w2", "<|im_start|>user", "[INST] w1", "\n\nHuman: w1\n\nAssistant:"),
    *("w1 w2 w3", " w4", "w1\n\nAssistant: w2", "\n\nHuman: w1\n\nAssistant: w2\n\nHuman: w3\n\nAssistant: w4"),
)
LONG_TEXTS = st.sampled_from(("w1 " * 5_000, "x" * 100_000, "\0" * 3_000, "\u202e" * 2_000))
ANY_TEXT = st.text(st.characters(), max_size=12)  # halves of surrogate pairs among them
TEXTS = st.one_of(st.sampled_from(ODD_TEXTS), ANY_TEXT, LONG_TEXTS)
NUMBERS = st.one_of(
    st.integers(-3, 3),
    st.sampled_from((10**18, -(10**18), 2**63, 2**64, 10**400, 1e308, -1e308, 5e-324, 0.5, 1.5, float("inf"))),
    st.floats(allow_subnormal=False),  # a command of this process has had the processor flush them to zero
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=6,
)


# ---------------------------------------------------------------- bytes


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Cut, flipped, emptied, with something before, after or within it."""
    place = draw(st.integers(0, max(0, len(content) - 1)))
    how = draw(st.sampled_from(("cut", "flip", "zeros", "insert", "twice", "empty", "append", "drop")))
    if how == "flip" and content:
        flipped = bytearray(content)
        for _ in range(draw(st.integers(1, 4))):
            flipped[draw(st.integers(0, len(content) - 1))] ^= 1 << draw(st.integers(0, 7))
        return bytes(flipped)
    more = draw(st.one_of(st.binary(min_size=1, max_size=8), st.sampled_from((b"\n", b"{", b"\xff\xfe", b"\0" * 64))))
    return {
        "cut": content[:place],
        "zeros": content[:place] + bytes(len(content) - place),
        "insert": content[:place] + more + content[place:],
        "twice": content + content,
        "append": content + more,
        "drop": content[:place] + content[place + len(more) :],
    }.get(how, b"")
