"""RMSNorm and rotary positions on a CPU in fewer passes over memory.

As a library writes them, an operation of PyTorch after the other, these small steps go about ten times over all the
states, forward and backward, and make as many tensors of their size. Here each is one function with a backward of its
own; the model's weights and modules stay what they are. Whether a model's parts are these is tried on numbers, not
guessed from names.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from prefopt.models.policy import Policy

ROTARY = "apply_rotary_pos_emb"  # what the modules of transformers' models call it
STRIP = 2**18  # numbers of a strip, 1 MiB: what one operation wrote the next still finds in the processor's cache
# Relative differences that are rounding, in the types that are taken. In fewer bits it matters where a model rounds. A
# norm that rounds float64 to float32 is none of these.
NEAR = {torch.float32: 1e-5, torch.float64: 1e-12}


@dataclass(frozen=True)
class _Parts:
    norms: dict[nn.Module, torch.dtype] = field(default_factory=dict)  # and in which type each was tried
    rotary: dict[ModuleType, Any] = field(default_factory=dict)  # ROTARY of Python's modules that look it up


_known: WeakKeyDictionary[nn.Module, _Parts] = WeakKeyDictionary()


@contextmanager
def fused(policy: Policy) -> Iterator[None]:
    """While it lasts, on a CPU, the model's RMSNorms and its rotary positions take fewer passes over memory."""
    parts = _parts(policy.causal) if policy.device.type == "cpu" else _Parts()
    # What somebody else has put in their place meanwhile stays, and what an outer `fused` has.
    norms = [norm for norm, dtype in parts.norms.items() if "forward" not in vars(norm) and _type(norm) == dtype]
    rotary = {home: own for home, own in parts.rotary.items() if getattr(home, ROTARY) is own}
    try:
        for norm in norms:
            norm.forward = _Norm(norm)
        for home, own in rotary.items():
            setattr(home, ROTARY, _Rotary(own))
        yield
    finally:
        for norm in norms:
            vars(norm).pop("forward", None)
        for home, own in rotary.items():
            setattr(home, ROTARY, own)


def _parts(model: nn.Module) -> _Parts:
    if model not in _known:
        with torch.inference_mode(False), torch.enable_grad():  # whoever asks first gets the answer for all
            norms = {m: _type(m) for m in model.modules() if hasattr(m, "variance_epsilon") and _is_rms_norm(m)}
            homes = {sys.modules.get(type(module).__module__) for module in model.modules()}
            called = {home: getattr(home, ROTARY, None) for home in homes if home}
            _known[model] = _Parts(norms, {home: own for home, own in called.items() if _is_rotary(own)})
    return _known[model]


def _type(norm: Any) -> torch.dtype:
    return norm.weight.dtype


class _Norm:
    """An RMSNorm's forward: x · weight / √(mean x² + ε), of a root mean square with no mean taken off
    (https://arxiv.org/abs/1910.07467)."""

    def __init__(self, module: nn.Module) -> None:
        self._module: Any = module

    def __call__(self, states: Tensor, *more: Any, **named: Any) -> Any:
        weight = self._module.weight
        if more or named or not _exact(states, weight):
            return type(self._module).forward(self._module, states, *more, **named)
        return rms_norm(states, weight, self._module.variance_epsilon)


class _Rotary:
    """Queries and keys turned by their positions; see `turn`."""

    def __init__(self, own: Any) -> None:
        self._own = own

    def __call__(self, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, *more: Any, **named: Any) -> Any:
        whole = cos.dim() == 3 and cos.shape[-1] == query.shape[-1] and not (cos.requires_grad or sin.requires_grad)
        if more or named or not whole or not _exact(query, key, cos, sin):
            return self._own(query, key, cos, sin, *more, **named)
        return turn(query, cos[:, None], sin[:, None]), turn(key, cos[:, None], sin[:, None])


def _exact(*tensors: Tensor) -> bool:
    types = {tensor.dtype for tensor in tensors}
    return len(types) == 1 and types <= NEAR.keys() and not torch.is_autocast_enabled("cpu")


# ---------------------------------------------------------------- the functions


def rms_norm(states: Tensor, weight: Tensor, eps: float) -> Tensor:
    """[..., H] of weight [H], all in one type."""
    return _RmsNorm.apply(states, weight, eps)


