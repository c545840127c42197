"""Requests of every kind, most of them wrong: composed, or refused in two lines, in time and with nothing left."""

from __future__ import annotations

import functools
import json
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from prefopt.config import command, config_dir
from prefopt.errors import INTERRUPTED, WRONG
from prefopt.sweep.processes import quoted
from prefopt.train import task
from tests.fuzz.asking import ODD_TEXTS, SECONDS, VALUES, Answer, answered, ask, case, fuzzed, interrupt, whole_run
from tests.mistakes.asking import left, pairs
from tests.test_mistakes import nothing_left

pytestmark = pytest.mark.long
CONF = Path(config_dir())
PLACES = ("run_dir", "cache_dir", "pipeline_dir", "sweep_dir")  # whose values must not lead out of the case
UNASKED = ("debug", "pipeline", "sweep")  # tracebacks are wanted; many runs
BASES = (
    (),
    ("loss=kto", "model=hf_lora", "model.name=nowhere"),
    ("loss=ppo", "reward=rule", "source=rollouts"),
    ("data=jsonl", "data.train=a.jsonl", "optimizer=sgd", "schedule=linear"),
    ("model=tiny_lora", "strategy=ddp", "trainer.devices=2", "trainer.accelerator=cpu"),
)
GROUPS = ("loss", "preset", "model", "data", "source", "reward", "strategy", "optimizer", "schedule", "experiment")


@functools.cache
def keys() -> tuple[str, ...]:
    """Every key that some request has, sections among them."""
    found: dict[str, None] = {}
    for base in BASES:
        with initialize_config_dir(config_dir(), version_base="1.3"):
            found |= dict.fromkeys(_below(compose("train", [word for word in base if "nowhere" not in word]), ""))
    return tuple(key for key in sorted(found) if key.partition(".")[0] not in UNASKED)


def _below(node: DictConfig, path: str) -> list[str]:
    found = []
    for key in node:
        child = None if OmegaConf.is_missing(node, key) else node._get_node(key)
        found.append(f"{path}{key}")
        found += _below(child, f"{path}{key}.") if isinstance(child, DictConfig) and not child._is_none() else []
    return found


def options(group: str) -> list[str]:
    return sorted(file.stem for file in (CONF / group).glob("*.yaml"))


# ---------------------------------------------------------------- words

GRAMMAR = (
    *("0", "1", "-1", "7", "0.5", "-0.5", "1e400", "-1e400", "nan", "inf", "1_000", "0x10", "1.", ".5", "9" * 400),
    *("null", "true", "false", "True", "NULL", "~", "???", "''", '""', "'it''s'", "'", '"', "\\", "\\\\", "a b", " "),
    *(
        "[]",
        "[1,2]",
        "[1",
        "1]",
        "{}",
        "{a:1}",
        "{a:1",
        "{a:{b:[1,{c:2}]}}",
        "{_target_:os.system}",
        "[{_target_:a.b}]",
    ),
    *("${seed}", "${nosuch}", "${", "$", "${.}", "${..seed}", "${loss}", "${oc.env:HOME}", "${oc.env:NO_SUCH_NAME}"),
    *("${oc.env:NO_SUCH_NAME,5}", "${oc.decode:'[1,'}", "${now:%Y}", "${run_dir}", "${hydra:runtime.cwd}", "${eval:1}"),
    *("1,2", "a,b", "range(1,5)", "range(1,1)", "choice(1,2)", "choice()", "glob(*)", "interval(0,1)", "shuffle(1,2)"),
    *("int(3)", "int(x)", "str(1)", "json_str({a:1})", "extend_list(1)", "tag(a,choice(1))", "sort(2,1)", "nosuch(1)"),
    *("a=b", "=", "@", "a@b", "#", "é", "\u202e", "\udcff", "\0", "x" * 3000, "[" * 300 + "]" * 300, "{" * 300),
    *("dpo", "hf", "jsonl", "sum", "gold", "../x", "a/b", "~", "~nosuchuser", "~nosuchuser/a", "-", "--", "None"),
)


def values() -> st.SearchStrategy[str]:
    written = VALUES.filter(lambda value: len(repr(value)) < 2_000).map(_written)
    return st.sampled_from(GRAMMAR) | st.sampled_from(GRAMMAR) | written | st.text(max_size=8)


def _written(value: Any) -> str:
    """As Hydra's grammar has it, where it has it."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{_written(str(k))}:{_written(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_written, value)) + "]"
    if isinstance(value, str):
        return quoted(value)
    return "null" if value is None else str(value)


@st.composite
def near(draw: st.DrawFn, name: str) -> str:
    """A letter more, less, twice or another."""
    place = draw(st.integers(0, len(name) - 1))
    more = draw(st.sampled_from(("", name[place], "x", ".", "_", "A", "@", "/", " ", "é", name[place] * 2)))
    return name[:place] + more + name[place + 1 :]


@st.composite
def words(draw: st.DrawFn) -> str:
    """One override."""
    if draw(st.integers(0, 3)) == 0:
        group = draw(st.sampled_from(GROUPS))
        option = draw(st.sampled_from(options(group)) | st.sampled_from(GRAMMAR))
        option = draw(st.just(option) | near(option or "x"))
        key = draw(
            st.sampled_from((group, group, group, f"{group}@trainer", f"{group}@:a", f"{group}@a:b", f"+{group}"))
        )
        return f"{key}={option}"
    key = draw(st.sampled_from(keys()))
    key = draw(st.sampled_from((key, key, key, key)) | near(key) | st.sampled_from(ODD_TEXTS) | st.text(max_size=8))
    value = draw(values())
    if key.lstrip("+~") in PLACES:
        value = value.replace("/", "_").replace(".", "_")
    sign = draw(st.sampled_from(("", "", "", "", "+", "++", "~", "~~")))
    return draw(st.sampled_from((f"{sign}{key}={value}", f"{sign}{key}={value}", f"{sign}{key}", f"{key}=")))


def harmless(word: str) -> bool:
    """Whether it asks for one run, in the case's own folder, and is no flag."""
    key = word.lstrip("+~ ").partition("=")[0].strip()
    return not word.startswith("-") and key.partition(".")[0].partition("@")[0] not in (*UNASKED, "hydra")


