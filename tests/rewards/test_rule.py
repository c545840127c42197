"""Rules by hand, and what is wrong with some."""

from __future__ import annotations

import sys

import pytest

from prefopt.errors import RequestError
from tests.rewards.made import answer, built


def test_exact_by_hand():
    """White space counts inside an answer and not around it."""
    rule = built("rule")
    texts = ["42", " 42\n", "4 2", "420", ""]
    judged = rule([answer(text, wanted=" 42 ") for text in texts])
    assert judged.reward.tolist() == [1, 1, 0, 0, 0]
    assert judged.reward.dtype == float
    assert judged.parts == {}
    assert rule.state_dict() == {}
    assert rule([]).reward.shape == (0,)


def test_exact_needs_a_recorded_completion():
    with pytest.raises(RequestError) as error:
        built("rule")([answer("42", wanted="42"), answer("42", "how many?")])
    assert str(error.value) == 'reward.rule=exact: no completion is recorded for the prompt "how many?"'


def test_regex_by_hand():
    """Found anywhere; an anchor is the pattern's own business."""
    texts = ["so 42", "42 so", "", "4\n42"]
    assert built("rule", "rule=regex", r"pattern='4\d'")([answer(t) for t in texts]).reward.tolist() == [1, 1, 0, 1]
    assert built("rule", "rule=regex", r"pattern='4\d$'")([answer(t) for t in texts]).reward.tolist() == [1, 0, 0, 1]


def function(name: str):
    return built("rule", "rule=function", f"function='{name}'")


def test_a_function_hears_prompt_text_and_what_was_wanted():
    """len(prompt) + 10 len(text) + 100 len(wanted), 0 of None."""
    judged = function("tests.rewards.made:heard")([answer("ab", "abc", wanted="a"), answer("", "a")])
    assert judged.reward.tolist() == [3 + 20 + 100, 1]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tests.rewards.made:herd", "no such function in tests.rewards.made; did you mean 'heard'?"),
        ("tests.rewards.made:constant", "it cannot be called in tests.rewards.made"),
        ("tests.rewards.maid:heard", "no module tests.rewards.maid; did you mean 'tests.rewards.made'?\nPYTHONPATH"),
        ("nmpy:mean", "no module nmpy; did you mean 'numpy'?\nPYTHONPATH names folders to look in"),
        ("json.decoder.inner:f", "no module json.decoder.inner\nPYTHONPATH"),
        ("needy:f", "needy cannot be imported: No module named 'nowhere_at_all'"),
        ("crooked:f", "crooked cannot be imported: '(' was never closed"),
        ("quitter:f", "quitter cannot be imported: no key"),
    ],
)
def test_a_function_that_cannot_be_found(tmp_path, monkeypatch, name, said):
    (tmp_path / "needy.py").write_text("import nowhere_at_all\n")
    (tmp_path / "crooked.py").write_text("f = (\n")
    (tmp_path / "quitter.py").write_text("raise SystemExit('no key')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(RequestError) as error:
        function(name)
    assert str(error.value).startswith(f"reward.function={name}: {said}")
    assert len(str(error.value).splitlines()) <= 2
    assert "needy" not in sys.modules


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("endless", "must return a finite number; got inf for 'w5'"),
        ("silent", "must return a finite number; got None for 'w5'"),
        ("word", "must return a finite number; got '1' for 'w5'"),
        ("broken", "failed on the answer 'w5': ZeroDivisionError: division by zero"),
        ("leaving", "failed on the answer 'w5': SystemExit: no key"),
    ],
)
def test_a_function_that_gives_no_number(name, said):
    called = function(f"tests.rewards.made:{name}")
    with pytest.raises(RequestError) as error:
        called([answer()])
    assert str(error.value) == f"reward.function=tests.rewards.made:{name} {said}"
