"""What runs with what: quantisation, adapter, strategy, reference and what is learnt from; answered before any weight
is loaded. The README's table is `table()`.
"""

from __future__ import annotations

import itertools
import string
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass

from prefopt.errors import RequestError
from prefopt.settings.models import REFERENCES, ModelSettings
from prefopt.settings.training import PRECISIONS, StrategySettings, TrainerSettings

SYNCED = "synced"  # a copy that follows the policy, model.sync_every
SNAPSHOTS = ("start", SYNCED)
HELD, FREE, REWARDS, LIVE = "losses with a reference", "losses without", "reward models", "own answers"
MODELS = {"whole": (False, False), "adapter": (False, True), "4-bit, adapter": (True, True), "4-bit": (True, False)}
STRATEGIES = {"single": 1, "ddp": 2, "fsdp": 2, "deepspeed, stage 2": 2, "deepspeed, stage 3": 2}
UNTRIED = ("deepspeed",)  # beyond what Lightning itself is trusted with


@dataclass(frozen=True)
class Case:
    """What a request combines.

    reference: `model.reference`, or SYNCED. keeps_start: whether the start of a run can only be kept as a copy of what
    trains: an adapter that goes on, or one with weights that stay on without it. family: what is learnt, from what.
    held: whether against a reference. cuda: whether it runs on a GPU of NVIDIA's kind.
    """

    quantised: bool = False
    adapted: bool = False
    strategy: str = "single"
    stage: int | None = None
    devices: int = 1
    reference: str = "auto"
    keeps_start: bool = False
    family: str = HELD
    held: bool = True
    precision: str = "32"
    cuda: bool = False


@dataclass(frozen=True)
class Rule:
    """why: one line that says what to use instead; {names} are fields of the case."""

    refuses: Callable[[Case], bool]
    why: str


RULES = (
    Rule(
        lambda c: c.strategy == "single" and c.devices > 1,
        "trainer.devices={devices} needs strategy=ddp; strategy=single is one device",
    ),
    Rule(
        lambda c: c.quantised and not c.adapted,
        "model.quant must be null without an adapter: 4-bit weights do not train; take model=tiny_4bit or hf_4bit",
    ),
    Rule(
        lambda c: c.reference in ("adapter_off", "start") and not c.adapted,
        "model.reference={reference} needs an adapter; model.adapter is null: take auto or copy",
    ),
    Rule(
        lambda c: c.reference == "none" and c.held,
        "model.reference=none, but this loss is held against a reference; take auto",
    ),
    Rule(
        lambda c: c.strategy == "deepspeed" and not c.cuda,
        "strategy=deepspeed runs on NVIDIA GPUs only; take strategy=fsdp or ddp",
    ),
    Rule(
        lambda c: c.strategy == "deepspeed" and c.stage == 3,
        "strategy.stage=3: hashes, checks and saving read whole weights, which no process has; take strategy=fsdp",
    ),
    Rule(
        lambda c: c.strategy in ("fsdp", "deepspeed") and c.quantised,
        "strategy={strategy} shards floating-point weights only, and 4-bit ones are integers; take strategy=ddp",
    ),
    Rule(
        lambda c: c.strategy in ("fsdp", "deepspeed") and c.family == LIVE,
        "strategy={strategy} trains on recorded rows only; on own answers take strategy=ddp",
    ),
    Rule(
        lambda c: c.strategy in ("fsdp", "deepspeed") and c.reference in SNAPSHOTS,
        "strategy={strategy}: a reference that is a copy of what trains (model.reference=start, model.sync_every) "
        "would have to be sharded with it; take model.reference=copy, or strategy=ddp",
    ),
    Rule(
        lambda c: c.strategy in ("fsdp", "deepspeed") and c.keeps_start,
        "strategy={strategy}: evaluation compares with the start, which an adapter that goes on "
        "(model.adapter.start, or model.name) or trains biases (model.adapter.bias) keeps as a copy of itself; take "
        "strategy=ddp",
    ),
    Rule(
        lambda c: c.strategy == "fsdp" and c.precision == "16-mixed",
        "trainer.precision=16-mixed: sharded gradients are not scaled; take bf16-mixed, or strategy=ddp",
    ),
    Rule(
        lambda c: c.strategy == "deepspeed" and c.precision not in ("32", "32-true"),
        "trainer.precision={precision}: DeepSpeed casts the policy, not its reference; take 32, or strategy=ddp",
    ),
    Rule(
        lambda c: c.precision == "auto" and c.devices > 1,
        "trainer.precision=auto with several devices: it is measured, and they might disagree; take a name, e.g. 32",
    ),
    Rule(
        lambda c: c.quantised and c.precision in ("64", "64-true"),
        "trainer.precision={precision}: bitsandbytes has no float64; take 32, or a model without model.quant",
    ),
)


