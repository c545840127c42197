"""Folders: of models, runs and the cache."""

from __future__ import annotations

import json
from pathlib import Path

from prefopt.config import compose_request
from prefopt.run import without_places
from tests.mistakes.asking import both, mistake, pairs, writes

CONFIG = writes("smol/config.json", json.dumps({"model_type": "llama"}))


def readonly(here: Path) -> None:
    (here / "shut").mkdir(mode=0o500)


def another_run(here: Path) -> None:
    """What a run of β = 0.2 left."""
    plain = compose_request(["loss.beta=0.2"]).plain
    writes("run/config.json", json.dumps(without_places(plain)))(here)


MODELS = [
    mistake("model=hf", "model.name must be a hub name or a folder, e.g. model.name=", "got None"),
    mistake(
        "model=hf model.name=./smal", "model.name=./smal: no such folder; did you mean 'smol'?", real=True, make=CONFIG
    ),
    mistake(
        "model=hf model.name=smol",
        "model.name=smol: a config but no weights; model.safetensors is missing",
        make=CONFIG,
    ),
    mistake(
        "model=hf model.name=smol",
        "model.name=smol holds pytorch_model.bin, which can run code when read",
        make=both(CONFIG, writes("smol/pytorch_model.bin", b"")),
    ),
    mistake(
        "model=hf model.name=smol", "model.name=smol: no config.json there, so no model", make=writes("smol/a", "")
    ),
    mistake(
        "model=hf model.name=smol",
        "no config.json there, so no model; did you mean 'smol/model'?",
        make=writes("smol/model/config.json", "{}"),
    ),
    mistake(
        "model=hf model.name=a", "=a: its adapter_config.json cannot be", make=writes("a/adapter_config.json", "{")
    ),
    mistake(
        "model=hf model.name={large} data=jsonl data.train=a.jsonl",
        "its tokenizer has ids up to 24, its embedding only 23 rows",
        make=pairs("a.jsonl"),
    ),
    mistake(
        "model=hf model.name={model} data=jsonl data.train=a.jsonl data.prompts=chat",
        "data.prompts=chat: model.name=",
        " has no chat template; take data.prompts=text",
        make=pairs("a.jsonl"),
    ),
    mistake("model.reference=adapter_off", "model.reference=adapter_off needs an adapter; model.adapter is null"),
]
RUNS = [
    mistake("run_dir=a", "run_dir=a: ", "/a is a file; name a folder", make=writes("a", "")),
    mistake("run_dir=a/b/c", "run_dir=a/b/c: ", "/a is a file; name a folder", make=writes("a", "")),
    mistake("run_dir=shut/run", "run_dir=shut/run: ", "/shut cannot be written to", make=readonly, needs="user"),
    mistake(f"run_dir={'x' * 300}", "cannot be made: File name too long"),
    mistake(
        "run_dir=a",
        "run_dir=a holds other files and no run; name a new or empty folder",
        real=True,
        make=writes("a/b", ""),
    ),
    mistake("run_dir=run", "run_dir=run holds another run: loss.beta is 0.2 there and 0.1 here", make=another_run),
    mistake("run_dir=a", "run_dir=a: its config.json cannot be read: ", make=writes("a/config.json", '{"loss": ')),
    mistake("run_dir=a", "run_dir=a: its config.json is no object", make=writes("a/config.json", "[]")),
    mistake("cache_dir=a", "cache_dir=a: ", "/a is a file; name a folder", make=writes("a", "")),
    mistake("cache_dir=a/b", "cache_dir=a/b: ", "/a is a file; name a folder", make=writes("a", "")),
]
