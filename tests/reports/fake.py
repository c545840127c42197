"""Run folders written by hand: what `compare` reads, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

TARGETS = {
    "dpo": "prefopt.objectives.dpo.DPO",
    "ipo": "prefopt.objectives.ipo.IPO",
    "bradley_terry": "prefopt.objectives.bradley_terry.BradleyTerry",
}
DEFAULTS = {
    TARGETS["dpo"]: {"_target_": TARGETS["dpo"], "beta": 0.1},
    TARGETS["ipo"]: {"_target_": TARGETS["ipo"], "beta": 0.1},
}


def write_run(
    folder: Path,
    loss: str = "dpo",
    beta: float = 0.1,
    seed: int = 0,
    gaps: list[float] | None = None,
    text: str = "fine",
    steps: int = 20,
    held_out: str = "val.jsonl",
    summary: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
) -> Path:
    """gaps: of every held-out pair the log-ratio of chosen less rejected; pairs alternate between slices a and b."""
    gaps = [1.0, -1.0, 2.0, 3.0] if gaps is None else gaps
    right = float(np.heaviside(gaps, 0.5).mean())
    measures = {"accuracy": right, "accuracy_logratio": right, "accuracy_logp": 0.5, "margin": float(np.mean(gaps))}
    measures |= {"loss": 0.6, "chosen_logp_delta": 1.0, "rejected_logp_delta": -2.0}
    sampled = {"length": 10.0, "distinct_2": 0.5, "repetition": 0.0, "gold_reward_stderr": 0.01}
    held_config = {
        "seed": seed,
        "loss": {"_target_": TARGETS[loss], "beta": beta},
        "data": {"batch_size": 16, "batch_tokens": None, "max_length": 64, "micro_batch_size": None},
        "evaluation": {"batch_size": 64, "prompts": 2, "temperature": 1.0},
        "optimizer": {"lr": 0.001},
        "model": {"name": "tiny", "adapter": None},
        "trainer": {"devices": 1},
        **(config or {}),
    }
    held_summary = {
        "status": "finished",
        "loss": loss,
        "seed": seed,
        "comparable_hash": "c",
        "data_hash": "d" * 64,
        "base_hash": "b" * 64,
        "tokens_hash": "t" * 64,
        "row_order_hash": f"order {seed}",
        "steps": steps,
        "config_hash": json.dumps(held_config),
        "tokens_per_second": 1000.0,
        "peak_memory_bytes": 2**20 * 300,
        "train_seconds": 12.0,
        "val": measures,
        "test": measures,
        "reward_is_log_odds": loss != "ipo",
        "samples": {**sampled, "kl": beta, "kl_stderr": 0.03, "gold_reward": right, "win_rate_vs_reference": 0.6},
        "samples_reference": {**sampled, "kl": 0.0, "kl_stderr": 0.0, "gold_reward": 0.0},
        **(summary or {}),
    }
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(held_config))
    (folder / "summary.json").write_text(json.dumps(held_summary))
    _lines(folder / held_out, [row for i, gap in enumerate(gaps) for row in _pair(i, gap)])
    _lines(folder / "samples.jsonl", [_sample(i, text, right) for i in range(2)])
    (folder / "metrics.csv").write_text(_metrics(steps))
    return folder


def _pair(i: int, gap: float) -> list[dict[str, Any]]:
    shared = {"slice": "ab"[i % 2], "length": 5}
    return [
        {"row": f"{i}.0", "chosen": True, "reward": gap, "logp": gap - 3, "ref_logp": -3.0, **shared},
        {"row": f"{i}.1", "chosen": False, "reward": 0.0, "logp": -3.0, "ref_logp": -3.0, **shared},
    ]


def _sample(i: int, text: str, worth: float) -> dict[str, Any]:
    answers = {"greedy": text, "sampled": [text, text], "gold": [worth + i, worth - i]}
    base = {"base_greedy": "so", "base_sampled": ["so", "so"], "base_gold": [0.0, 0.0]}
    return {"prompt": f"prompt {i}?", **answers, **base}


def _metrics(steps: int) -> str:
    lines = ["step,epoch,loss,accuracy,chosen_logp_delta,rejected_logp_delta,grad_norm"]
    lines += [f"{i},0,{0.7 / i:.4f},0.75,{i / 10},{-i / 5},1.0" for i in range(1, steps + 1)]
    return "\n".join(lines) + "\n"


def _lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
