"""A model that cannot be loaded is refused in a line or two that says what to do, before any weight is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from prefopt.errors import RequestError
from prefopt.models.base import Base
from prefopt.models.build import load_base
from tests.models.saved import saved_model, settings, tokenizer
from tests.toy import toy_model

CODE = """
from transformers import LlamaConfig, LlamaForCausalLM
class MineConfig(LlamaConfig):
    model_type = "mine"
class Mine(LlamaForCausalLM):
    config_class = MineConfig
"""


@pytest.fixture
def model(tmp_path) -> Path:
    return Path(saved_model(tmp_path / "smol"))


def refused(name: Path | str, said: str) -> None:
    with pytest.raises(RequestError, match=said) as error:
        load_base(str(name), "float32")
    assert len(str(error.value).splitlines()) <= 2


def test_a_path_that_is_not_there(model):
    refused(model.parent / "smoll", r"model.name=\S+/smoll: no such folder; did you mean 'smol'\?")
    refused(model.parent / "xyz", r"no such folder$")
    refused(
        "nobody/has-this-model",
        r"model.name=nobody/has-this-model: no such folder, nor in the hub.s cache, which is all there is offline",
    )


def test_a_folder_that_holds_no_model(model, tmp_path):
    (tmp_path / "smal").mkdir()
    refused(tmp_path / "smal", r"no config.json there, so no model; did you mean 'smol'\?")
    (tmp_path / "run").mkdir()
    saved_model(tmp_path / "run" / "model")
    refused(tmp_path / "run", r"no config.json there, so no model; did you mean '\S+/run/model'\?")


def test_weights_that_are_not_there_or_not_safe(model):
    weights = model / "model.safetensors"
    weights.unlink()
    refused(model, "a config but no weights; model.safetensors is missing")
    torch.save(toy_model().state_dict(), model / "pytorch_model.bin")
    refused(model, r"holds pytorch_model.bin, which can run code when read; .*save_pretrained\(\) writes safetensors")


def test_a_missing_shard_has_a_name(tmp_path):
    toy_model().save_pretrained(tmp_path, max_shard_size="10KB")
    tokenizer().save_pretrained(tmp_path)
    base = load_base(str(tmp_path), "float32")
    gone = sorted(tmp_path.glob("model-*.safetensors"))[0]
    gone.unlink()
    with pytest.raises(RequestError, match=f"{gone.name} is missing, which model.safetensors.index.json names"):
        base.hash()


def test_a_tokenizer_larger_than_the_embedding(tmp_path):
    """Ids up to 24 for 23 rows; as many as there are rows is right."""
    refused(saved_model(tmp_path / "large", size=25), "its tokenizer has ids up to 24, its embedding only 23 rows")
    assert load_base(saved_model(tmp_path / "equal", size=23), "float32")
    assert load_base(saved_model(tmp_path / "small", size=20), "float32")


def test_code_of_its_own_runs_only_when_asked(model, monkeypatch, tmp_path):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    (model / "mine.py").write_text(CODE)
    config = json.loads((model / "config.json").read_text())
    mapped = {"AutoConfig": "mine.MineConfig", "AutoModelForCausalLM": "mine.Mine"}
    (model / "config.json").write_text(json.dumps({**config, "model_type": "mine", "auto_map": mapped}))
    refused(model, r"brings code of its own; model.trust_remote_code=true runs it, if you trust it")
    assert settings("hf", str(model)).trust_remote_code is False
    base = load_base(str(model), "float32", trust_remote_code=True)
    assert type(base.causal()).__name__ == "Mine"


def test_weights_are_only_loaded_when_asked(model, monkeypatch):
    monkeypatch.setattr(Base, "causal", lambda self: pytest.fail("weights were loaded"))
    load_base(str(model), "float32").hash()
