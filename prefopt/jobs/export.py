"""Writing a run's model as a folder that transformers and PEFT load, and proving that it says what the run said."""

from __future__ import annotations

import shutil
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, GenerationConfig

from prefopt.errors import FAILED, OK, RequestError
from prefopt.files import replacing_folder, write_json
from prefopt.jobs.loading import Opened, check_base, open_run, quieten, started_from
from prefopt.models.files import ADAPTER, stored_json
from prefopt.models.probe import FILE, Probe, difference, replay
from prefopt.models.reward import merged
from prefopt.run import Finished, versions
from prefopt.settings import ExportSettings

SCHEMA = 1
TOLERANCE = 1e-4  # of a logit, a log-prob in nats or a reward, where all is computed in float32
# A run in bfloat16 rounds every product, and its merge in float32 does not. Measured on small models that is 0.6 to 1.7
# times the spacing of numbers as large as the largest that was said; this many are allowed.
ROUNDINGS = 4


class Mismatch(RuntimeError):
    """What was written does not say what the run said."""


def export(asked: ExportSettings, run: Finished) -> int:
    """Returns the exit code. Whatever goes wrong, no folder is left."""
    quieten()
    out = Path(str(asked.out)).expanduser()
    try:
        with replacing_folder(out) as folder:
            lineage = write_export(asked, run, folder)
    except RequestError:
        raise
    except Exception as error:
        if asked.debug:
            traceback.print_exc()
        print(f"the export failed, nothing is left: {type(error).__name__}: {error}", file=sys.stderr)
        return FAILED
    probe = lineage["probe"]
    print(f"{lineage['form']:11} {out}   (from_pretrained; lineage.json says what it came from)")
    as_written = f", {probe['rounding']:.1e} as {lineage['dtype']}" if "rounding" in probe else ""
    print(f"checked     {probe['rows']} held-out rows: differs from the run by {probe['difference']:.1e}{as_written}")
    return OK


def write_export(asked: ExportSettings, run: Finished, folder: Path) -> dict[str, Any]:
    """Everything, into an empty folder. Returns the lineage. Mismatch when it does not say what the run said."""
    if not (run.model / FILE).is_file():
        raise RequestError(f"run={run.path}: no model/{FILE}, so nothing to check an export against")
    form, opened, probe = asked.form or run.forms[0], open_run(run, asked.base), Probe.load(run.model)
    check_base(run, opened)
    dtype = asked.dtype or opened.base.dtype
    if form == "adapter":
        write_adapter(run, opened, folder)
        proof = prove(opened, probe, on_its_base(opened, folder))
    else:
        model = classifier(run.model) if run.judges else whole(opened)
        proof = prove(opened, probe, model)
        rounded(model, dtype).save_pretrained(folder)
        trust = opened.base.trust_remote_code
        proof["rounding"] = compare(classifier(folder) if run.judges else causal(folder, trust), model, probe)
    opened.base.tokenizer.save_pretrained(folder)
    if not run.judges:
        save_generation(opened, folder)
    lineage = {**origin(run, opened), "form": form, "dtype": dtype, "probe": proof}
    write_json(folder / "lineage.json", lineage)
    return lineage


# ---------------------------------------------------------------- the model


def whole(opened: Opened) -> Any:
    """The causal LM in one piece and in the run's precision, an adapter merged in float32 at least.

    4-bit weights are merged as the numbers they stand for: those are what the adapter learnt to mend, so this is the
    model that trained. Merged into the weights from before they were rounded it would be another, and merged into
    4-bit weights the adapter itself would be rounded away.
    """
    base = opened.base
    if base.adapter is None:
        return base.causal().eval()
    precise = base if base.dtype == "float64" else replace(base, dtype="float32")
    return merged(exactly(opened).policy(), precise).eval()


