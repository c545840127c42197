"""The pairs that benchmarks/gpu.py gives to all systems: lengths like HH-RLHF's, or of a wanted ratio; random ids."""

from __future__ import annotations

import gzip
import json
import math
import os
import random
from pathlib import Path

from benchmarks.systems import inputs
from benchmarks.systems.gpu_common import ENDS, Pair, Step

Lengths = tuple[int, int, int]  # tokens of prompt, chosen and rejected, the end of turn included

# HH-RLHF's harmless-base pairs under a vocabulary of 8,192: means, and the spread by which a lognormal has the prompts'
# median of 97 too.
HH_MEANS = (126.0, 42.0, 53.0)
HH_SPREAD = math.sqrt(2 * math.log(126 / 97))
HH_LONGEST = 512
RATIOS = {"1:4": 0.25, "1:1": 1.0, "4:1": 4.0, "8:1": 8.0}  # prompt to one completion


def hh_lengths(count: int, seed: int) -> tuple[list[Lengths], str]:
    """So many pairs' lengths, and where they are from: the real ones where PREFOPT_TEST_DATA leads to them."""
    folder = os.environ.get("PREFOPT_TEST_DATA")
    if folder:
        found = real_lengths(Path(folder, "hh-harmless", "train.jsonl.gz"), seed)
        told = f"HH-RLHF harmless-base, {len(found)} pairs of rows to {HH_LONGEST} tokens, BPE of 8,192"
        return [found[i % len(found)] for i in range(count)], told
    told = f"lognormal, means {HH_MEANS}, spread {HH_SPREAD:.2f} of the logarithm, rows to {HH_LONGEST} tokens"
    return drawn_lengths(count, HH_MEANS, HH_LONGEST, seed), told


def real_lengths(source: Path, seed: int) -> list[Lengths]:
    """Of all pairs whose rows fit, in a random order."""
    with gzip.open(source, "rt", encoding="utf-8") as lines:
        rows = [row for row in (inputs._pair(json.loads(line)) for line in lines) if row is not None]
    tokenizer = inputs._tokenizer([row["prompt"] + row["chosen"] + "\n" + row["rejected"] for row in rows])

    def tokens(side: str) -> list[int]:
        return [len(ids) for ids in tokenizer([row[side] for row in rows])["input_ids"]]

    found = [(p, c + 1, r + 1) for p, c, r in zip(*map(tokens, ("prompt", "chosen", "rejected")), strict=True)]
    found = [one for one in found if longest(one) <= HH_LONGEST and one[0]]
    random.Random(seed).shuffle(found)
    return found


def drawn_lengths(count: int, means: tuple[float, float, float], limit: int, seed: int) -> list[Lengths]:
    """Lognormal, one draw for the prompt and one for each completion; rows that are longer than the limit are drawn
    again, so the means come out a little lower."""
    draw = random.Random(seed)
    found: list[Lengths] = []
    while len(found) < count:
        prompt, chosen, rejected = (
            max(2, round(draw.lognormvariate(math.log(mean) - HH_SPREAD**2 / 2, HH_SPREAD))) for mean in means
        )
        if longest((prompt, chosen, rejected)) <= limit:
            found.append((prompt, chosen, rejected))
    return found


def ratio_means(ratio: float, row: int) -> tuple[float, float, float]:
    """Mean lengths of prompt, chosen and rejected, where a prompt and one completion have `row` tokens together."""
    completion = row / (1 + ratio)
    return row - completion, completion, completion


def longest(lengths: Lengths) -> int:
    prompt, *completions = lengths
    return prompt + max(completions)


def steps_of(lengths: list[Lengths], pairs: int, vocabulary: int, seed: int) -> list[Step]:
    """Steps of `pairs` pairs of similar length, in a random order: what TRL needs to pad little; who does not pad
    loses nothing by it. Ids are random, and completions end as a tokenizer would end them."""
    draw = random.Random(seed)

    def ids(count: int) -> list[int]:
        return [draw.randrange(len(ENDS), vocabulary) for _ in range(count)]

    def pair(one: Lengths) -> Pair:
        prompt, chosen, rejected = one
        ends = [ENDS["eos_token_id"]]
        return ids(prompt), ids(chosen - 1) + ends, ids(rejected - 1) + ends

    ordered = [pair(one) for one in sorted(lengths, key=longest)]
    found = [ordered[i : i + pairs] for i in range(0, len(ordered), pairs)]
    draw.shuffle(found)
    return found


def told(steps: list[Step]) -> dict[str, float]:
    """What a list of steps holds: pairs, mean lengths, and tokens of a mean step however they are laid out.

    shared: every prompt once. unshared: once for each completion. padded: every row as long as the step's longest.
    """
    pairs = [pair for step in steps for pair in step]
    widest = [max(longest(lengths_of(pair)) for pair in step) for step in steps]
    prompt, chosen, rejected = (sum(len(pair[side]) for pair in pairs) for side in range(3))
    count = len(steps)
    return {
        "pairs": len(pairs),
        "prompt": prompt / len(pairs),
        "chosen": chosen / len(pairs),
        "rejected": rejected / len(pairs),
        "shared": (prompt + chosen + rejected) / count,
        "unshared": (2 * prompt + chosen + rejected) / count,
        "padded": sum(2 * len(step) * width for step, width in zip(steps, widest, strict=True)) / count,
        "completions": (chosen + rejected) / count,
    }


def lengths_of(pair: Pair) -> Lengths:
    prompt, chosen, rejected = pair
    return len(prompt), len(chosen), len(rejected)
