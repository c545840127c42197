"""Exports: what is written loads with transformers and PEFT alone and says what the run said."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from prefopt import export
from prefopt.errors import FAILED, OK, WRONG
from prefopt.jobs.export import tolerance
from prefopt.models.probe import Probe, difference
from tests.models.saved import pairs_file, saved_model, trained

KINDS = {
    "full": ("model=hf", "optimizer.lr=0.01"),
    "lora": ("model=hf_lora", "optimizer.lr=0.05"),
    "4-bit": ("model=hf_4bit", "model.quant.compute_dtype=float32", "optimizer.lr=0.05"),
    "4-bit in bfloat16": ("model=hf_4bit", "optimizer.lr=0.05"),
    "judge": ("model=hf_lora", "loss=bradley_terry", "optimizer.lr=0.05"),
}


class Runs(dict):
    """A finished run of each kind, trained when first asked for. All stand on one base."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder, self.base = folder, saved_model(folder / "base", intermediate_size=64)

    def __missing__(self, kind: str) -> Path:
        if "4-bit" in kind:
            pytest.importorskip("bitsandbytes")
        (self.folder / kind).mkdir()
        pairs_file(self.folder / kind)
        self[kind] = trained(self.folder / kind, f"model.name={self.base}", *KINDS[kind])
        return self[kind]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"))


def call(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["prefopt.export", *arguments])
    return export.main()


ALONE = """
import json, sys, torch
sys.modules["prefopt"] = None
import transformers
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file, save_file
for line in sys.stdin:
    folder, probe, kind = json.loads(line)
    maker = AutoPeftModelForCausalLM if kind == "adapter" else getattr(transformers, kind)
    model, probe = maker.from_pretrained(folder), load_file(probe)
    rows = probe["ids"].split(probe["lengths"].tolist())
    with torch.no_grad():
        said = [model(input_ids=row[None]).logits[0] for row in rows]
    save_file({"said": torch.stack([x[-1] for x in said])}, folder + "/said")
    words = transformers.AutoTokenizer.from_pretrained(folder)
    answers = "Classification" not in kind
    ends = transformers.GenerationConfig.from_pretrained(folder).eos_token_id if answers else None
    print(json.dumps([len(words), ends]))
"""
EXPORTS = {  # the forms that are named; the others are the defaults
    ("full", ""): "AutoModelForCausalLM",
    ("lora", ""): "AutoModelForCausalLM",
    ("lora", "adapter"): "adapter",
    ("4-bit", ""): "AutoModelForCausalLM",
    ("judge", ""): "AutoModelForSequenceClassification",
}


