"""Peak memory of one DPO step's scoring under a vocabulary of 131,072: it grows with the chunk, not with the tokens.

    python benchmarks/memory.py

Each case runs in a process of its own: the log-probs of C completion tokens, forward and backward, through a head on
states of 256 numbers, with prefopt's routine at several chunk sizes and with whole logits. Reported is what the peak
grew by over the process before the step. The results go to benchmarks/results/memory.json.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.systems.launch import save, where

VOCABULARY, STATES = 131_072, 256
TOKENS = (512, 1024, 2048, 4096)
CHUNKS = (2**23, 2**24, 2**25)


def measure(tokens: int, chunk: int) -> None:
    """chunk 0: whole logits. Prints the peak's growth, bytes."""
    import torch

    from prefopt.scoring import logprobs

    head = torch.nn.Linear(STATES, VOCABULARY, bias=False)
    states = torch.randn(tokens, STATES, requires_grad=True)
    targets = torch.randint(0, VOCABULARY, (tokens,))
    head.weight.grad = torch.zeros_like(head.weight)  # an optimiser's process has it anyway
    (head(states[:2]).logsumexp(-1).sum() * 0).backward()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if chunk:
        logprobs.CHUNK = chunk
        found = logprobs.token_quantities(head, states, targets, VOCABULARY)["logps"]
    else:
        found = head(states).log_softmax(-1).gather(1, targets[:, None])
    found.sum().backward()
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--case", type=int, nargs=2)
    asked = parser.parse_args()
    if asked.case:
        measure(*asked.case)
        return
    found: dict[str, dict[int, int]] = {}
    for chunk in (*CHUNKS, 0):
        name = f"chunks of 2^{chunk.bit_length() - 1} logits" if chunk else "whole logits"
        found[name] = {}
        for tokens in TOKENS:
            command = [sys.executable, __file__, "--case", str(tokens), str(chunk)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[name][tokens] = int(json.loads(done.stdout))
        grown = "  ".join(f"{tokens} tokens {size / 2**20:6.0f} MiB" for tokens, size in found[name].items())
        print(f"{name:26} {grown}", flush=True)
    save("memory", {"grown_bytes": found} | where(os.cpu_count() or 1))


if __name__ == "__main__":
    main()
