"""What may be asked of an annotator, and how the rest is refused."""

from __future__ import annotations

from dataclasses import asdict, fields

import pytest

from prefopt.errors import RequestError
from prefopt.settings.rewards import KINDS, RewardSettings
from tests.rewards.made import OPTIONS, asked, built

NEEDS = {
    "gold": [],
    "model": ["name=rm"],
    "ensemble": ["names=[a,b]"],
    "rule": [],
    "sum": ["parts={form:{kind:rule}}"],
}


def test_every_kind_has_an_option_of_the_same_keys():
    """sum's `each` holds what any other kind begins with."""
    assert sorted(KINDS) == OPTIONS
    for option in OPTIONS:
        found = asked(option, *NEEDS[option])
        assert found.kind == option
        each = asdict(found).pop("each")
        assert each is None or {**each, "each": None} == asdict(asked("gold"))
        assert (each is None) == (option != "sum")


def test_a_part_takes_the_defaults_for_what_it_leaves_out():
    """Not the keys of the sum around it."""
    found = asked("sum", "parts={a:{kind:rule,rule:regex,pattern:x,weight:2},b:{kind:gold}}", "scale=running", "k=7")
    expected = {**asdict(asked("rule", "rule=regex", "pattern=x")), "weight": 2.0}
    assert asdict(found.part("a")) == expected
    assert asdict(found.part("b")) == asdict(asked("gold"))
    changed = asked("sum", "parts={b:{kind:gold}}", "each.length=0.5")
    assert changed.part("b").length == 0.5
    assert {field.name for field in fields(RewardSettings)} == set(expected)


def test_every_reward_model_is_listed_with_its_key():
    inner = "{m:{kind:model,name:rm},r:{kind:rule},e:{kind:ensemble,names:[a,b]}}"
    found = asked("sum", f"parts={inner}").models()
    assert found == [
        ("reward.parts.m.name", "rm"),
        ("reward.parts.e.names", "a"),
        ("reward.parts.e.names", "b"),
    ]
    assert asked("model", "name=rm").models() == [("reward.name", "rm")]
    assert asked("ensemble", "names=[a,b]").models() == [("reward.names", "a"), ("reward.names", "b")]
    assert asked("gold").models() == []


@pytest.mark.parametrize(
    ("option", "overrides", "said"),
    [
        (
            "gold",
            ["kind=modle"],
            "reward.kind must be one of gold, model, ensemble, rule, sum; got 'modle'; did you me",
        ),
        ("gold", ["name=rm"], "reward.name must be null unless reward.kind=model; got 'rm'"),
        ("model", [], "reward.name must be a run, hub name or folder with reward.kind=model; got None"),
        ("ensemble", [], "reward.names must be a list of runs"),
        ("ensemble", ["names=[a]"], "reward.names must be at least two different ones; got ['a']"),
        ("ensemble", ["names=[a,a]"], "reward.names must be at least two different ones"),
        ("ensemble", [*NEEDS["ensemble"], "combine=lowest"], "reward.combine must be one of mean, worst, lower; got"),
        ("ensemble", [*NEEDS["ensemble"], "k=-1"], "reward.k must be at least 0; got -1"),
        ("rule", ["rule=regx"], "reward.rule must be one of exact, regex, function; got 'regx'; did you mean 'regex'?"),
        ("rule", ["rule=regex"], "reward.pattern must be a regular expression with reward.rule=regex; got None"),
        ("rule", ["pattern=x"], "reward.pattern must be null unless reward.rule=regex; got 'x'"),
        ("gold", ["rule=regex", "pattern=x"], "reward.pattern must be null unless"),
        ("rule", ["rule=regex", "pattern='a('"], "reward.pattern='a(': not a regular expression: missing ), untermin"),
        ("rule", ["rule=function"], "reward.function must be package.module:name with reward.rule=function; got None"),
        ("rule", ["rule=function", "function=math.exp"], "reward.function must be package.module:name; got 'math.exp'"),
        ("rule", ["function='math:exp'"], "reward.function must be null unless reward.rule=function"),
        ("sum", [], "reward.parts must be a dictionary of names to annotators with reward.kind=sum"),
        ("gold", ["parts={a:{kind:gold}}"], "reward.parts must be null unless reward.kind=sum"),
        ("sum", ["parts={length:{kind:gold}}"], "reward.parts must be named by a word other than raw, spread, unread"),
        ("sum", ["parts={a-b:{kind:gold}}"], "reward.parts must be named by a word"),
        ("sum", ["parts={a:{kind:sum}}"], "reward.parts.a.kind must be one of gold, model, ensemble, rule; got 'sum'"),
        ("sum", ["parts={a:{weight:2}}"], "reward.parts.a.kind must be one of gold, model, ensemble, rule; got 'None'"),
        ("sum", ["parts={a:3}"], "reward.parts.a.kind must be given in a dictionary of keys; got 3"),
        (
            "sum",
            ["parts={a:{kind:rule,patern:x}}"],
            "reward.parts.a.patern: no such key; did you mean 'pattern'?\naccepted: kind, name, ",
        ),
        (
            "sum",
            ["parts={a:{kind:rule,weight:much}}"],
            "reward.parts.a.weight: Value 'much' of type 'str' could not be",
        ),
        ("sum", ["parts={a:{kind:rule,rule:regex}}"], "reward.parts.a.pattern must be a regular expression"),
        ("gold", ["scale=runing"], "reward.scale must be one of none, running, reference; got 'runing'; did you mean"),
        ("gold", ["length=-0.1"], "reward.length must be at least 0 (off); got -0.1"),
        ("gold", ["least_accuracy=70"], "reward.least_accuracy must be in [0, 1], or null for never; got 70.0"),
    ],
)
def test_what_is_refused(option, overrides, said):
    with pytest.raises(RequestError) as error:
        asked(option, *overrides)
    assert str(error.value).startswith(said)
    assert len(str(error.value).splitlines()) <= 2


def test_gold_is_known_in_its_world_only():
    said = "is known in the controlled world only (data=controlled); take reward=model reward.name=RUN"
    with pytest.raises(RequestError) as error:
        built("gold")
    assert str(error.value) == f"reward=gold {said}"
    with pytest.raises(RequestError) as error:
        built("sum", "parts={a:{kind:gold}}")
    assert str(error.value) == f"reward.parts.a.kind=gold {said}"
