"""One run, start to end, and the record of how it ended."""

from __future__ import annotations

import sys
import time
import traceback
from pathlib import Path

import lightning as L
import torch

from prefopt.callbacks.belonging import Belonging
from prefopt.callbacks.checkpoints import Checkpoints
from prefopt.callbacks.finite import NonFinite
from prefopt.callbacks.progress import Progress
from prefopt.callbacks.selfcheck import SelfCheck
from prefopt.callbacks.steps import Steps
from prefopt.callbacks.stop import Stop, requeue
from prefopt.callbacks.validation import Validation, complete
from prefopt.config import Request
from prefopt.errors import FAILED, INTERRUPTED, OK, RequestError, plain, refuse
from prefopt.files import replacing_folder, write_lines
from prefopt.jobs.assemble import (
    Parts,
    build_data,
    build_finite,
    build_guards,
    build_memory,
    build_module,
    build_sync,
    build_trainer,
    prepare_parts,
)
from prefopt.jobs.gather import gathered
from prefopt.jobs.launched import part_at_exit, together
from prefopt.jobs.loading import quieten
from prefopt.jobs.measure import compared, compared_answers, evaluate_split, held_out_rows, sample_rows
from prefopt.jobs.others import others_hash
from prefopt.jobs.precision import device_type, settle
from prefopt.models.adapter import tell_no_home
from prefopt.models.base import weights_hash
from prefopt.models.policy import Policy
from prefopt.models.probe import probe_rows, record
from prefopt.models.reward import savable_as_classifier, save_classifier
from prefopt.module import PreferenceModule
from prefopt.progress import is_main_process, say
from prefopt.reports.terminal import print_summary
from prefopt.run import RunFolder, comparable_hash, config_hash, peak_memory_bytes
from prefopt.schedules import steps_of
from prefopt.scrub import scrubbed

PATIENCE = 10.0  # seconds in which a main process that refuses for the same reason ends, and its ranks with it


def train(request: Request) -> int:
    """Train what was requested in its run folder. Returns the exit code; the folder's summary says the same."""
    quieten()
    torch.set_flush_denormal(True)  # what a saturated softmax leaves slows a CPU's matrix products thirty times
    products = torch.get_float32_matmul_precision()
    settings, main = request.settings, is_main_process()
    try:
        with (
            together(main),
            Stop(main, settings.time_limit) as stop,
            RunFolder(settings.run_dir, request.plain, main) as run,
        ):
            if run.finished:
                say(f"{run.path} holds this run, finished: left alone")
                return OK
            code = _recorded(request, run, stop)
            if code == OK:
                part_at_exit()
            if code == OK and run.main_process:
                print_summary(run.path, run.summary)
            return code
    except RequestError as error:
        return refuse(str(error))
    finally:
        torch.set_float32_matmul_precision(products)  # this run's alone


def _recorded(request: Request, run: RunFolder, stop: Stop) -> int:
    """Run, and write into the summary how it ended, whatever happens."""
    try:
        if _run(request, run, stop):
            return OK
    except (KeyboardInterrupt, SystemExit):  # Lightning turns the one into the other
        pass
    except RequestError as error:
        if request.settings.debug:
            traceback.print_exc()
        if not run.main_process:
            time.sleep(PATIENCE)
            run.fail_beside(str(error))
        if not run.discard():
            run.save(status="failed", error=str(error))
        return refuse(str(error))
    except Exception as error:
        if request.settings.debug:
            traceback.print_exc()
        return _failed(run, error)
    if not run.main_process:
        return OK  # Lightning kills the main process, which is still writing, when another ends with anything else
    run.save(status="interrupted")
    goes_on = "continues it" if request.strategy.saves else "begins again"
    say(f"interrupted; the same command with run_dir={run.path} {goes_on}")
    if stop.requeue and request.strategy.saves:  # else it would be stopped at the same time for ever
        requeue()
    return INTERRUPTED


def _failed(run: RunFolder, error: Exception) -> int:
    """Written down where that can still be done: a full disk has no room for the reason either."""
    said, trace = f"{type(error).__name__}: {error}", run.path / "error.txt"
    told = error.file if isinstance(error, NonFinite) else None
    if not run.main_process and told:
        return OK  # every rank has stopped, and the main one is still writing: see `_recorded`
    if not run.main_process:  # it may know the reason, where the main process has lost its partner
        print(f"another rank failed: {plain(said.splitlines()[0])}", file=sys.stderr)
        run.fail_beside(said)
        return FAILED
    try:
        run.save(status="failed", error=said)
        trace.write_text(scrubbed(traceback.format_exc()), "utf-8")
        where = f"see {told or trace}"
    except OSError as unwritten:
        where = f"{run.path} cannot be written to: {unwritten.strerror or unwritten}"
    print(f"the run failed: {plain(said.splitlines()[0])}\n{where}", file=sys.stderr)
    return FAILED


