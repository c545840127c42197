"""The table of held-out rows, and the measures every method is compared by."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import binary_auroc

from prefopt.data.examples import Encoded
from prefopt.metrics.rows import won
from prefopt.records import Scores

FIELDS = ("row", "place", "length", "reward", "logp", "ref_logp")


class HeldOutTable(Metric):
    """One float64 line per held-out completion, gathered over ranks: measures cannot depend on batches or shards."""

    full_state_update = False
    lines: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("lines", [], dist_reduce_fx="cat")

    def update(self, data: str, scores: Scores, reward: Tensor) -> None:
        if data == "labels":  # a mismatched row is no completion of its prompt
            scores, reward = scores.halves()[0], reward.chunk(2)[0]
        nothing = torch.full((len(scores),), float("nan"), dtype=torch.float64, device=reward.device)
        columns = {
            "row": scores.columns["row"],
            "place": scores.columns["place"],
            "length": scores.lengths,
            "reward": reward,
            "logp": nothing if scores.logps is None else scores.logp,
            "ref_logp": nothing if scores.ref_logps is None else scores.total(scores.ref_logps),
        }
        self.lines.append(torch.stack([columns[name].detach().double() for name in FIELDS], dim=1))

    def compute(self) -> dict[str, np.ndarray]:
        """Columns by name, sorted by row and place, each completion once."""
        lines = self.lines if isinstance(self.lines, Tensor) else torch.cat(self.lines)
        table = np.unique(lines.cpu().numpy(), axis=0)
        _, first = np.unique(table[:, :2], axis=0, return_index=True)
        return {name: table[first, i] for i, name in enumerate(FIELDS)}

    def set_dtype(self, dst_type: torch.dtype) -> HeldOutTable:
        return self


def measures(table: dict[str, np.ndarray], examples: Sequence[Encoded]) -> dict[str, float | None]:
    """The keys of summary.json's `val` but the loss, weighted by the examples' weights; None where none applies.

    accuracy: by the method's own reward; accuracy_logratio, accuracy_logp: by the same two measures for every policy.
    For pairs the share of pairs ordered rightly, a tie one half. For labels without pairs the area under the ROC curve:
    the same question about any desirable against any undesirable row. Deltas and lengths are means per completion.
    """
    shown = [(examples[int(r)].example, int(k)) for r, k in zip(table["row"], table["place"], strict=True)]
    good = np.array([example.good(place) for example, place in shown])
    weight = np.array([example.confidence for example, _ in shown])
    paired = bool(len(table["row"])) and examples[int(table["row"][0])].example.is_pair
    order = _pair_accuracy if paired else _area
    delta = table["logp"] - table["ref_logp"]
    found = {
        "accuracy": order(table["reward"], good, weight),
        "accuracy_logratio": order(delta, good, weight),
        "accuracy_logp": order(table["logp"], good, weight),
        "margin": _mean(table["reward"], good, weight) - _mean(table["reward"], ~good, weight),
        "chosen_logp_delta": _mean(delta, good, weight),
        "rejected_logp_delta": _mean(delta, ~good, weight),
        "chosen_length": _mean(table["length"], good, weight),
        "rejected_length": _mean(table["length"], ~good, weight),
    }
    return {name: float(value) if np.isfinite(value) else None for name, value in found.items()}


def slice_measures(
    table: dict[str, np.ndarray], examples: Sequence[Encoded]
) -> dict[str, dict[str, float | None]] | None:
    """`measures` of each slice by itself, and how many rows it has; None where no row names one."""
    named = np.array([examples[int(row)].example.slice or "" for row in table["row"]], dtype=object)
    found: dict[str, dict[str, float | None]] = {}
    for name in sorted(set(named) - {""}):
        part = {column: values[named == name] for column, values in table.items()}
        found[name] = {"rows": len(np.unique(part["row"])), **measures(part, examples)}
    return found or None


def _pair_accuracy(values: np.ndarray, good: np.ndarray, weight: np.ndarray) -> float:
    """Rows of a pair stand together in the table, the chosen one first. nan where no pair has any weight."""
    difference = values[good] - values[~good]
    known = np.isfinite(difference).all() and weight[good].sum() > 0
    return float(np.average(won(difference), weights=weight[good])) if known else float("nan")


def _area(values: np.ndarray, good: np.ndarray, weight: np.ndarray) -> float:
    """Ranks instead of values: the library would squash what is not in [0, 1]. Weights play no part here."""
    if not np.isfinite(values).all() or good.all() or not good.any():
        return float("nan")
    ranks = np.unique(values, return_inverse=True)[1] / len(values)
    return float(binary_auroc(torch.from_numpy(ranks), torch.from_numpy(good).long()))


def _mean(values: np.ndarray, rows: np.ndarray, weight: np.ndarray) -> float:
    return float(np.average(values[rows], weights=weight[rows])) if weight[rows].sum() else float("nan")


def gold_measures(table: dict[str, np.ndarray], examples: Sequence[Encoded]) -> dict[str, float]:
    """What only a known gold reward can tell about the accuracy on labelled pairs.

    ceiling: how often the labels themselves agree with the gold order, which the best possible policy would score on
    this draw. accuracy_true: how often the policy's reward agrees with it, pairs of equal gold left out.
    """
    rows = table["row"].astype(int).reshape(-1, 2)[:, 0]
    gold = np.array([examples[row].example.gold for row in rows])
    label_gap = gold[:, 0] - gold[:, -1]
    reward_gap = table["reward"][::2] - table["reward"][1::2]
    apart = label_gap != 0
    ceiling = float(np.mean(won(label_gap)))
    accuracy = float(np.mean(won(reward_gap)))
    agrees = np.sign(label_gap[apart]) * reward_gap[apart]
    return {
        "pairs": len(rows),
        "ceiling": ceiling,
        "accuracy_of_ceiling": accuracy / ceiling,
        "accuracy_true": float(np.mean(won(agrees))),
    }
