"""The tiny base is an SFT run of the one module: no second training loop exists."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import torch

from prefopt.callbacks.progress import Progress
from prefopt.data.examples import Example
from prefopt.data.loader import Plan, Recorded, StepLoader
from prefopt.data.render import Renderer
from prefopt.data.views import view
from prefopt.files import cached_folder
from prefopt.jobs.trainer import quiet_trainer
from prefopt.models.base import Base
from prefopt.models.policy import Policy
from prefopt.models.tiny import content_key, fit_tokenizer, new_model
from prefopt.module import PreferenceModule
from prefopt.objectives import create
from prefopt.schedules import cosine
from prefopt.settings import TinySettings

Read = Callable[[], Iterable[Example]]


def fitted_base(settings: TinySettings, demonstrations: Read, cache: Path, dtype: str = "float32") -> Base:
    """The tiny base of these demonstrations, from the cache or fitted now."""
    from transformers import AutoTokenizer

    texts = (f"{example.prompt_text}\0{example.completions[0]}" for example in demonstrations())
    folder = cache / "base" / content_key(settings, texts)
    cached_folder(folder, lambda empty: _fit(settings, list(demonstrations()), empty))
    return Base(str(folder), AutoTokenizer.from_pretrained(folder), dtype)


def _fit(settings: TinySettings, demonstrations: list[Example], folder: Path) -> None:
    spoken = (text for example in demonstrations for text in (example.prompt_text, *example.completions))
    tokenizer = fit_tokenizer(spoken, settings.vocab_size)
    renderer = Renderer(tokenizer)
    shown = view("demonstrations", [renderer.encode(example) for example in demonstrations])
    tokens = sum(len(encoded.prompt) + len(encoded.completions[0]) for encoded in shown.examples)
    epochs = min(settings.fit_epochs, settings.fit_tokens / tokens)
    batch_size = max(1, round(epochs * len(shown) / settings.fit_steps))
    steps = max(1, round(epochs * len(shown) / batch_size))
    model = new_model(settings, tokenizer)
    module = PreferenceModule(
        create("sft"),
        Policy(model),
        None,
        partial(torch.optim.AdamW, lr=settings.fit_lr, weight_decay=0.0),
        partial(cosine, warmup=0.05),
    )
    plan = Plan(len(shown), batch_size, steps, settings.seed)
    torch.set_flush_denormal(True)  # as in training: whichever command comes first makes the base for all
    trainer = quiet_trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        max_steps=steps,
        gradient_clip_val=1.0,
        callbacks=[Progress("fitting the base")],
        logger=False,
        limit_val_batches=0,
    )
    trainer.fit(module, StepLoader(Recorded(shown, plan), batch_size))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
