"""Computes advantages from token rewards, with pure functions on ``(B, T)`` tensors.

True marks a real token in every mask.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from redline.ppo.config import PPOConfig
from redline.ppo.protocols import AdvantageEstimator, Advantages
from redline.token_advantages import leave_one_out_advantages, rewards_to_go

TOKEN_DISCOUNT = 0.7


def kl_penalized_rewards(
    rewards: Tensor, logprobs: Tensor, reference: Tensor, kl_coefficient: float, mask: Tensor
) -> Tensor:
    """``r_t - beta (log pi(y_t) - log pi_ref(y_t))``, ``(B, T)`` (arXiv 2204.05862, per token), and 0 in padding."""
    return (rewards - kl_coefficient * (logprobs - reference)) * mask


def cut_penalties(is_cut: Tensor, mask: Tensor, penalty: float) -> Tensor:
    """``-penalty`` on the last token of every response that was cut at the token limit, 0 elsewhere, ``(B, T)``.

    Args:
        is_cut: (B,).
        penalty: in units of the scorer's rewards (``missing_eos_penalty`` in TRL).
    """
    last = torch.arange(mask.shape[1], device=mask.device) == mask.sum(1, keepdim=True) - 1
    return -penalty * (last & is_cut.unsqueeze(1)).to(torch.float32)


def reward_scale(totals: Sequence[float], limit: float) -> float:
    """``1 / std`` of the responses' summed rewards, limited to ``1 / limit`` .. ``limit``; 1 if they are all equal."""
    mean = sum(totals) / len(totals)
    std = math.sqrt(sum((total - mean) ** 2 for total in totals) / len(totals))
    return min(max(1.0 / std, 1.0 / limit), limit) if std > 1e-6 else 1.0


def gae(rewards: Tensor, values: Tensor, mask: Tensor, discount: float, lam: float) -> Advantages:
    """Generalised advantage estimation (arXiv 1506.02438).

    ``delta_t = r_t + discount V_{t+1} - V_t``, ``A_t = delta_t + discount lam A_{t+1}``, ``returns = A + V``.
    The value after the last real token is 0, because every response ends its episode, also one that was cut off.
    Padding is on the right.
    """
    values = values * mask
    next_values = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    deltas = rewards + discount * next_values - values
    advantages = rewards_to_go(deltas, mask, discount * lam)
    return Advantages(advantages, advantages + values)


def group_relative(rewards: Tensor, mask: Tensor, groups: Tensor) -> Advantages:
    """Compare each response's return with those of its group: ``(R - mean) / std`` (GRPO, arXiv 2402.03300).

    All tokens of a response have the same advantage, because token rewards are summed (``leave_one_out_advantages``
    keeps them apart). There is no value function. The only response of a group has advantage 0. A response without a
    token in ``mask`` is not a member of its group.
    """
    totals = (rewards * mask).sum(1)
    advantages = torch.zeros_like(totals)
    for group in torch.unique(groups):
        members = (groups == group) & mask.any(1)
        group_totals = totals[members]
        if len(group_totals) > 1:
            advantages[members] = (group_totals - group_totals.mean()) / (group_totals.std() + 1e-6)
    return Advantages(advantages.unsqueeze(1) * mask, None)


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """Scale to mean 0 and variance 1 over the True positions of ``mask``; 0 elsewhere."""
    real = values[mask]
    if not len(real):
        return torch.zeros_like(values)
    centered = values - real.mean()
    return centered * torch.rsqrt(real.var(correction=0) + 1e-8) * mask


class GAE:
    """``gae`` with fixed ``discount`` and ``lam``, as an AdvantageEstimator."""

    def __init__(self, discount: float = 1.0, lam: float = 0.95) -> None:
        self._discount = discount
        self._lam = lam

    def __call__(self, rewards: Tensor, values: Tensor, mask: Tensor, groups: Tensor) -> Advantages:
        """See ``gae``."""
        return gae(rewards, values, mask, self._discount, self._lam)


class GroupRelative:
    """``group_relative`` as an AdvantageEstimator. It needs several responses per prompt."""

    def __call__(self, rewards: Tensor, values: Tensor, mask: Tensor, groups: Tensor) -> Advantages:
        """See ``group_relative``."""
        return group_relative(rewards, mask, groups)


class LeaveOneOut:
    """``redline.token_advantages.leave_one_out_advantages`` as an AdvantageEstimator.

    It compares responses to one prompt token by token, and needs several responses per prompt.
    """

    def __init__(self, discount: float = 1.0) -> None:
        self._discount = discount

    def __call__(self, rewards: Tensor, values: Tensor, mask: Tensor, groups: Tensor) -> Advantages:
        """See ``leave_one_out_advantages``."""
        return Advantages(leave_one_out_advantages(rewards, mask, groups.tolist(), gamma=self._discount), None)


def default_discount(rewards: Tensor, mask: Tensor) -> float:
    """1 if only last tokens have rewards other than 0, else ``TOKEN_DISCOUNT``.

    A reward on the last token must reach all others. A token reward says where it belongs: the tokens after it should
    count little.

    Args:
        rewards: of the scorer, without the KL penalty, ``(B, T)``.
    """
    is_last = torch.arange(mask.shape[1], device=mask.device) == mask.sum(1, keepdim=True) - 1
    return TOKEN_DISCOUNT if bool((rewards * (mask & ~is_last)).any()) else 1.0


def make_estimator(config: PPOConfig, discount: float) -> AdvantageEstimator:
    """The estimator that ``config.advantage`` names."""
    if config.advantage == "group":
        return GroupRelative()
    if config.advantage == "leave_one_out":
        return LeaveOneOut(discount)
    return GAE(discount, config.gae_lambda)