def turn(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x · cos + (-x₂, x₁) · sin of the halves x₁, x₂ of every vector (https://arxiv.org/abs/2104.09864, in the order
    of Llama's weights). states: [N, heads, T, D]; cos, sin: [N, 1, T, D], without gradients."""
    return _Turn.apply(states, cos, sin)


class _RmsNorm(torch.autograd.Function):
    """With x̂ = x / √(mean x² + ε) and h = ∂L/∂y · weight: ∂L/∂x = (h - x̂ · mean(h · x̂)) / √(mean x² + ε)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = scale.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        size = x.shape[-1]
        flat = [tensor.reshape(-1, tensor.shape[-1]) for tensor in (x, scale, grads[0])]
        dx, dweight = torch.empty_like(flat[0]), torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        rows = max(1, STRIP // size)
        for out, own, scales, grad in zip(dx.split(rows), *(tensor.split(rows) for tensor in flat), strict=True):
            normed = own * scales
            by_weight = grad * normed
            if dweight is not None:
                dweight += by_weight.sum(0)
            mean = torch.mv(by_weight, weight).div_(size)[:, None]
            torch.mul(grad, weight, out=out).addcmul_(normed, mean, value=-1).mul_(scales)
        return dx.view_as(x), dweight, None


class _Turn(torch.autograd.Function):
    """Backward turns back: (∂L/∂x)₁ = g₁ · cos₁ + g₂ · sin₂ and (∂L/∂x)₂ = g₂ · cos₂ - g₁ · sin₁."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        one, two = sin.chunk(2, -1)
        return _turned(x, cos, -one, two)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        one, two = sin.chunk(2, -1)
        return _turned(grads[0], cos, two, -one), None, None


def _turned(x: Tensor, cos: Tensor, to_first: Tensor, to_second: Tensor) -> Tensor:
    """x · cos, and to its first half what stands in the second times `to_first`, and the other way round."""
    out = x * cos
    (first, second), (into_first, into_second) = x.chunk(2, -1), out.chunk(2, -1)
    into_first.addcmul_(second, to_first)
    into_second.addcmul_(first, to_second)
    return out


# ---------------------------------------------------------------- whether a model's parts are these


def _is_rms_norm(module: Any) -> bool:
    """By its outcome and gradients, of other weights than its own, and of states so small that ε counts."""
    parameters = dict(module.named_parameters())
    if set(parameters) != {"weight"} or _type(module) not in NEAR:
        return False
    weight, *states = _numbers(3, *module.weight.shape, dtype=_type(module))
    given = [torch.stack([states[0], states[1] * module.variance_epsilon**0.5]), weight]
    own = lambda x, weight: torch.func.functional_call(module, {"weight": weight}, (x,))  # noqa: E731
    return _alike(own, lambda x, weight: rms_norm(x, weight, module.variance_epsilon), given)


def _is_rotary(own: Any) -> bool:
    return callable(own) and all(_turns(own, dtype) for dtype in NEAR)


def _turns(own: Any, dtype: torch.dtype) -> bool:
    query, key, cos, sin = _numbers(4, 1, 2, 3, 8, dtype=dtype)
    cos, sin = cos[:, :1], sin[:, :1]
    ours = lambda query, key: (turn(query, cos, sin), turn(key, cos, sin))  # noqa: E731
    return _alike(lambda query, key: own(query, key, cos[:, 0], sin[:, 0]), ours, [query, key])


def _numbers(*shape: int, dtype: torch.dtype) -> Tensor:
    """The same every time, and no one else's random numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def _alike(own: Any, ours: Any, given: list[Tensor]) -> bool:
    near = NEAR[given[0].dtype]
    try:
        found = [_with_gradients(function, given) for function in (own, ours)]
        return all(a.shape == b.shape and _close(a, b, near) for a, b in zip(*found, strict=True))
    except Exception:  # models fail in their own ways when asked for what they do not do
        return False


def _close(one: Tensor, other: Tensor, near: float) -> bool:
    """Vector by vector: gradients of small states are large ones."""
    return bool(((one - other).norm(dim=-1) <= near * other.norm(dim=-1)).all())


def _with_gradients(function: Any, given: list[Tensor]) -> list[Tensor]:
    """What comes out, and the gradients of a sum in which every number of it has a weight of its own."""
    leaves = [tensor.clone().requires_grad_() for tensor in given]
    found = function(*leaves)
    out = list(found) if isinstance(found, tuple) else [found]
    total = sum((part * torch.arange(1.0, 1.0 + part.numel()).view_as(part).cos()).sum() for part in out)
    return [*out, *torch.autograd.grad(total, leaves)]
