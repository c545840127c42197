"""Positions that a model stretches for long rows: a row's frequencies must not depend on the rows beside it."""

from __future__ import annotations

import pytest
import torch

from prefopt.models.policy import Policy
from prefopt.records import Batch
from prefopt.scoring import score, sharing, tokens_read
from tests.toy import VOCAB, toy_model

BOUND = 40
FACTORS = {"short_factor": [1.0] * 4, "long_factor": [4.0, 8.0, 16.0, 32.0]}
LONG = {"rope_type": "longrope", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": BOUND}


def stretched() -> Policy:
    return Policy(toy_model(dtype=torch.float32, rope_parameters={**LONG, **FACTORS}).eval())


def batch(*lengths: int) -> Batch:
    """Rows of so many tokens, each under a prompt of its own."""
    torch.manual_seed(0)
    rows = [torch.randint(3, VOCAB, (length,)) for length in lengths]
    return Batch.of("rollouts", [row[:3] for row in rows], [row[3:] for row in rows], list(range(len(rows))))


@pytest.mark.parametrize("lengths", [(BOUND, BOUND - 3), (BOUND + 1, 5, BOUND), (BOUND + 9, BOUND + 1, BOUND, 5)])
def test_a_row_is_what_it_is_alone(lengths):
    policy, rows = stretched(), batch(*lengths)
    with torch.no_grad():
        together = score(policy, rows)
        for row, (prompt, completion) in enumerate(zip(rows.prompts(), rows.completions(), strict=True)):
            ids = torch.cat((prompt, completion))
            said = policy.causal(ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None])[2:, 0]
            torch.testing.assert_close(together.logps[row][together.mask[row]], said, rtol=0, atol=2e-5)


def test_the_frequencies_are_others():
    """Else nothing is tested above."""
    policy, ids = stretched(), torch.arange(BOUND + 2) % VOCAB
    with torch.no_grad():
        short, long = policy.causal(ids[None, :5]).logits, policy.causal(ids[None]).logits[:, :5]
    assert (short - long).abs().max() > 1e-3


def test_short_rows_share_their_prompts():
    policy = stretched()
    assert sharing.shares_prompts(policy, BOUND)
    assert not sharing.shares_prompts(policy, BOUND + 1)
    assert tokens_read(policy, batch(BOUND + 2, BOUND, 5)) == (BOUND + 2 + 2 * BOUND, 3 * (BOUND + 2))


@pytest.mark.parametrize(
    ("parameters", "bound"),
    [
        ({**LONG, **FACTORS}, BOUND),
        ({"rope_type": "dynamic", "rope_theta": 100.0, "factor": 2.0}, 128),
        ({"rope_type": "linear", "rope_theta": 100.0, "factor": 2.0}, None),
        ({"rope_type": "default", "rope_theta": 100.0}, None),
    ],
)
def test_the_bound(parameters, bound):
    assert Policy(toy_model(rope_parameters=parameters)).rope_bound == bound


def test_a_bound_of_one_kind_of_layers():
    policy = stretched()
    plain = {"rope_type": "default", "rope_theta": 100.0}
    policy.config.rope_parameters = {"full_attention": {**LONG, **FACTORS}, "sliding_attention": plain}
    assert policy.rope_bound == BOUND
