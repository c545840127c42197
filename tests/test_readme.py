"""The README is true: its commands run, its table of methods is the registry, its Python prints what it should."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from prefopt import compare, evaluate, export, sample
from prefopt.config import compose_request
from prefopt.errors import OK
from prefopt.jobs.train import train
from prefopt.objectives import get, names
from prefopt.sweep.processes import Sweep
from prefopt.train import main
from tests.conftest import SMALL

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", README, re.S) for line in block.strip().splitlines()]
INSPECT = [line.split(maxsplit=3)[3] for line in COMMANDS if line.startswith("python -m prefopt.inspect")]
AFTER = {
    "compare": compare,
    "evaluate": evaluate,
    "export": export,
    "sample": sample,
}  # commands on the runs of other commands
ASKED = [line.split(maxsplit=3)[3] for line in COMMANDS if line.startswith("python -m prefopt.train")]
SWEEPS = [asked for asked in ASKED if asked.startswith("-m ")]
TRAIN = [asked for asked in ASKED if asked not in SWEEPS]


def test_every_command_is_one_of_the_kinds_run_here():
    assert [line for line in COMMANDS if not line.startswith(("python -m prefopt.", "make demo"))] == []
    assert len(TRAIN) >= 6


def test_make_knows_its_targets():
    env = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}  # these may run under make
    for target in ("test", "check", "lint", "mutants", "bench", "demo"):
        shown = subprocess.run(["make", "-n", target], cwd=ROOT, env=env, capture_output=True, text=True)
        assert shown.returncode == 0, shown.stderr
    assert shown.stdout.strip().splitlines()[-1].endswith("-m prefopt.train experiment=demo")


@pytest.fixture
def desk(tmp_path, cache_dir) -> Path:
    """A new folder with the README's pairs, a few more of them, and a model to start from."""
    shown = json.loads(re.search(r"```json\n(.*?)```", README, re.S)[1])
    rows = [{**shown, "prompt": f"{shown['prompt']} ({i})"} for i in range(40)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    from tests.toy import toy_model

    toy_model().float().save_pretrained(tmp_path / "path/to/model")
    return tmp_path


RANKS = pytest.mark.long  # two processes of the slowest start; test_ranks has them every time


@pytest.mark.parametrize(
    "arguments",
    [pytest.param(a, marks=RANKS) if "strategy=ddp" in a else a for a in ("experiment=demo", *TRAIN)],
)
def test_training_commands(desk, cache_dir, arguments, monkeypatch, capsys):
    monkeypatch.chdir(desk)
    if "model.name" in arguments:
        _save_tokenizer(desk)
    asked = shlex.split(arguments)
    own = {argument.split("=")[0] for argument in asked}
    # Only sizes are changed, and what the command itself says wins.
    sizes = [s for s in (*SMALL, "trainer.max_steps=2") if s.split("=")[0] not in own]
    if "reward.name=runs/judge" in asked:
        judge = ["loss=bradley_terry", "data=jsonl", "data.train=pairs.jsonl", "trainer.max_steps=1"]
        own_sizes = [s for s in SMALL if not s.startswith("data.world")]
        made = [*judge, *own_sizes, f"run_dir={desk / 'runs/judge'}", f"cache_dir={cache_dir}"]
        assert train(compose_request(made)) == OK
    if any(argument.startswith("model=hf") for argument in asked):
        sizes = [s for s in sizes if not s.startswith("model.tiny")]
    if "data=jsonl" in asked:
        sizes = [s for s in sizes if not s.startswith("data.world")]
    run = [] if "run_dir" in own else ["run_dir=run"]
    command = [*asked, *sizes, *run, f"cache_dir={cache_dir}"]
    if "strategy=ddp" in asked:  # of several processes
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        whole = [sys.executable, "-m", "prefopt.train", *command]
        done = subprocess.run(whole, env=env, capture_output=True, text=True)
        assert done.returncode == OK, done.stderr[-2000:]
        said = done.stdout
    else:
        monkeypatch.setattr(sys, "argv", ["prefopt.train", *command])
        assert main() == OK
        said = capsys.readouterr().out
    assert "run folder" in said


@pytest.mark.parametrize(
    ("arguments", "jobs"),
    [
        pytest.param(*asked, marks=[pytest.mark.long] if asked[1] > 8 else [])
        for asked in zip(SWEEPS, (8, 63, 1), strict=True)
    ],
)
def test_sweeps(arguments, jobs, cache_dir, tmp_path, monkeypatch):
    """What they ask for is sound, every run of it; tests/test_sweep.py runs some."""
    asked = []
    monkeypatch.setattr(Sweep, "run", lambda self, jobs: asked.extend(jobs) or OK)
    monkeypatch.setattr(sys, "argv", ["prefopt.train", *shlex.split(arguments), f"cache_dir={cache_dir}"])
    monkeypatch.chdir(tmp_path)
    assert main() == OK
    assert len({job.key for job in asked}) == len(asked) == jobs


def test_commands_after_training(desk, cache_dir, monkeypatch):
    """In the README's order, on the runs that it makes, with only sizes changed; the chat meets its end."""
    monkeypatch.chdir(desk)
    sizes = [s for s in SMALL if not s.startswith("data.world")]
    made = [shlex.split(asked) for asked in TRAIN if re.search(r"run_dir=runs/(dpo|orpo|judge)$", asked)]
    assert len(made) == 3
    for asked in made:
        own = {argument.split("=")[0] for argument in asked}
        less = [s for s in (*sizes, "trainer.max_steps=2") if s.split("=")[0] not in own]
        assert train(compose_request([*asked, *less, f"cache_dir={cache_dir}"])) == OK
    monkeypatch.setattr(sys, "stdin", io.StringIO("How do I boil an egg?\n"))
    shutil.copytree("runs/dpo/model", "path/to/model", dirs_exist_ok=True)  # of one vocabulary with runs/orpo
    bench = {"chosen_model": "a", "rejected_model": "b", "subset": "hep-cpp", "id": 0}
    rows = [json.loads(line) | bench for line in Path("pairs.jsonl").read_text().splitlines()]
    Path("rewardbench.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    few = [size for size in sizes if size.startswith("evaluation.")]
    short = {"sample": ["max_new_tokens=8"], "evaluate": [*few, f"cache_dir={cache_dir}"]}
    ran = 0
    for line in COMMANDS:
        name = line.removeprefix("python -m prefopt.").split()[0]
        if name in AFTER:
            monkeypatch.setattr(sys, "argv", [f"prefopt.{name}", *shlex.split(line)[3:], *short.get(name, [])])
            assert AFTER[name].main() == OK, line
            ran += 1
    assert ran == 10
    assert {"report", "evaluations", "evaluated", "exported", "answers.jsonl", "best.jsonl"} <= {
        path.name for path in desk.iterdir()
    }


def _save_tokenizer(desk: Path) -> None:
    """One with as many tokens as the bytes need; the model is made to fit it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from prefopt.models.tiny import fit_tokenizer

    tokenizer = fit_tokenizer(["an egg"], 300)
    tokenizer.save_pretrained(desk / "path/to/model")
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **size)).save_pretrained(desk / "path/to/model")


def test_the_table_of_methods_is_the_registry():
    table = re.search(r"## Methods\n(.*?)\n\n", README.replace("## Methods\n\n", "## Methods\n"), re.S)[1]
    rows = re.findall(r"^\| `(\w+)` \|.*$", table, re.M)
    yaml = sorted(file.stem for file in (ROOT / "conf/loss").glob("*.yaml"))
    assert sorted(rows) == names() == yaml
    for line in table.splitlines():
        if found := re.match(r"\| `(\w+)` \| .*? \| (\w+) \| (yes|–) \|", line):
            needs = get(found[1]).needs
            assert (needs.data, "yes" if needs.reference else "–") == (found[2], found[3])


def test_the_python_example():
    code = re.search(r"```python\n(.*?)```", README, re.S)[1]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    # chosen: -3 against -4, rejected: -4 against -4; -log σ(0.1 · 1) = 0.6444
    assert "0.6444" in done.stdout


@pytest.mark.parametrize("arguments", INSPECT)
def test_inspecting_commands(desk, cache_dir, arguments):
    sizes = [size for size in SMALL if size.startswith("model.")]
    done = subprocess.run(
        [sys.executable, "-m", "prefopt.inspect", *shlex.split(arguments), *sizes, f"cache_dir={cache_dir}"],
        cwd=desk,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = (desk / "rows.html").read_text() if "--html" in arguments else done.stdout
    assert "40 rows read" in told
