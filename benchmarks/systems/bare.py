"""What no loop can beat, and what a first attempt does: `python bare.py FOLDER floor|dpo|orpo STEPS THREADS REPORT`.

floor: the model's matrix products alone, forward and backward, on the tokens that are left when prompts are shared, and
the head on completion tokens: nothing but `linear`. dpo, orpo: the textbook's loop, padded, with whole logits.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

Pair = tuple[list[int], list[int], list[int]]  # ids of prompt, chosen and rejected


def batches(folder: Path, steps: int) -> list[list[Pair]]:
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    order = json.loads((folder / "order.json").read_text())
    lines = (folder / "pairs.jsonl").read_text("utf-8").splitlines()

    def ids(text: str, end: bool = False) -> list[int]:
        return tokenizer(text)["input_ids"] + ([tokenizer.eos_token_id] if end else [])

    rows = [json.loads(lines[i]) for i in order[: steps * 8]]
    pairs = [(ids(r["prompt"]), ids(r["chosen"], True), ids(r["rejected"], True)) for r in rows]
    return [pairs[i : i + 8] for i in range(0, len(pairs), 8)]


def floor(model: Any, batch: list[Pair]) -> float:
    """Seconds of the products, each forward and twice backward; the inputs are made outside the clock."""
    tokens = sum(len(p) + len(c) + len(r) for p, c, r in batch)
    spoken = sum(len(c) + len(r) for _, c, r in batch)
    layers = [m.weight for m in model.model.layers.modules() if isinstance(m, nn.Linear)]
    work = [(weight, tokens) for weight in layers] + [(model.lm_head.weight, spoken)]
    inputs = {
        (weight.shape, n): (torch.randn(n, weight.shape[1]), torch.randn(n, weight.shape[0])) for weight, n in work
    }
    began = time.perf_counter()
    with torch.no_grad():
        for weight, n in work:
            into, back = inputs[weight.shape, n]
            into @ weight.t()
            back @ weight
            back.t() @ into
    return time.perf_counter() - began


def dpo(model: Any, reference: Any, batch: list[Pair]) -> torch.Tensor:
    logps, _ = row_logps(model, batch)
    with torch.no_grad():
        before, _ = row_logps(reference, batch)
    chosen, rejected = (logps - before).chunk(2)
    return -nn.functional.logsigmoid(0.1 * (chosen - rejected)).mean()


def orpo(model: Any, reference: Any, batch: list[Pair]) -> torch.Tensor:
    logps, lengths = row_logps(model, batch)
    mean = logps / lengths
    odds = mean - torch.log1p(-mean.exp().clamp(max=1 - 1e-7))
    chosen, rejected = odds.chunk(2)
    return -mean[: len(batch)].mean() - 0.1 * nn.functional.logsigmoid(chosen - rejected).mean()


def row_logps(model: Any, batch: list[Pair]) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed log-probs and lengths of all chosen completions, then of all rejected ones: padded, whole logits."""
    rows = [(p, c) for p, c, _ in batch] + [(p, r) for p, _, r in batch]
    longest = max(len(p) + len(c) for p, c in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    seen, spoken = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    for i, (p, c) in enumerate(rows):
        ids[i, : len(p) + len(c)] = torch.tensor(p + c)
        seen[i, : len(p) + len(c)] = 1
        spoken[i, len(p) : len(p) + len(c)] = True
    logits = model(input_ids=ids, attention_mask=seen, use_cache=False).logits[:, :-1]
    logps = logits.log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0].where(spoken[:, 1:], 0.0)
    return logps.sum(1), spoken.sum(1)


def trained(model: Any, reference: Any, loss: Any, batch: list[Pair], optimizer: torch.optim.Optimizer) -> float:
    began = time.perf_counter()
    loss(model, reference, batch).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return time.perf_counter() - began


def main(folder: Path, system: str, steps: int, threads: int, report: Path) -> None:
    torch.set_num_threads(threads)

    def load() -> Any:
        return AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)

    model, reference = load().train(), load().eval() if system == "dpo" else None
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.0)
    loss = {"dpo": dpo, "orpo": orpo}.get(system)
    seconds = [
        trained(model, reference, loss, batch, optimizer) if loss else floor(model, batch)
        for batch in batches(folder, steps)
    ]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    report.write_text(json.dumps({"seconds": seconds, "loss": [], "peak": peak}))


if __name__ == "__main__":
    place, name, count, cores, where = sys.argv[1:]
    main(Path(place), name, int(count), int(cores), Path(where))
