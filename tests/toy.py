"""Small things the tests share: a Llama of a few hundred weights, and examples made of ids."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.models.llama import modeling_llama
from transformers.models.qwen3 import modeling_qwen3

from prefopt.data.examples import Encoded, Example
from prefopt.data.loader import Plan, Recorded, Source, micro_batches
from prefopt.data.module import PreferenceData
from prefopt.data.views import view
from prefopt.models.policy import Policy
from prefopt.models.reference import FrozenCopy
from prefopt.module import PreferenceModule
from prefopt.objectives import Objective
from prefopt.records import Batch
from prefopt.rewards import Judged
from prefopt.rewards.base import Stateless
from prefopt.rollouts import RolloutPlan, Rollouts
from prefopt.rollouts.source import Speaking
from prefopt.schedules import constant

VOCAB = 23


def toy_model(
    seed: int = 0, dtype: torch.dtype = torch.float64, tied: bool = True, spread: float = 0.3, **options
) -> LlamaForCausalLM:
    """Weights large enough that nothing in a test is near zero by chance."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=options.pop("intermediate_size", 32),
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        initializer_range=spread,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **options,
    )
    return LlamaForCausalLM(config).to(dtype)


def toy_gpt2() -> GPT2LMHeadModel:
    """Positions are learned, so a wrong position id shows."""
    torch.manual_seed(0)
    shape = {"vocab_size": VOCAB, "n_positions": 256, "n_embd": 16, "n_layer": 2, "n_head": 2}
    still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 1, "eos_token_id": 2}
    return GPT2LMHeadModel(GPT2Config(**shape, **still, initializer_range=0.3)).double().eval()


RMSNORMS = {norm: norm.forward for norm in (modeling_llama.LlamaRMSNorm, modeling_qwen3.Qwen3RMSNorm)}


@contextmanager
def exact_rmsnorm() -> Iterator[None]:
    """transformers' RMSNorm rounds float64 to float32; exact comparisons need it in float64. Other types stay. Tests
    ask for the fixture of this name; what also runs in processes of its own is decorated."""
    with pytest.MonkeyPatch.context() as patch:
        for norm, library in RMSNORMS.items():

            def forward(self, hidden, library=library):
                if hidden.dtype != torch.float64:
                    return library(self, hidden)
                variance = hidden.pow(2).mean(-1, keepdim=True)
                return self.weight * (hidden * torch.rsqrt(variance + self.variance_epsilon))

            patch.setattr(norm, "forward", forward)
        yield


def textbook(model: torch.nn.Module, rows: Batch) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Log-probs of each completion's tokens, and of each prompt's but its first: row by row, unpadded, through the
    model's own attention and whole logits."""
    prompts, found, asked = rows.prompts(), [], []
    for g, completion in zip(rows.group.tolist(), rows.completions(), strict=True):
        ids = torch.cat((prompts[g], completion))
        logs = model(input_ids=ids[None]).logits[0].log_softmax(-1)
        own = logs[:-1].gather(1, ids[1:, None])[:, 0]
        found.append(own[-len(completion) :])
        asked.append(own[: len(prompts[g]) - 1])
    return found, asked


def toy_examples(n: int, seed: int = 0, weights: bool = True) -> list[Encoded]:
    """Pairs of random ids of random lengths, each under a prompt of its own."""
    rng = np.random.default_rng(seed)

    def ids(low: int, high: int, end: bool) -> np.ndarray:
        drawn = rng.integers(3, VOCAB, size=rng.integers(low, high))
        return np.append(drawn, 2) if end else np.insert(drawn, 0, 1)

    found = []
    for i in range(n):
        weight = float(rng.choice([0.5, 1.0, 2.0])) if weights else 1.0
        example = Example(prompt=f"prompt {i}", completions=("good", "bad"), scores=(1.0, 0.0), weight=weight)
        found.append(Encoded(example, ids(1, 6, False), (ids(1, 7, True), ids(1, 7, True))))
    return found


def toy_module(objective: Objective, dtype: torch.dtype = torch.float64, lr: float = 1.0) -> PreferenceModule:
    """A policy under plain SGD. Its reference is surer of itself, so that KTO's z, their mean log-ratio, is above 0."""
    torch.manual_seed(7)
    model = toy_model(0, dtype)
    policy = Policy(model, objective.needs.heads, end_ids=(2,)).to(dtype)
    reference = FrozenCopy(lambda: Policy(toy_model(1, dtype, spread=0.9)))
    return PreferenceModule(objective, policy, reference, partial(torch.optim.SGD, lr=lr), constant)


def toy_sampler(policy: Policy, prompts: list[torch.Tensor], generator: torch.Generator) -> list[torch.Tensor]:
    """Answers that depend on the prompt and on which of three it is, and on nothing else; every fifth is cut."""
    found = []
    for i, prompt in enumerate(prompts):
        rng = np.random.default_rng([*prompt.tolist(), i % 3])
        ids = rng.integers(3, VOCAB, size=rng.integers(1, 7)).tolist()
        found.append(torch.tensor(ids if rng.random() < 0.2 else [*ids, 2]))
    return found


class ToyJudge(Stateless):
    """Likes large ids."""

    def __call__(self, answers) -> Judged:
        return Judged(np.array([float(answer.ids.double().mean()) / 10 for answer in answers]), {})


def toy_rollouts(
    objective: Objective, rows: int, batch_size: int, steps: int, micro_batch_size: int | None = None, **changes
) -> Rollouts:
    """Three answers to every prompt; two passes over collections of nearly all rows."""
    plan = RolloutPlan(rows, batch_size, steps, 3, prompts=rows - 2, passes=2)
    speaking = Speaking(3, "best_worst", toy_sampler, ToyJudge(), lambda ids: " ".join(map(str, ids)))
    return Rollouts(toy_examples(rows), plan, replace(speaking, **changes), micro_batch_size)


@exact_rmsnorm()
def train_toy(
    objective: Objective,
    rows: int = 22,
    batch_size: int = 16,
    micro_batch_size: int = 16,
    steps: int = 2,
    lr: float = 0.1,
    world: int = 1,
    callbacks: tuple[L.Callback, ...] = (),
    source: Source | None = None,
    strategy: Any = "auto",
) -> PreferenceModule:
    """Some SGD steps in float64 through the Trainer, the last step partial unless batch_size divides rows."""
    module = toy_module(objective, lr=lr)
    if source is None:
        shown = view(objective.needs.data, toy_examples(rows))
        source = Recorded(shown, Plan(rows, batch_size, steps, seed=3))
    data = PreferenceData(source, micro_batch_size)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=world,
        strategy="ddp" if world > 1 and strategy == "auto" else strategy,
        max_epochs=1,
        max_steps=source.plan.steps,
        accumulate_grad_batches=micro_batches(batch_size, micro_batch_size, world),
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(module, datamodule=data)
    return module


class Watch(L.Callback):
    """Remembers the statistics and the logged loss of every optimiser step."""

    def __init__(self) -> None:
        self.statistics: list[dict[str, float]] = []
        self.losses: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self.statistics.append({name: float(value) for name, value in module.statistics.items()})
            self.losses.append(module.step_sums.compute())
            module.step_sums.reset()