def _run(request: Request, run: RunFolder, stop: Stop) -> bool:
    """False when it was interrupted and can go on."""
    settings, objective = request.settings, request.objective
    parts = prepare_parts(request)
    run.save(precision=settle(settings.trainer, run.summary["precision"]))
    for sentence in objective.warnings(parts.dataset.counts()):
        say(f"warning: {sentence}")
    module = build_module(request, parts.base)
    _identify(run, request, parts, module)
    resume = run.resume_from()
    clock = Steps(run.metrics, parts.source)
    every = settings.trainer.checkpoint_every
    saving = steps_of(every, parts.plan.steps) if every else None
    checkpoints = Checkpoints(run.checkpoint, saving, clock, run.resumed, stop)
    finite = build_finite(request, parts, run.path / "non_finite.jsonl", clock)
    first = SelfCheck(clock.paused, own_answers=parts.source.judge is not None)
    watching = [Progress(f"training {objective.name}"), first, clock, finite]
    guards = build_guards(request, parts, run)
    moving = [*build_memory(request, parts, module, clock), *build_sync(request, module)]
    callbacks = [*watching, *moving, *guards, checkpoints]
    callbacks.append(own := Belonging(config_hash(run.config)))
    if settings.trainer.val_every:
        callbacks.append(Validation(run.path / "validation.jsonl", parts.dataset.val))
    trainer = build_trainer(request, run.path, parts.plan, callbacks)
    if trainer.world_size != settings.trainer.devices:  # a launcher's variables, taken for this run's
        raise RequestError(f"trainer.devices={settings.trainer.devices}, but there are {trainer.world_size} processes")
    torch.manual_seed(settings.seed)
    try:
        with own.taken(resume):
            trainer.fit(module, datamodule=build_data(request, parts), ckpt_path=resume, weights_only=True)
    finally:
        if trainer.global_step:  # else a checkpoint's number has not been read yet
            run.summary["skipped_steps"] = finite.skipped
    stopped = any(guard.ends for guard in guards)
    for guard in guards:
        guard.go_back(module)
    if checkpoints.interrupted or (trainer.global_step < parts.plan.steps and not stopped):
        return False
    _finish(request, run, parts, module, trainer, clock, "stopped" if stopped else "finished")
    return True


def _identify(run: RunFolder, request: Request, parts: Parts, module: PreferenceModule) -> None:
    """What the run stands on; a resumed one must stand on the same."""
    dataset = parts.dataset
    found = {"base_hash": parts.base.hash(), "data_hash": dataset.data_hash, "tokens_hash": dataset.tokens_hash}
    others = others_hash(request) if run.main_process else {}
    known = {**run.summary, **(run.summary["others_hash"] or {})}
    for name, value in {**found, **others}.items():
        if known.get(name) not in (None, value):
            what = f"the weights of {name} were" if name in others else f"{name} was"
            raise RequestError(f"run_dir={run.path}: {what} {known[name][:12]} and is now {value[:12]}")
    trainable = module.policy.trainable()
    run.save(
        **found,
        others_hash=others or None,
        loss=request.objective.name,
        reward_is_log_odds=request.objective.reward_is_log_odds,
        comparable_hash=comparable_hash(run.config, found, parts.plan.steps),
        audit=dataset.audit,
        parameters=module.policy.size(),
        trainable=sum(p.numel() for p in trainable.values()),
        device=torch.cuda.get_device_name() if device_type(request.settings.trainer) == "cuda" else "cpu",
    )


def _finish(
    request: Request,
    run: RunFolder,
    parts: Parts,
    module: PreferenceModule,
    trainer: L.Trainer,
    clock: Steps,
    status: str,
) -> None:
    """Evaluate, save, summarise."""
    settings, dataset, steps = request.settings, parts.dataset, trainer.global_step
    examples = parts.plan.examples(steps)
    model_hash = weights_hash(module.policy.trainable().items())
    val = evaluate_split(trainer, module, dataset.val, settings.evaluation)
    test = evaluate_split(trainer, module, dataset.test, settings.evaluation)
    module = gathered(request, parts, module)
    if not trainer.is_global_zero:
        return
    if settings.trainer.val_every:
        complete(run.path / "validation.jsonl", trainer, val.measures)
    answers = None
    if "lm" in request.objective.needs.heads:
        told = (settings.evaluation, settings.seed, parts.source.judge)
        answers = compared_answers(trainer, module, dataset, parts.renderer, *told)
    module.cpu()  # where an export will read what is saved here, and compare
    write_lines(run.path / "val.jsonl", held_out_rows(val.table, dataset.val))
    write_lines(run.path / "test.jsonl", held_out_rows(test.table, dataset.test))
    if answers:
        write_lines(run.path / "samples.jsonl", sample_rows(answers))
    _save_model(run.path / "model", parts, module)
    run.save(
        status=status,
        steps=steps,
        examples=examples,
        tokens=clock.tokens,
        train_seconds=clock.seconds,
        pairs_per_second=examples / clock.seconds if clock.seconds else None,
        tokens_per_second=clock.tokens / clock.seconds if clock.seconds else None,
        peak_memory_bytes=clock.peak_memory or peak_memory_bytes(),
        model_hash=model_hash,
        row_order_hash=parts.source.order_hash(steps),
        rollouts=parts.source.made() or None,
        sampling_seconds=parts.source.sampling_seconds,
        val=val.measures,
        test=test.measures,
        **compared(test, dataset, answers),
    )


def _save_model(folder: Path, parts: Parts, module: PreferenceModule) -> None:
    """`model/`, loadable by from_pretrained: a reward model as a sequence classifier, anything else as it trained; an
    adapter names its base, further heads lie beside it. A probe says what an export of it must say too."""
    policy = module.policy
    with replacing_folder(folder) as temporary:
        if savable_as_classifier(policy):
            save_classifier(temporary, policy, parts.base)
        else:
            policy.model.save_pretrained(temporary)
            if policy.adapted:
                tell_no_home(temporary)
            parts.base.tokenizer.save_pretrained(temporary)
            _save_heads(temporary / "heads.safetensors", policy)
        record(policy, probe_rows(parts.dataset.val)).save(temporary)


def _save_heads(path: Path, policy: Policy) -> None:
    if policy.heads:
        from safetensors.torch import save_file

        save_file({k: v.contiguous() for k, v in policy.heads.state_dict().items()}, path)
