"""The last layer works for the tokens that are read: nobody asks for the states of a prompt's other tokens.

A token's keys and values in the last layer are seen by those after it; its query, what attention makes of that and the
feed-forward after it only end in its own state, which for all prompt tokens but one nothing reads. On pairs of
HH-RLHF half of all tokens are such.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakSet

from torch import Tensor, nn

from prefopt.models.policy import Policy

# By the names that transformers gives them, in the families of Llama and of GPT-2: each maps a token's vector alone.
TOKENWISE = ("self_attn.q_proj", "self_attn.o_proj", "attn.c_proj", "mlp")

_whole: WeakSet[nn.Module] = WeakSet()


def leave_whole(policy: Policy) -> None:
    """Its last layer works for all tokens from now on: something in it is not what its name says."""
    _whole.add(policy.causal)


@contextmanager
def narrowed(policy: Policy, read: Tensor | None) -> Iterator[None]:
    """While it lasts the last layer's parts for single tokens skip those that are not read; what becomes of these
    means nothing. read: [T] bool, of a forward on [1, T]; None reads all."""
    with ExitStack() as hooks:
        if read is not None and policy.causal not in _whole and not bool(read.all()):
            rows = read.nonzero()[:, 0]
            for part in parts(policy):
                hooks.enter_context(part.register_forward_pre_hook(_taken(rows)))
                hooks.enter_context(part.register_forward_hook(_put_back(rows, len(read))))
        yield


def parts(policy: Policy) -> list[nn.Module]:
    """Of the last layer; none where its parts have other names."""
    named = dict(policy.layers[-1].named_modules()) if policy.layers else {}
    return [named[name] for name in TOKENWISE if name in named]


def _taken(rows: Tensor) -> Any:
    def before(part: nn.Module, given: tuple[Tensor]) -> tuple[Tensor]:
        (states,) = given
        return (states.index_select(1, rows),)  # whose backward is a third of indexing

    return before


def _put_back(rows: Tensor, size: int) -> Any:
    def after(part: nn.Module, given: tuple[Tensor], found: Tensor) -> Tensor:
        return found.new_zeros(1, size, *found.shape[2:]).index_copy_(1, rows, found)

    return after