def refusal(case: Case) -> str | None:
    """Why it does not run, in one line; None where it does."""
    return next((rule.why.format(**asdict(case)) for rule in RULES if rule.refuses(case)), None)


def check_support(case: Case) -> None:
    if why := refusal(case):
        raise RequestError(why)


def case_of(
    model: ModelSettings, strategy: StrategySettings, trainer: TrainerSettings, family: str, held: bool, cuda: bool
) -> Case:
    """The case of a request. family: as `family_of` says it; the others as in `Case`."""
    adapter = model.adapter
    return Case(
        quantised=model.quant is not None,
        adapted=adapter is not None,
        strategy=strategy.name,
        stage=strategy.stage,
        devices=trainer.devices,
        reference=SYNCED if model.sync_every is not None and held else model.reference,
        keeps_start=adapter is not None and (adapter.start is not None or adapter.bias != "none"),
        family=family,
        held=held,
        precision=str(trainer.precision),
        cuda=cuda,
    )


def family_of(heads: frozenset[str], held: bool, live: bool) -> str:
    """Of an objective: the heads that it needs, whether it is held against a reference, and whether its rows are own
    answers."""
    if live:
        return LIVE
    if "lm" not in heads:
        return REWARDS
    return HELD if held else FREE


# ---------------------------------------------------------------------------------------------- the table


def cases(model: str, strategy: str, cuda: bool) -> Iterator[Case]:
    """All of a cell of the table: the references of every family, and every precision."""
    quantised, adapted = MODELS[model]
    name, _, stage = strategy.partition(", stage ")
    fixed = Case(quantised, adapted, name, int(stage) if stage else None, STRATEGIES[strategy], cuda=cuda)
    for family, reference in itertools.product((HELD, FREE, REWARDS, LIVE), (*REFERENCES, SYNCED)):
        if reference != SYNCED or family in (HELD, LIVE):
            yield _with(fixed, family=family, held=family in (HELD, LIVE), reference=reference)
    for precision in PRECISIONS:
        yield _with(fixed, precision=precision)
    if adapted:
        yield _with(fixed, keeps_start=True)


def _with(case: Case, **changed: object) -> Case:
    return Case(**{**asdict(case), **changed})


def table() -> str:
    """A row for each model, a column for each strategy, and what its cells leave out, rule by rule."""
    cells = {key: _cell(*key) for key in itertools.product(MODELS, STRATEGIES)}
    named = [rule for rule in RULES if any(rule in noted for _, noted in cells.values())]
    lines = [["", *STRATEGIES], ["---"] * (len(STRATEGIES) + 1)]
    for model in MODELS:
        row = [model]
        for strategy in STRATEGIES:
            says, noted = cells[model, strategy]
            row.append(" ".join([says, *(f"[{named.index(rule) + 1}]" for rule in named if rule in noted)]))
        lines.append(row)
    notes = [f"{i}. {_in_general(rule)}." for i, rule in enumerate(named, 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n\n" + "\n".join(notes)


def _cell(model: str, strategy: str) -> tuple[str, set[Rule]]:
    """What it says, and which rules leave some of it out; on a GPU only where that is where it runs."""
    cuda = all(refusal(case) for case in cases(model, strategy, cuda=False))
    asked = list(cases(model, strategy, cuda))
    stops = [_first(case) for case in asked]
    if all(stops):
        common = [rule for rule in RULES if all(rule.refuses(case) for case in asked)]
        return "–", set(common[:1]) or {rule for rule in stops if rule}
    noted = {rule for rule in stops if rule} | ({_first(Case(strategy="deepspeed"))} if cuda else set())
    untried = strategy.startswith(UNTRIED)
    return ("GPU, untested" if untried else "runs"), {rule for rule in noted if rule}


def _first(case: Case) -> Rule | None:
    return next((rule for rule in RULES if rule.refuses(case)), None)


def _in_general(rule: Rule) -> str:
    """Its line, with every value that the table's cases have for a name in it."""
    found: list[Case] = [
        case
        for model, strategy, cuda in itertools.product(MODELS, STRATEGIES, (False, True))
        for case in cases(model, strategy, cuda)
        if _first(case) == rule
    ]
    names = [name for _, name, _, _ in string.Formatter().parse(rule.why) if name]
    return rule.why.format(**{name: _either(getattr(case, name) for case in found) for name in names})


def _either(values: Iterable[object]) -> str:
    return "|".join(dict.fromkeys(map(str, values)))