def test_an_export_says_what_the_run_said(runs, tmp_path, monkeypatch, capsys):
    """To 1e-4, by transformers and PEFT alone in a process that cannot import prefopt."""
    pytest.importorskip("bitsandbytes")
    asked = []
    for (kind, form), maker in EXPORTS.items():
        out = tmp_path / "deep" / f"{kind}{form}"
        named = [f"form={form}"] if form else []
        assert call(monkeypatch, f"run={runs[kind]}", f"out={out}", *named) == OK, capsys.readouterr().err
        asked.append(json.dumps([str(out), str(runs[kind] / "model/probe.safetensors"), maker]))
    assert {path.name for path in (tmp_path / "deep").iterdir()} == {f"{kind}{form}" for kind, form in EXPORTS}
    done = subprocess.run([sys.executable, "-c", ALONE], input="\n".join(asked), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    base = load_file(Path(runs.base) / "model.safetensors")
    for ((kind, form), maker), (words, ends) in zip(EXPORTS.items(), told, strict=True):
        out, expected = tmp_path / "deep" / f"{kind}{form}", load_file(runs[kind] / "model/probe.safetensors")
        said = load_file(out / "said")["said"]
        values = expected["rewards"] if kind == "judge" else expected["logits"]
        assert values.std() > 1e-4, (kind, values)
        torch.testing.assert_close(said, values, rtol=0, atol=1e-4)
        assert (words, ends) == (23, None if kind == "judge" else [2])
        assert not list(out.glob("*.bin"))
        if maker == "AutoModelForCausalLM":  # whole, and not the base
            weights = load_file(out / "model.safetensors")
            assert weights.keys() == base.keys()
            assert any((weights[name] - base[name]).abs().max() > 1e-3 for name in base)
            assert "quantization_config" not in json.loads((out / "config.json").read_text())


def test_the_lineage(runs, tmp_path, monkeypatch):
    run, out = runs["lora"], tmp_path / "out"
    assert call(monkeypatch, f"run={run}", f"out={out}", "form=adapter") == OK
    lineage, summary = (json.loads(path.read_text()) for path in (out / "lineage.json", run / "summary.json"))
    hashes = ("config_hash", "comparable_hash", "data_hash", "base_hash", "model_hash")
    for name in ("loss", "command", *hashes, "versions"):
        assert lineage[name] == summary[name], name
    assert (lineage["form"], lineage["dtype"], lineage["base"]) == ("adapter", "float32", runs.base)
    assert lineage["adapters"] == [str(run / "model")]
    assert lineage["probe"]["rows"] == 2
    assert 0 <= lineage["probe"]["difference"] <= lineage["probe"]["tolerance"] == 1e-4
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == runs.base


def test_an_earlier_export_of_the_run_is_replaced_and_nothing_else(runs, tmp_path, monkeypatch, capsys):
    run, out = runs["lora"], tmp_path / "out"
    assert call(monkeypatch, f"run={run}", f"out={out}", "form=adapter") == OK
    assert call(monkeypatch, f"run={run}", f"out={out}", "dtype=bfloat16") == OK
    assert not (out / "adapter_config.json").exists()
    assert load_file(out / "model.safetensors")["model.norm.weight"].dtype == torch.bfloat16
    assert call(monkeypatch, f"run={runs['full']}", f"out={out}") == WRONG
    assert "holds an export of" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.chdir(out)
        assert call(patch, f"run={run}", "out=.") == WRONG
    assert "out=. cannot be replaced" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("precious")
    assert call(monkeypatch, f"run={run}", f"out={tmp_path / 'mine'}") == WRONG
    assert "exists and is no export of this run" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "out"]
    (tmp_path / "mine/lineage.json").write_text("{")
    assert call(monkeypatch, f"run={runs['full']}", f"out={tmp_path / 'mine'}") == WRONG
    assert "its lineage.json cannot be read" in capsys.readouterr().err


