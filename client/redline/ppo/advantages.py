"""Rewards to advantages: pure functions on ``(B, T)`` tensors. In every mask True marks a real token."""

from __future__ import annotations

import torch
from torch import Tensor

from redline.ppo.protocols import Advantages


def penalized_rewards(
    rewards: Tensor, logprobs: Tensor, reference: Tensor, kl_coefficient: float, mask: Tensor
) -> Tensor:
    """``r_t - beta (log pi(y_t) - log pi_ref(y_t))``, ``(B, T)`` (arXiv 2204.05862, per token); 0 in padding."""
    return (rewards - kl_coefficient * (logprobs - reference)) * mask


def gae(rewards: Tensor, values: Tensor, mask: Tensor, discount: float, lam: float) -> Advantages:
    """Generalised advantage estimation (arXiv 1506.02438).

    ``delta_t = r_t + discount V_{t+1} - V_t``, ``A_t = delta_t + discount lam A_{t+1}``, ``returns = A + V``.
    The value after the last real token is 0: a response ends an episode, cut off or not.
    """
    mask = mask.to(rewards.dtype)
    values = values * mask
    following = torch.zeros_like(rewards[:, 0])
    next_value = torch.zeros_like(following)
    columns: list[Tensor] = []
    for t in range(rewards.shape[1] - 1, -1, -1):
        delta = rewards[:, t] + discount * next_value - values[:, t]
        following = (delta + discount * lam * following) * mask[:, t]
        next_value = values[:, t]
        columns.append(following)
    advantages = torch.stack(columns[::-1], dim=1)
    return Advantages(advantages, advantages + values)


def group_relative(rewards: Tensor, mask: Tensor, groups: Tensor) -> Advantages:
    """Each response's return against the others of its prompt (GRPO, arXiv 2402.03300): ``(R - mean) / std``.

    The same number on all tokens of a response; there is no value function. A group of one has advantage 0.
    """
    totals = (rewards * mask).sum(1)
    advantages = torch.zeros_like(totals)
    for group in torch.unique(groups):
        members = groups == group
        mine = totals[members]
        if len(mine) > 1:
            advantages[members] = (mine - mine.mean()) / (mine.std() + 1e-6)
    return Advantages(advantages.unsqueeze(1) * mask, None)


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """Mean 0 and variance 1 over the True positions of ``mask``; 0 elsewhere."""
    real = values[mask]
    centered = values - real.mean()
    return centered * torch.rsqrt(real.var(correction=0) + 1e-8) * mask


class GAE:
    """``gae`` with its two numbers, as an AdvantageEstimator."""

    def __init__(self, discount: float = 1.0, lam: float = 0.95) -> None:
        self._discount = discount
        self._lam = lam

    def __call__(self, rewards: Tensor, values: Tensor, mask: Tensor, groups: Tensor) -> Advantages:
        """See ``gae``."""
        return gae(rewards, values, mask, self._discount, self._lam)


class GroupRelative:
    """``group_relative`` as an AdvantageEstimator; sample several responses a prompt with it."""

    def __call__(self, rewards: Tensor, values: Tensor, mask: Tensor, groups: Tensor) -> Advantages:
        """See ``group_relative``."""
        return group_relative(rewards, mask, groups)
