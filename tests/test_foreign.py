"""Run folders of other people run no code here; a person's own do not tell who that is, and are read all the same."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import transformers.dynamic_module_utils

from prefopt import evaluate, export, sample
from prefopt.errors import FAILED, OK, WRONG
from prefopt.jobs.loading import open_model
from prefopt.jobs.optimum import known_optimum
from prefopt.models.probe import Probe
from prefopt.reports.compare.runs import read_runs
from tests.models.saved import saved_model, trained
from tests.reports.fake import write_run

MAINS = {"evaluate": evaluate.main, "export": export.main, "sample": sample.main}


class Home:
    """Two runs, whole and with an adapter, that lie with all they stand on in the home folder of somebody."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.base = folder, saved_model(folder / "base", intermediate_size=64)
        for name, option in (("full", "model=hf"), ("lora", "model=hf_lora")):
            (folder / name).mkdir()
            setattr(self, name, self.trained(name, option))

    def trained(self, name: str, option: str, *more: str) -> Path:
        return trained(self.folder / name, f"model.name={self.base}", option, "optimizer.lr=0.01", *more)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ada")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(folder))
        yield Home(folder)


@pytest.fixture
def ask(tmp_path, monkeypatch, capsys):
    """A command on a run; its exit code and what it says."""
    (tmp_path / "prompts.txt").write_text("w3 w4\n")
    places = {
        "evaluate": [f"out={tmp_path / 'out'}", f"cache_dir={tmp_path / 'cache'}", "device=cpu"],
        "export": [f"out={tmp_path / 'out'}"],
        "sample": [f"prompts={tmp_path / 'prompts.txt'}", f"out={tmp_path / 'out'}", "max_new_tokens=2", "device=cpu"],
    }

    def call(command: str, *words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", [f"prefopt.{command}", *words, *places[command]])
        code = MAINS[command]()
        told = capsys.readouterr()
        return code, told.out + told.err

    return call


# ---------------------------------------------------------------- other people's


class Payload:
    """A pickle that says so when it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


def changed(file: Path, **more) -> None:
    """A JSON file with other keys; "a__b" is b in the section a."""
    held = json.loads(file.read_text())
    for key, value in more.items():
        *sections, last = key.split("__")
        place = held
        for section in sections:
            place = place[section]
        place[last] = value
    file.write_text(json.dumps(held))


def brings_code(run: Path, marker: Path) -> None:
    """And says that it is trusted."""
    named = {"AutoConfig": "payload.Config", "AutoModelForCausalLM": "payload.Model"}
    (run / "model/payload.py").write_text(f"from pathlib import Path\nPath({str(marker)!r}).touch()\n")
    changed(run / "model/config.json", model_type="evil", auto_map=named)
    changed(run / "config.json", model__trust_remote_code=True)


def pickled(name: str) -> Callable[[Path, Path], None]:
    def make(run: Path, marker: Path) -> None:
        (run / "model" / f"{name}.safetensors").unlink()
        (run / "model" / f"{name}.bin").write_bytes(pickle.dumps(Payload(marker)))

    return make


def both_at_once(run: Path, marker: Path) -> None:
    """An adapter beside whole weights, which transformers would take along."""
    (run / "model/adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "x"}))
    (run / "model/adapter_model.bin").write_bytes(pickle.dumps(Payload(marker)))


def looks_up(run: Path, marker: Path) -> None:
    changed(run / "config.json", model__reference_name="${oc.env:HOME}")


def names_a_call(run: Path, marker: Path) -> None:
    changed(run / "config.json", loss={"_target_": "pathlib.Path.touch", "self": str(marker)})


ALL = tuple(MAINS)
SAFE = "no adapter_model.safetensors there; adapters are read as safetensors only"
FOREIGN = {  # what was done to it, which run, who is asked, with which words, what is said
    "code": (brings_code, "full", ALL, [], "brings code of its own; model.trust_remote_code=true runs it"),
    "pickled weights": (
        pickled("model"),
        "full",
        ("sample",),
        [],
        "holds pytorch_model.bin, which can run code when read",
    ),
    "pickled adapter": (pickled("adapter_model"), "lora", ("evaluate",), [], SAFE),
    "pickled adapter, base named": (pickled("adapter_model"), "lora", ("export",), ["base=BASE"], SAFE),
    "adapter in a model": (both_at_once, "full", ("export",), [], "an adapter, and by its config.json it trained none"),
    "interpolation": (
        looks_up,
        "full",
        ("sample",),
        [],
        "model.reference_name=${oc.env:HOME}: ${} is not followed there",
    ),
    "target": (names_a_call, "full", ("evaluate",), [], "loss._target_=pathlib.Path.touch is not called"),
}


@pytest.fixture
def foreign(home, tmp_path):
    """A copy of a run, with files in it that nobody must read."""

    def make(kind: str, change: Callable[[Path, Path], None]) -> tuple[Path, Path]:
        run, marker = shutil.copytree(getattr(home, kind), tmp_path / "run"), tmp_path / "marker"
        change(run, marker)
        if (run / "model/model.bin").exists():
            (run / "model/model.bin").rename(run / "model/pytorch_model.bin")
        for name in ("checkpoints/last.ckpt", "model/training_args.bin", "config.pickle"):
            (run / name).write_bytes(pickle.dumps(Payload(marker)))
        (run / "config.yaml").write_text(f"!!python/object/apply:pathlib.Path.touch [{marker}]\n")
        return run, marker

    return make


@pytest.mark.parametrize("case", FOREIGN)
def test_a_foreign_run_is_refused_in_two_lines_and_runs_nothing(home, foreign, ask, tmp_path, case):
    change, kind, commands, words, said = FOREIGN[case]
    run, marker = foreign(kind, change)
    for command in commands:
        code, told = ask(command, f"run={run}", *(word.replace("BASE", home.base) for word in words))
        assert code == WRONG, (command, told)
        assert said in told, (command, told)
        assert len(told.strip().splitlines()) <= 2, told
        assert not marker.exists()
        assert not (tmp_path / "out").exists()


def test_a_model_that_holds_an_adapter_too_is_refused(home, foreign, ask, tmp_path):
    run, marker = foreign("full", both_at_once)
    code, told = ask("sample", f"model.name={run / 'model'}")
    assert (code, marker.exists()) == (WRONG, False)
    assert f"model.name={run / 'model'} holds a model and an adapter; give each a folder of its own" in told


@pytest.mark.parametrize("command", MAINS)
def test_code_runs_where_the_command_says_so(foreign, ask, tmp_path, monkeypatch, command):
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    run, marker = foreign("full", brings_code)
    code, told = ask(command, f"run={run}", "model.trust_remote_code=true")
    assert marker.exists(), told
    assert code in (WRONG, FAILED)  # there is nothing but the payload in it


def test_comparing_runs_no_code_either(tmp_path):
    trusted = {"data": {"kind": "controlled"}, "model": {"trust_remote_code": True}}
    (write_run(tmp_path / "run", config=trusted) / "model").mkdir()
    optimum, why_none = known_optimum(read_runs([tmp_path / "run"]).runs, 100, tmp_path / "cache")
    assert optimum is None
    assert why_none == "No optimum: the runs' models bring code of their own, which is not run here."


# ---------------------------------------------------------------- a person's own


def telling(folder: Path, secret: str) -> list[str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return [str(path.relative_to(folder)) for path in files if secret.encode() in path.read_bytes()]


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_run_folder_does_not_tell_whose_it_is(home, kind):
    run = getattr(home, kind)
    config = json.loads((run / "config.json").read_text())
    assert config["model"]["name"] == "~/base"
    assert config["data"]["train"] == f"~/{kind}/pairs.jsonl"
    assert telling(run, str(home.folder)) == []
    if kind == "lora":
        saved = json.loads((run / "model/adapter_config.json").read_text())
        assert saved["base_model_name_or_path"] == "~/base"
        assert not (run / "model/README.md").exists()


@pytest.mark.parametrize("kind", [pytest.param("full", marks=pytest.mark.long), "lora"])
def test_it_is_read_all_the_same(home, ask, tmp_path, kind):
    run = getattr(home, kind)
    held = json.loads((run / "summary.json").read_text())
    code, told = ask("evaluate", f"run={run}", "evaluation.prompts=0")
    assert code == OK, told
    found = json.loads((tmp_path / "out/summary.json").read_text())
    assert found["test"]["accuracy_logratio"] == held["test"]["accuracy_logratio"]
    assert telling(tmp_path / "out", str(home.folder)) == []
    shutil.rmtree(tmp_path / "out")
    for words in ([f"run={run}"], [f"model.name='~/{kind}/run/model'"]):
        code, told = ask("sample", *words)
        assert code == OK, told
        (tmp_path / "out").unlink()


def test_an_exported_adapter_is_loaded_by_peft_alone(home, ask, tmp_path):
    """Which does not know what `~` is."""
    from peft import AutoPeftModelForCausalLM

    code, told = ask("export", f"run={home.lora}", "form=adapter")
    assert code == OK, told
    assert telling(tmp_path / "out", str(home.folder)) == ["adapter_config.json"]
    assert json.loads((tmp_path / "out/adapter_config.json").read_text())["base_model_name_or_path"] == home.base
    AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out")


def test_the_same_command_finds_its_run_and_another_goes_on_from_it(home, capsys):
    """By the adapter's own name or as the start of another; the names of bases are the same by either spelling."""
    home.trained("lora", "model=hf_lora")
    assert "run holds this run, finished: left alone" in capsys.readouterr().err
    (home.folder / "next").mkdir()
    run = trained(home.folder / "next", f"model.name={home.lora / 'model'}", "model=hf_lora", "optimizer.lr=0.01")
    said = capsys.readouterr().err
    assert "continuing the adapter" in said
    assert "it was trained on" not in said
    assert telling(run, str(home.folder)) == []
    before, after = (Probe.load(folder / "model") for folder in (home.lora, run))
    assert before.said.keys() == after.said.keys()
    assert open_model(str(run / "model")).base.name == home.base


def test_what_went_wrong_is_told_without_names(home, monkeypatch):
    def fail(request):
        raise RuntimeError(f"{home.folder}/x of hf_aB3dE6gH9jK2mN5pQ8sT")

    monkeypatch.setattr("prefopt.jobs.train.prepare_parts", fail)
    (home.folder / "failed").mkdir()
    with pytest.raises(AssertionError):
        home.trained("failed", "model=hf")
    run = home.folder / "failed/run"
    assert telling(run, "aB3dE6gH9jK2mN5pQ8sT") == []
    assert json.loads((run / "summary.json").read_text())["error"] == "RuntimeError: ~/x of ***"
    assert "RuntimeError: ~/x of ***" in (run / "error.txt").read_text()
    assert telling(run, str(home.folder)) == []


def test_broken_rows_are_named_without_names(home):
    (home.folder / "broken").mkdir()
    with pytest.raises(AssertionError):
        home.trained("broken", "model=hf", "optimizer.lr=1e38", "trainer.clip=null")
    run = home.folder / "broken/run"
    assert '"source": "~/broken/pairs.jsonl:' in (run / "non_finite.jsonl").read_text()
    assert telling(run, str(home.folder)) == []
