"""What the commands that train nothing may be asked. conf/<command>.yaml explains the keys.

No defaults here: they stand in conf/, once.
"""

from __future__ import annotations

from dataclasses import dataclass

from prefopt.settings.checks import DTYPES, one_of, require, require_seed
from prefopt.settings.data import DataSettings

FORMS = ("adapter", "merged", "full")
DEVICES = ("auto", "cpu", "cuda")


@dataclass(kw_only=True)
class Trusted:
    trust_remote_code: bool


@dataclass(kw_only=True)
class ExportSettings:
    run: str | None
    out: str | None
    form: str | None
    dtype: str | None
    base: str | None
    model: Trusted
    debug: bool

    def __post_init__(self) -> None:
        require(bool(self.run), "run", "the folder of a finished run, e.g. run=runs/mine", self.run)
        require(bool(self.out), "out", "a new folder, e.g. out=exported", self.out)
        if self.form is not None:
            one_of(self.form, "form", FORMS)
        if self.dtype is not None:
            one_of(self.dtype, "dtype", DTYPES)
        whole = self.form != "adapter" or self.dtype is None
        require(whole, "dtype", "left out with form=adapter, which is kept as it trained", self.dtype)


@dataclass(kw_only=True)
class NamedModel(Trusted):
    name: str | None
    dtype: str | None

    def __post_init__(self) -> None:
        if self.dtype is not None:
            one_of(self.dtype, "model.dtype", DTYPES)


def check_named(run: str | None, model: NamedModel, base: str | None) -> None:
    """A run or a model, not both."""
    wanted = "given, and only one: a run's folder, or a hub name or folder"
    given = f"run={run} model.name={model.name}"
    require(bool(run) != bool(model.name), "run or model.name", wanted, given)
    require(base is None or bool(run), "base", "left out with model.name", base)


@dataclass(kw_only=True)
class NamedReward:
    name: str | None


@dataclass(kw_only=True)
class SampleSettings:
    run: str | None
    model: NamedModel
    base: str | None
    device: str
    chat: bool | None
    prompts: str | None
    out: str | None
    n: int
    temperature: float
    top_p: float
    max_new_tokens: int
    best_of: int | None
    reward: NamedReward
    batch_size: int
    seed: int
    debug: bool

    def __post_init__(self) -> None:
        check_named(self.run, self.model, self.base)
        one_of(self.device, "device", DEVICES)
        require_seed("seed", self.seed)
        both = bool(self.prompts) == bool(self.out)
        require(both, "prompts and out", "given together (a file is answered) or not at all (a chat)", self._files())
        for name in ("n", "max_new_tokens", "batch_size"):
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        require(self.temperature >= 0, "temperature", "at least 0 (always the likeliest token)", self.temperature)
        require(0 < self.top_p <= 1, "top_p", "in (0, 1]", self.top_p)
        require(self.n == 1 or bool(self.prompts), "n", "1 in a chat; more answers go with prompts=FILE", self.n)
        self._check_choice()

    def _check_choice(self) -> None:
        many = self.best_of
        require(many is None or many >= 2, "best_of", "at least 2, or null to keep every answer", many)
        judge = self.reward.name
        known = "given with reward.name, a reward model's run, hub name or folder"
        require(many is None or bool(judge), "best_of", known, many)
        used = not judge or many is not None or bool(self.prompts)
        require(used, "reward.name", "given with best_of or prompts=FILE", judge)
        varied = self.temperature > 0 or (self.n == 1 and many is None)
        require(varied, "temperature", "above 0 where a prompt is answered more than once", self.temperature)

    def _files(self) -> str:
        return f"prompts={self.prompts} out={self.out}"


@dataclass(kw_only=True)
class AskedEvaluation:
    """What is not None takes the place of what a run was asked."""

    batch_size: int | None
    prompts: int | None
    samples_per_prompt: int | None
    max_new_tokens: int | None
    temperature: float | None

    def __post_init__(self) -> None:
        none = self.prompts is None or self.prompts >= 0
        require(none, "evaluation.prompts", "at least 0 (nothing is sampled)", self.prompts)


@dataclass(kw_only=True)
class EvaluateSettings:
    run: str | None
    model: NamedModel
    base: str | None
    reference: str | None
    data: DataSettings | None
    evaluation: AskedEvaluation
    out: str | None
    device: str
    seed: int | None
    cache_dir: str
    debug: bool

    def __post_init__(self) -> None:
        check_named(self.run, self.model, self.base)
        one_of(self.device, "device", DEVICES)
        require_seed("seed", self.seed)
        data = self.data
        given = data is not None or bool(self.run)
        require(given, "data", "given with model.name, e.g. data=jsonl data.test=pairs.jsonl", data)
        for name in ("train", "val"):
            path = getattr(data, name, None)
            require(path is None, f"data.{name}", "left out: data.test is what is evaluated", path)