def rounded(model: Any, dtype: str) -> Any:
    """Weights only: the frequencies of rotary embeddings, which are not stored, stay float32 as they do when loaded."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(getattr(torch, dtype))
    return model


def causal(folder: Path, trust: bool) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", use_safetensors=True, trust_remote_code=trust)
    return model.eval()


def classifier(folder: Path) -> Any:
    return AutoModelForSequenceClassification.from_pretrained(folder, dtype="auto", use_safetensors=True).eval()


def on_its_base(opened: Opened, folder: Path) -> Any:
    return PeftModel.from_pretrained(exactly(opened).base.causal(), str(folder)).eval()


def exactly(opened: Opened) -> Opened:
    """4-bit weights multiplied in float32, as the probe was recorded."""
    quant = opened.base.quant
    if quant is None:
        return opened
    return replace(opened, base=replace(opened.base, quant=replace(quant, compute_dtype="float32")))


def write_adapter(run: Finished, opened: Opened, folder: Path) -> None:
    """As it trained; its base is named by the folder that it was found in."""
    name = opened.base.name
    base = str(Path(name).absolute()) if Path(name).is_dir() else name
    config = {**stored_json(str(run.model), "adapter_config.json", run.key), "base_model_name_or_path": base}
    write_json(folder / "adapter_config.json", config)
    shutil.copyfile(run.model / ADAPTER, folder / ADAPTER)


def save_generation(opened: Opened, folder: Path) -> None:
    """The base's generation settings with every token that ends an answer."""
    tokenizer, ends = opened.base.tokenizer, list(opened.renderer.end_ids)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    own = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": ends, "pad_token_id": pad}
    try:
        settings = GenerationConfig.from_pretrained(opened.base.name)
        settings.update(**own)
        settings.save_pretrained(folder)
    except (OSError, ValueError):  # none there, or one that transformers itself no longer accepts
        GenerationConfig(**own).save_pretrained(folder)


# ---------------------------------------------------------------- proving


def prove(opened: Opened, probe: Probe, model: Any) -> dict[str, Any]:
    """Compare a model, in the run's own precision, with what the run said when it ended."""
    found = difference(probe, replay(model, probe))
    allowed = tolerance(opened.base.dtype, probe.scale)
    if not found <= allowed:  # nan is a mismatch, too
        raise Mismatch(f"on {len(probe.texts)} held-out rows it differs from the run by {found:.2g}, not {allowed:.2g}")
    return {"rows": len(probe.texts), "difference": found, "tolerance": allowed}


def compare(loaded: Any, written: Any, probe: Probe) -> float:
    """Load what was written as anybody would: it must say what it said before. Returns what the dtype it was rounded
    to makes of the run's numbers."""
    again = replay(loaded, probe)
    found = difference(replay(written, probe), again)
    if not found <= TOLERANCE:
        raise Mismatch(f"loaded again it differs from what was written by {found:.2g}, not {TOLERANCE:.2g}")
    return difference(probe, again)


def tolerance(dtype: str, scale: float) -> float:
    """What is allowed between numbers as large as `scale` that were computed in this dtype."""
    return max(TOLERANCE, ROUNDINGS * torch.finfo(getattr(torch, dtype)).eps * max(scale, 1.0))


def origin(run: Finished, opened: Opened) -> dict[str, Any]:
    """Where the model comes from: the run, what it stood on, and what made both."""
    hashes = ("config_hash", "comparable_hash", "data_hash", "base_hash", "model_hash")
    start = started_from(run)
    return {
        "schema": SCHEMA,
        "run": str(run.path.absolute()),
        **{name: run.summary[name] for name in ("loss", "seed", "command", *hashes, "git")},
        "base": base_name(run, opened),
        "adapters": [str(a) for a in (start, run.model.absolute() if run.adapted else None) if a is not None],
        "quant": run.config["model"].get("quant"),
        "versions": run.summary["versions"],
        "exported_with": versions(),
    }


def base_name(run: Finished, opened: Opened) -> str:
    """Of a tiny base, which a whole run no longer needs, nothing but its hash is known."""
    return opened.base.name if run.adapted else run.config["model"].get("name") or "a tiny base"
