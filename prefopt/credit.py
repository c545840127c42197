"""Credit: how annotated rollouts become advantages. Pure functions; [N, T] tensors are zero off the mask.

A row's masked tokens are contiguous; γ and λ are per token.
"""

from __future__ import annotations

import torch
from torch import Tensor


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0, lam: float = 0.95) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation. Schulman et al. 2016, https://arxiv.org/abs/1506.02438, Eq. 16.

        δ_t = r_t + γ V_{t+1} - V_t          A_t = δ_t + γ λ A_{t+1}          return_t = A_t + V_t

    The answer ends with its last masked token: V and A are 0 after it. rewards, values: [N, T]; mask: [N, T] bool.
    Returns (advantages, returns), both [N, T]. r_t is what action t earned; the PPO paper calls it r_t too, RL texts
    often r_{t+1}.
    """
    _same(rewards=rewards, values=values, mask=mask)
    mask = mask.bool()
    rewards, values = rewards.where(mask, 0), values.where(mask, 0)
    advantages = torch.zeros_like(values)
    following_value = following = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * following_value - values[:, t]
        following = (delta + gamma * lam * following).where(mask[:, t], 0)
        following_value = values[:, t]
        advantages[:, t] = following
    return advantages, advantages + values


def group_relative(rewards: Tensor, group_size: int, normalize: bool = True) -> Tensor:
    """(r - mean of the group) / std of the group. Shao et al. 2024 (GRPO), https://arxiv.org/abs/2402.03300, §4.1.2.

    rewards: [N], the rows of a group stand together. normalize=False leaves the std out (Dr. GRPO,
    https://arxiv.org/abs/2503.20783). The std is the sample's (n - 1), as in TRL, verl and OpenRLHF. A group whose
    rewards are all equal gets 0. Returns [N].
    """
    groups = _groups(rewards, group_size)
    centred = groups - groups[:, :1]  # from the first, so that equal rewards give 0 and not what rounding leaves
    centred = centred - centred.mean(1, keepdim=True)
    if normalize and group_size > 1:
        std = groups.std(1, keepdim=True)
        centred = torch.where(std > _noise(groups.abs().amax(1, keepdim=True)), centred / std, 0)
    return centred.flatten()


def rloo(rewards: Tensor, group_size: int) -> Tensor:
    """r_i - mean of the group's other rewards. Ahmadian et al. 2024, https://arxiv.org/abs/2402.14740, Eq. 8.

    rewards: [N], the rows of a group stand together, group_size >= 2. A group whose rewards are all equal gets 0.
    Returns [N].
    """
    if group_size < 2:
        raise ValueError(f"rloo needs a group_size of at least 2, got {group_size}: it compares with the others")
    groups = _groups(rewards, group_size)
    groups = groups - groups[:, :1]  # a constant changes nothing, and this one makes equal rewards exactly 0
    others = (groups.sum(1, keepdim=True) - groups) / (group_size - 1)
    return (groups - others).flatten()


def whiten(x: Tensor, mask: Tensor) -> Tensor:
    """x with mean 0 and variance 1 over the mask (the population's variance). [N, T] to [N, T], 0 off the mask.

    The mean is really removed: one peer adds it back by a switched flag, and its advantages are not centred.
    """
    _same(x=x, mask=mask)
    mask = mask.bool()
    n = mask.sum().clamp(min=1)
    centred = (x - x.where(mask, 0).sum() / n).where(mask, 0)
    std = (centred.square().sum() / n).sqrt()
    return torch.where(std > _noise(x.where(mask, 0).abs().amax()), centred / std, 0)


def _groups(rewards: Tensor, group_size: int) -> Tensor:
    if rewards.dim() != 1 or group_size < 1 or len(rewards) % group_size:
        raise ValueError(f"rewards of shape {tuple(rewards.shape)} are not whole groups of {group_size}")
    return rewards.to(torch.promote_types(rewards.dtype, torch.float32)).view(-1, group_size)


def _noise(largest: Tensor) -> Tensor:
    """The spread that rounding leaves to equal numbers of this size, which must not be blown up to ±1."""
    return 16 * torch.finfo(largest.dtype).eps * largest


def _same(**tensors: Tensor) -> None:
    if len({tuple(tensor.shape) for tensor in tensors.values()}) > 1:
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
        raise ValueError(f"shapes differ: {shapes}")