# ---------------------------------------------------------------- files

DEFAULTS = (
    *(
        "defaults: []",
        "defaults: [_self_]",
        "defaults: [own]",
        "defaults: [/loss: ipo]",
        "defaults: [override /loss: ipo]",
    ),
    *(
        "defaults: [override /loss: nosuch]",
        "defaults: [{override /model: null}]",
        "defaults: 5",
        "defaults: [5, null]",
    ),
    *(
        "defaults: [{a: {b: c}}]",
        "defaults: [optional /loss: nosuch]",
        "defaults: ['/loss@optimizer: dpo']",
        "defaults:",
    ),
    *("defaults: [/loss/dpo, _self_, _self_]", "defaults: ['${seed}']", "defaults: {a: b}", "defaults: [../loss/dpo]"),
)
LINES = (
    *(
        "# @package _global_",
        "# @package loss",
        "# @package nosuch.a",
        "# @package ''",
        "#@package _group_._name_",
        "---",
    ),
    *("beta: 0.1", "beta: [1, 2]", "beta: '0.1'", "beta: ???", "beta: ${seed}", "beta: ${..beta}", "beta: 1\nbeta: 2"),
    *("_target_: prefopt.objectives.dpo.DPO", "_target_: os.system", "_target_: [1]", "_partial_: 5", "_args_: [1]"),
    *("_recursive_: x", "_convert_: x", "seed: 1", "seed: -1", "seed: zero", "trainer: {max_steps: 0}", "trainer: 5"),
    *("? [a, b]\n: c", "a: &a [*a]", "a: *b", "<<: {beta: 1}", "- 1", "1: 2", "null: 3", "true: x", "a: !!set {b}"),
    *("a: !!binary '!'", "a: !!timestamp 2020", "a: 2020-01-01", "a: 0o7", "a: .nan", "a: |\n  b", "\t- x", "a: b: c"),
    *(
        "a: 'open",
        "a: {",
        "%YAML 9.9",
        "\ufeffa: 1",
        "\0",
        "é: é",
        '"\\ud83d": 1',
        "..: 1",
        "a.b: 1",
        "'': 1",
        "...",
        ":",
    ),
)


@st.composite
def files(draw: st.DrawFn) -> tuple[str, str, bytes]:
    """(group, the override that names it, what the file says)"""
    group = draw(st.sampled_from((*("loss", "experiment"), *GROUPS)))
    lines = draw(st.lists(st.sampled_from((*DEFAULTS, *LINES, *LINES)), max_size=5))
    if draw(st.booleans()):
        value = draw(VALUES)
        lines.append(yaml.safe_dump(value) if draw(st.booleans()) else json.dumps(value))
    if draw(st.booleans()):
        option = draw(st.sampled_from(options(group)))
        lines = [(CONF / group / f"{option}.yaml").read_text("utf-8"), *lines]
    content = "\n".join(lines).encode("utf-8", "surrogatepass")
    place = draw(st.integers(0, len(content)))
    if draw(st.integers(0, 3)) == 0:
        content = content[:place] + draw(st.binary(max_size=3)) + content[place + draw(st.integers(0, 3)) :]
    return group, f"{group}=own", content


# ---------------------------------------------------------------- asking


@fuzzed
@given(base=st.sampled_from(BASES), asked=st.lists(words().filter(harmless), min_size=1, max_size=3))
def test_words(base: tuple[str, ...], asked: list[str]):
    with case() as here:
        pairs("a.jsonl")(here)
        check(here, [*base, *asked])


@fuzzed
@given(file=files(), asked=st.lists(words().filter(harmless), max_size=1))
def test_files(file: tuple[str, str, bytes], asked: list[str]):
    group, word, content = file
    with case() as here:
        (here / "mine" / group).mkdir(parents=True)
        (here / "mine" / group / "own.yaml").write_bytes(content)
        check(here, ["--config-dir", "mine", word, *asked])


def usual() -> float:
    """Seconds of CPU that a wrong word takes at this moment, half a second on a machine that is not slow."""
    began = time.process_time()
    train("loss=dpoo")
    return time.process_time() - began


def check(here: Path, asked: list[str]) -> None:
    before, began = left(here), time.process_time()
    answer = train(*asked)
    seconds = time.process_time() - began
    answered(answer, INTERRUPTED, WRONG)
    assert seconds < SECONDS or seconds < 6 * usual()
    if answer.code == WRONG:
        nothing_left(here, before)
    else:
        for summary in here.rglob("summary.json"):
            assert whole_run(summary.parent)["status"] == "interrupted"


def train(*asked: str) -> Answer:
    """As far as a request is sound."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prefopt.jobs.train.prepare_parts", interrupt)
        return ask(lambda: command("train", task), *asked)
