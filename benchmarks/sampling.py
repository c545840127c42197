"""prefopt's sampling against the library's generate(): seconds for the same prompts, side by side.

    python benchmarks/sampling.py [--rounds 3]

fixed: 16 prompts of 40 to 200 tokens, 64 new tokens each, on a 15M-parameter Llama with random weights. answers: four
sampled answers to each of 32 prompts of the controlled world by its fitted base, ended by the model, 64 tokens at most.
Ratios are taken within a round. The results go to benchmarks/results/sampling.json.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.systems.launch import save, spread, where
from prefopt.config import compose_request
from prefopt.jobs.assemble import prepare_data
from prefopt.jobs.loading import quieten
from prefopt.models.policy import Policy
from prefopt.scoring import generate

NEW = 64


def fixed() -> tuple[Policy, list[torch.Tensor]]:
    torch.manual_seed(0)
    shape = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 6}
    ends = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    model = LlamaForCausalLM(LlamaConfig(**shape, **ends, vocab_size=8192, tie_word_embeddings=True)).eval()
    prompts = [torch.randint(3, 8192, (int(length),)) for length in torch.randint(40, 200, (16,))]
    return Policy(model), prompts


def answers(cache: Path) -> tuple[Policy, list[torch.Tensor]]:
    base, _, dataset = prepare_data(compose_request([f"cache_dir={cache}", "data.world.pairs=320"]))
    first = {encoded.example.question: encoded.prompt for encoded in dataset.test}
    prompts = [torch.from_numpy(prompt) for prompt in list(first.values())[:32] for _ in range(4)]
    return base.policy(), prompts


def library(policy: Policy, prompts: list[torch.Tensor]) -> None:
    """Left-padded, the cache that generate() takes by itself."""
    width = max(len(prompt) for prompt in prompts)
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, prompt in enumerate(prompts):
        ids[i, width - len(prompt) :] = prompt
        mask[i, width - len(prompt) :] = 1
    ended = {"eos_token_id": list(policy.end_ids)} if policy.end_ids else {"min_new_tokens": NEW}
    with torch.no_grad():
        policy.causal.generate(
            ids, attention_mask=mask, do_sample=True, top_k=0, max_new_tokens=NEW, pad_token_id=0, **ended
        )


def timed(policy: Policy, prompts: list[torch.Tensor]) -> tuple[float, float]:
    """Seconds of the library and of prefopt, one after the other."""
    began = time.perf_counter()
    library(policy, prompts)
    between = time.perf_counter()
    generate(policy, prompts, max_new_tokens=NEW)
    return between - began, time.perf_counter() - between


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    quieten()
    found = {}
    with tempfile.TemporaryDirectory() as place:
        for name, (policy, prompts) in {"fixed": fixed(), "answers": answers(Path(place))}.items():
            timed(policy, prompts)  # warms up
            other, own = zip(*(timed(policy, prompts) for _ in range(asked.rounds)), strict=True)
            ratio = spread([a / b for a, b in zip(other, own, strict=True)])
            found[name] = {"generate() seconds": spread(other), "prefopt seconds": spread(own), "ratio": ratio}
            print(f"{name:8} generate() / prefopt {ratio['median']:.2f} ({ratio['least']:.2f} to {ratio['most']:.2f})")
    save("sampling", found | where(torch.get_num_threads()))


if __name__ == "__main__":
    main()
