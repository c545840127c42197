"""From a request to the parts of a run: data, base, policy, module, trainer."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import lightning as L
import torch
import transformers

from prefopt.callbacks.finite import Finite
from prefopt.callbacks.guards import Guards
from prefopt.callbacks.remember import RememberReference, Wanted
from prefopt.callbacks.steps import Steps
from prefopt.callbacks.storage import Storage
from prefopt.callbacks.sync import SyncReference
from prefopt.callbacks.tensorboard import TensorBoard
from prefopt.config import Request
from prefopt.data.audit import in_words, warnings
from prefopt.data.loader import ByLength, Plan, Recorded, Source, TokenPlan, micro_batches
from prefopt.data.module import PreferenceData, held_out_loaders
from prefopt.data.origins import Origin, Write
from prefopt.data.prepare import Dataset, Recipe, prepared
from prefopt.data.render import Renderer
from prefopt.data.views import view
from prefopt.errors import RequestError
from prefopt.jobs.fit import fitted_base
from prefopt.jobs.precision import device_type, local_device
from prefopt.jobs.rollouts import build_rollouts
from prefopt.jobs.strategy import lightning_strategy
from prefopt.jobs.trainer import quiet_trainer
from prefopt.models.base import Base
from prefopt.models.build import build_policy, build_references, load_base, with_settings
from prefopt.models.reference import Snapshot
from prefopt.module import PreferenceModule
from prefopt.progress import say
from prefopt.rollouts import Rollouts
from prefopt.run import RunFolder
from prefopt.schedules import steps_of
from prefopt.scoring import ReferenceStore, generate
from prefopt.scoring.store import VERSION
from prefopt.settings import DataSettings, Settings


@dataclass(frozen=True)
class Parts:
    """What a run is made of before anything moves."""

    dataset: Dataset
    base: Base
    renderer: Renderer
    source: Source

    @property
    def plan(self) -> Plan:
        return self.source.plan


def prepare_parts(request: Request) -> Parts:
    base, renderer, dataset = prepare_data(request)
    tell(dataset)
    needs = request.objective.needs
    for held_out in (dataset.val, dataset.test):  # what cannot be evaluated is refused before it is trained
        held_out_loaders(held_out, needs.data, needs.columns, 1)
    source = build_rollouts(request, base, renderer, dataset) if request.on_policy else recorded(request, dataset)
    return Parts(dataset, base, renderer, source)


def recorded(request: Request, dataset: Dataset) -> Recorded:
    """The rows as the objective reads them, in the order of the run."""
    needs, data, trainer = request.objective.needs, request.settings.data, request.settings.trainer
    shown = view(needs.data, dataset.train, needs.columns)
    run = (data.batch_size, trainer.max_steps, trainer.max_epochs, request.settings.seed)
    if data.batch_tokens is None:
        return Recorded(shown, Plan.of(len(shown), *run))
    lengths = [shown.examples[row].tokens for row in shown.rows]
    return Recorded(shown, TokenPlan.by_tokens(lengths, data.batch_tokens, *run))


def prepare_data(request: Request) -> tuple[Base, Renderer, Dataset]:
    """What a run starts from, how it reads text, and the rows as ids."""
    settings = request.settings
    base = with_settings(plain_base(settings, request.origin), settings.model)
    renderer = build_renderer(settings, base)
    # What ends the answers of the data ends those of every policy.
    base = replace(base, ends=renderer.end_ids, device=local_device(settings.trainer))
    return base, renderer, prepare_rows(settings.data, request.origin, renderer, Path(settings.cache_dir).expanduser())


def plain_base(settings: Settings, origin: Origin) -> Base:
    """The weights that a run starts from, as `model` names them or fitted to the data; no adapter, not in 4 bits."""
    model, dtype = settings.model, settings.weights_dtype
    if model.tiny is not None:
        return fitted_base(model.tiny, origin.demonstrations, Path(settings.cache_dir).expanduser(), dtype)
    return load_base(str(model.name), dtype, model.trust_remote_code)


def prepare_rows(data: DataSettings, origin: Origin, renderer: Renderer, cache: Path) -> Dataset:
    """The rows as ids."""

    def writer() -> tuple[str, Write]:
        author = fitted_base(data.writer, origin.demonstrations, cache)
        return Path(author.name).name, lambda *asked: write(author, *asked)

    found = origin.find(writer)
    recipe = Recipe(data.max_length, data.truncation, data.on_leak)
    dataset = replace(prepared(found.splits, found.fingerprint, renderer, recipe, cache), gold=found.gold)
    for note in found.notes:
        say(note)
    return dataset


def build_renderer(settings: Settings, base: Base) -> Renderer:
    if settings.data.prompts == "chat" and not base.tokenizer.chat_template:
        raise RequestError(f"data.prompts=chat: model.name={base.name} has no chat template; take data.prompts=text")
    chat = settings.takes_turns(base.tokenizer.chat_template)
    if chat:
        say("data.prompts: text prompts become turns of the model's chat template (data.prompts=text: as they stand)")
    return Renderer(base.tokenizer, base.end_ids(), chat=chat, templated=settings.data.templated)


def write(author: Base, prompts: list[str], max_new_tokens: int, seed: int) -> list[str]:
    """Sample one answer of the author to each prompt."""
    renderer, policy = Renderer(author.tokenizer), author.policy()
    ids = [torch.from_numpy(renderer.prompt(prompt)) for prompt in prompts]
    generator = torch.Generator().manual_seed(seed)
    answers = generate(policy, ids, max_new_tokens=max_new_tokens, generator=generator)
    return [renderer.text(answer.tolist()) for answer in answers]


def build_module(request: Request, base: Base, again: bool = False) -> PreferenceModule:
    """again: it has been said whom it is held against."""
    settings = request.settings
    needs = request.objective.needs
    model = settings.model
    policy = build_policy(
        base, model.adapter, needs.heads, settings.seed, model.critic, recompute=model.gradient_checkpointing
    )
    reference, start = build_references(settings.model, base, policy, needs.reference)
    if needs.reference and not again:
        say(f"reference: {reference.who}")
    if policy.speaks and reference is not start and not again:
        say(f"evaluation compares with {start.who}")
    return PreferenceModule(request.objective, policy, reference, request.optimizer, request.schedule, start)


def build_memory(request: Request, parts: Parts, module: PreferenceModule, clock: Steps) -> list[L.Callback]:
    """What fills the stores of the references: training rows of the one, held-out rows of whom the run starts from."""
    settings, needs = request.settings, request.objective.needs
    if not settings.model.reference_store or "lm" not in needs.heads:
        return []
    if request.strategy.name == "fsdp":  # one process would score for all, and the others not take part
        return []
    train = []
    if isinstance(parts.source, Recorded) and needs.reference:  # nobody knows yet what a policy will say
        train = [ByLength(parts.source.view, parts.plan.rows_seen())]
    splits = (parts.dataset.val, parts.dataset.test)
    loaders = [loader for split in splits for loader in held_out_loaders(split, needs.data, needs.columns, 1)]
    held_out = [ByLength(loader.view, range(len(loader.view))) for loader in loaders]
    asked = [(module.base, held_out, False), (module.reference, train, True)]
    for reference, _, _ in asked:
        if reference is not None and reference.identity is not None:
            reference.store = ReferenceStore(_store_folder(settings, reference.identity()))
    wanted = [Wanted(reference, rows, trains) for reference, rows, trains in asked if reference is not None]
    return [RememberReference(wanted, clock.counted)]


def _store_folder(settings: Settings, identity: str) -> Path:
    made_by = (VERSION, torch.__version__, transformers.__version__, device_type(settings.trainer))
    how = (settings.trainer.precision, torch.get_float32_matmul_precision())
    key = hashlib.sha256(f"{identity} {made_by} {how}".encode()).hexdigest()
    return Path(settings.cache_dir).expanduser() / "reference" / key[:32]


def build_sync(request: Request, module: PreferenceModule) -> list[L.Callback]:
    """What moves the reference, where one was asked for."""
    model = request.settings.model
    if model.sync_every is None or not isinstance(module.reference, Snapshot) or not request.objective.needs.reference:
        return []
    return [SyncReference(module.reference, model.sync_every, model.sync_mix)]


def build_guards(request: Request, parts: Parts, run: RunFolder) -> list[Guards]:
    """Who watches a policy that learns from its own answers."""
    if not isinstance(parts.source, Rollouts):
        return []
    return [Guards(parts.source, request.settings.guards, lambda alarms: run.save(health=alarms))]


def build_finite(request: Request, parts: Parts, path: Path, clock: Steps) -> Finite:
    """What looks for numbers that are none. A recorded row stands in a file, what a policy says in none."""
    source = parts.source

    def line(row: int) -> str:
        return source.view.examples[row].example.source if isinstance(source, Recorded) else ""

    return Finite(path, clock, request.settings.trainer.non_finite == "skip", parts.renderer.text, line)


def build_data(request: Request, parts: Parts) -> PreferenceData:
    settings = request.settings
    val = parts.dataset.val if settings.trainer.val_every else []
    needs = request.objective.needs
    own = (needs.data, needs.columns, settings.evaluation.batch_size)
    return PreferenceData(parts.source, settings.data.micro_batch_size, val, *own)


def build_trainer(request: Request, folder: Path, plan: Plan, callbacks: list[L.Callback]) -> L.Trainer:
    """One Lightning epoch is the whole run: the plan knows the data's epochs, so every interval is in steps."""
    settings = request.settings.trainer
    if request.objective.needs.whole_step and request.settings.data.micro_batch_size is not None:
        raise RequestError("data.micro_batch_size must be null: this loss takes the rows of a step at once")
    accumulate = micro_batches(plan.batch_size, request.settings.data.micro_batch_size, settings.devices)
    every = steps_of(settings.val_every, plan.steps) * accumulate if settings.val_every else None
    return quiet_trainer(
        accelerator=device_type(settings),  # of "auto" Lightning would make Apple's, which has no float64
        devices=settings.devices,
        strategy=lightning_strategy(request.strategy, settings.devices),
        precision=request.settings.lightning_precision,
        inference_mode=request.strategy.name != "fsdp",  # whose gathered weights training would find unusable
        max_epochs=1,
        max_steps=plan.steps,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=settings.clip,
        val_check_interval=min(every, plan.steps * accumulate) if every else None,
        callbacks=callbacks,
        plugins=[Storage()],
        logger=TensorBoard(folder),
        default_root_dir=folder,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )


def tell(dataset: Dataset) -> None:
    """What became of the rows, and what the audit warns of."""
    audit = dataset.audit
    dropped = in_words(audit["dropped"])
    sizes = f"{len(dataset.train)} train, {len(dataset.val)} val, {len(dataset.test)} test"
    say(f"examples: {sizes}" + (f"; dropped: {dropped}" if dropped else ""))
    for sentence in warnings(audit):
        say(f"warning: {sentence}")