def test_what_says_something_else_is_not_left_behind(runs, tmp_path, monkeypatch, capsys):
    """Exit 1. Weights that moved by a thousandth are noticed, and so is one nan."""
    run = shutil.copytree(runs["full"], tmp_path / "run")
    weights = load_file(run / "model/model.safetensors")
    for wrong in (1.001 * weights["model.norm.weight"], weights["model.norm.weight"] * torch.nan):
        save_file({**weights, "model.norm.weight": wrong}, run / "model/model.safetensors", metadata={"format": "pt"})
        assert call(monkeypatch, f"run={run}", f"out={tmp_path / 'new/out'}") == FAILED
        assert "Mismatch: on 2 held-out rows it differs from the run by" in capsys.readouterr().err
        assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_base_that_moved(runs, tmp_path, monkeypatch, capsys):
    """A missing one is named; another one is told by its hash; the right one will do wherever it lies."""
    run = shutil.copytree(runs["lora"], tmp_path / "run")
    moved = shutil.copytree(runs.base, tmp_path / "elsewhere")
    config = json.loads((run / "model/adapter_config.json").read_text())
    gone = {**config, "base_model_name_or_path": str(tmp_path / "gone")}
    (run / "model/adapter_config.json").write_text(json.dumps(gone))
    out = f"out={tmp_path / 'out'}"
    assert call(monkeypatch, f"run={run}", out) == WRONG
    assert f"is an adapter of {tmp_path / 'gone'}, which is not there\nbase=FOLDER" in capsys.readouterr().err
    other = saved_model(tmp_path / "other", seed=1, intermediate_size=64)
    assert call(monkeypatch, f"run={run}", out, f"base={other}") == WRONG
    assert f"base={other} has other weights than the run stood on" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert call(monkeypatch, f"run={run}", out, f"base={moved}", "form=adapter") == OK
    named = json.loads((tmp_path / "out/adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == str(moved)


def test_an_adapter_that_was_continued_keeps_its_chain(runs, tmp_path, monkeypatch):
    first = runs["lora"] / "model"
    pairs_file(tmp_path)
    run = trained(tmp_path, f"model.name={runs.base}", "model=hf_lora", f"model.adapter.start={first}")
    for form in ("merged", "adapter"):
        assert call(monkeypatch, f"run={run}", f"out={tmp_path / form}", f"form={form}") == OK
        lineage = json.loads((tmp_path / form / "lineage.json").read_text())
        assert (lineage["base"], lineage["adapters"]) == (runs.base, [str(first), str(run / "model")])


WRONG_EXPORTS = [
    ([], "run must be the folder of a finished run"),
    (["run=RUN"], "out must be a new folder"),
    (
        ["run=RUN", "out=OUT", "form=mergd"],
        "form must be one of adapter, merged, full; got 'mergd'; did you mean",
    ),
    (["run=RUN", "out=OUT", "dtype=bfloat61"], "did you mean 'bfloat16'?"),
    (["run=RUN", "out=OUT", "form=adapter", "dtype=float16"], "dtype must be left out with form=adapter"),
    (["run=RUN", "out=OUT", "frm=full"], "frm: no such key; did you mean 'form'?"),
    (["run=RUN", "out=OUT", "+typo=1"], "typo: no such key"),
    (["run=RUN", "out=OUT", "form=adapter"], "holds whole weights\naccepted: full"),
    (["run=RUN/model", "out=OUT"], "no run there: no summary.json; did you mean"),
    (["run=RUNN", "out=OUT"], "no run there: no summary.json; did you mean 'run'?"),
    (["run=RUN", "out=OUT", "base=somewhere"], "holds whole weights and needs no base"),
]


@pytest.mark.parametrize(("arguments", "said"), WRONG_EXPORTS)
def test_a_wrong_export_is_answered_in_two_lines(runs, tmp_path, monkeypatch, capsys, arguments, said):
    run = str(runs["full"])
    given = [a.replace("RUNN", f"{run}n").replace("RUN", run).replace("OUT", f"{tmp_path}/out") for a in arguments]
    assert call(monkeypatch, *given) == WRONG
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) <= 2
    assert not list(tmp_path.iterdir())


def test_a_run_that_has_not_ended_is_refused_quickly(runs, tmp_path):
    run = shutil.copytree(runs["full"], tmp_path / "run")
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps({**summary, "status": "interrupted"}))
    started = time.monotonic()
    command = [sys.executable, "-m", "prefopt.export", f"run={run}", f"out={tmp_path / 'out'}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert time.monotonic() - started < 3
    assert done.returncode == WRONG
    assert "this run is interrupted, not finished; the command that began it continues it" in done.stderr


def test_the_probe_is_part_of_the_run(runs, tmp_path, monkeypatch, capsys):
    run = shutil.copytree(runs["full"], tmp_path / "run")
    (run / "model/probe.safetensors").unlink()
    assert call(monkeypatch, f"run={run}", f"out={tmp_path / 'out'}") == WRONG
    assert "so nothing to check an export against" in capsys.readouterr().err


def test_tolerances():
    """float32: 1e-4. bfloat16, whose eps is 2^-7: 4 · 2^-7 of the largest number, itself taken as 1 at least."""
    assert tolerance("float32", 10.0) == 1e-4
    assert tolerance("bfloat16", 10.0) == 4 * 2**-7 * 10
    assert tolerance("bfloat16", 0.1) == 4 * 2**-7
    one, other = ({"logps": torch.tensor([0.0, x])} for x in (1.0, torch.nan))
    assert not difference(Probe([], one), Probe([], other)) <= 1e9
    with pytest.raises(ValueError, match="one says logps, the other rewards"):
        difference(Probe([], one), Probe([], {"rewards": torch.zeros(1)}))


@pytest.mark.parametrize("form", ["merged", "adapter"])
def test_four_bits_multiplied_in_bfloat16(runs, tmp_path, monkeypatch, form):
    """The run rounds every product to 8 bits; what it learnt is compared without."""
    pytest.importorskip("bitsandbytes")
    run = runs["4-bit in bfloat16"]
    assert json.loads((run / "config.json").read_text())["model"]["quant"]["compute_dtype"] == "bfloat16"
    assert call(monkeypatch, f"run={run}", f"out={tmp_path / 'out'}", f"form={form}") == OK
    assert json.loads((tmp_path / "out/lineage.json").read_text())["probe"]["tolerance"] == 1e-4
