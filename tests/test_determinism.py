"""One command says one thing: two runs have the same rows of metrics.csv, and the order is no affair of the method."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from prefopt.config import compose_request
from prefopt.errors import OK
from prefopt.jobs.assemble import prepare_data, prepare_parts
from prefopt.jobs.train import train
from prefopt.module import PreferenceModule
from tests.models.saved import pairs_file, saved_model
from tests.test_resume import rows


@pytest.fixture
def asked(tmp_path) -> list[str]:
    """A small run on pairs in a model's own words."""
    data = ["data=jsonl", f"data.train={pairs_file(tmp_path)}", "data.batch_size=8", f"cache_dir={tmp_path / 'cache'}"]
    small = ["evaluation.prompts=2", "evaluation.samples_per_prompt=2", "evaluation.max_new_tokens=3"]
    model = [f"model.name={saved_model(tmp_path / 'model')}", "trainer.accelerator=cpu", "trainer.max_steps=4"]
    return [*data, *small, *model]


def test_two_runs_of_one_command_are_equal(asked, tmp_path):
    """With dropout, from stores of their own, whatever has been drawn before."""
    found = []
    for name in ("one", "other"):
        torch.rand(len(name))
        own = [f"run_dir={tmp_path / name}", f"cache_dir={tmp_path / name}-cache"]
        more = ["model=hf_lora", "model.adapter.dropout=0.3", "loss=kto", "data.micro_batch_size=3"]
        assert train(compose_request([*asked, *own, *more, "trainer.val_every=2"])) == OK
        run = tmp_path / name
        summary = json.loads((run / "summary.json").read_text())
        texts = [(run / f"{part}.jsonl").read_text() for part in ("val", "test", "samples", "validation")]
        found.append((rows(run), texts, summary["model_hash"], summary["row_order_hash"], summary["val"]))
    assert len(found[0][0]) == 4
    assert found[0] == found[1]


def test_the_order_is_of_seed_and_data_alone(asked):
    """Never of the method, of micro-batches or of ranks."""
    micro, two = "data.micro_batch_size=1", ["strategy=ddp", "trainer.devices=2"]
    base = [*asked, "model=hf"]
    cut = [("dpo", []), ("kto", [micro]), ("orpo", two), ("bradley_terry", [micro, *two]), ("kto", two)]
    found = {prepare_parts(compose_request([*base, f"loss={loss}", *how])).source.order_hash(4) for loss, how in cut}
    assert len(found) == 1
    assert prepare_parts(compose_request([*base, "loss=dpo", "seed=1"])).source.order_hash(4) not in found


def test_a_second_run_tokenises_nothing(asked, monkeypatch):
    """But for the letters by which it gets to know the tokenizer; another loss reads the same rows."""
    seen: list[str] = []
    tokenize = PreTrainedTokenizerBase.__call__

    def counted(self, text, *arguments, **options):
        seen.append(text)
        return tokenize(self, text, *arguments, **options)

    monkeypatch.setattr(PreTrainedTokenizerBase, "__call__", counted)
    prepare_data(compose_request([*asked, "model=hf", "loss=dpo"]))
    assert sum(" " in text for text in seen) >= 3 * 24
    for loss in ("dpo", "kto"):
        seen.clear()
        prepare_data(compose_request([*asked, "model=hf", f"loss={loss}"]))
        assert set(seen) <= {"x", "0", ":", "\n"}


def test_intervals_do_not_know_micro_batches(asked, tmp_path, monkeypatch):
    """A step in one piece and in four: the same checkpoints at the same steps, and the same looks."""
    saved: list[int] = []
    save = PreferenceModule.on_save_checkpoint

    def seen(self, checkpoint):
        saved.append(checkpoint["global_step"])
        save(self, checkpoint)

    monkeypatch.setattr(PreferenceModule, "on_save_checkpoint", seen)
    found = []
    for micro in ("null", "2"):
        run = tmp_path / f"micro-{micro}"
        own = [f"run_dir={run}", f"data.micro_batch_size={micro}", "trainer.checkpoint_every=3", "trainer.val_every=2"]
        saved.clear()
        assert train(compose_request([*asked, *own, "model=hf", "loss=dpo", "schedule=linear", "optimizer=sgd"])) == OK
        last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
        looks = [json.loads(line)["step"] for line in (run / "validation.jsonl").open()]
        found.append((list(saved), looks, [row["learning_rate"] for row in rows(run)], last))
    (*one, whole), (*other, parts) = found
    assert one == other
    assert one[:2] == [[3, 4], [2, 4]]
    assert whole["lr_schedulers"] == parts["lr_schedulers"]
    assert whole["state_dict"].keys() == parts["state_dict"].keys()
    for name, weight in whole["state_dict"].items():
        torch.testing.assert_close(parts["state_dict"][name], weight, rtol=0, atol=1e-6)
