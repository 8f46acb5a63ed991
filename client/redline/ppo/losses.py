"""The losses of PPO, as pure functions on ``(B, T)`` tensors. True marks a real token in every mask."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class PolicyLoss(NamedTuple):
    """Sums over tokens.

    ``loss``: clipped surrogate loss.
    ``clipped``: number of tokens whose ratio was clipped.
    ``kl``: KL divergence from the policy before the step, in nats.
    """

    loss: Tensor
    clipped: Tensor
    kl: Tensor


def policy_loss(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip: float) -> PolicyLoss:
    """Clipped surrogate (arXiv 1707.06347): ``-min(q A, clamp(q, 1-clip, 1+clip) A)``, ``q = pi/pi_old``."""
    log_ratio = torch.where(mask, logprobs - old_logprobs, 0.0)
    ratio = log_ratio.exp()
    plain = -advantages * ratio
    clamped = -advantages * ratio.clamp(1 - clip, 1 + clip)
    loss = torch.where(mask, torch.maximum(plain, clamped), 0.0).sum()
    is_clipped = (clamped > plain) & mask
    kl = ((ratio - 1) - log_ratio)[mask].sum()  # k3, http://joschu.net/blog/kl-approx.html: never negative
    return PolicyLoss(loss, is_clipped.sum().detach(), kl.detach())


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip: float | None) -> Tensor:
    """``1/2 max((V - R)^2, (clamp(V, V_old +- clip) - R)^2)``, summed over tokens (as in PPO2).

    If ``clip`` is None: ``1/2 (V - R)^2``.
    """
    error = (values - returns) ** 2
    if clip is not None:
        near = old_values + (values - old_values).clamp(-clip, clip)
        error = torch.maximum(error, (near - returns) ** 2)
    return 0.5 * torch.where(mask, error, 0.0).sum()


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """``1 - Var(R - V) / Var(R)`` over real tokens; 0 if all returns are equal."""
    target = returns[mask]
    if not len(target):
        return 0.0
    variance = target.var(correction=0)
    if float(variance) < 1e-12:
        return 0.0
    return float(1 - (target - values[mask]).var(correction=0) / variance)


def entropy_of(logprobs: Tensor) -> Tensor:
    """``-sum p log p`` over the last dimension, in nats. Tokens with probability 0 contribute 0."""
    return -(logprobs.exp() * logprobs.clamp_min(torch.finfo(logprobs.dtype).min)).sum(-1)


def chosen_logprobs(logprobs: Tensor, targets: Tensor) -> Tensor:
    """Log-probabilities of ``targets`` (B, T), selected from those of all tokens of the vocabulary (B, T, V)."""
    return logprobs.gather(-1, targets.unsqueeze(-1)).squeeze(-1)


def adapted_kl_coefficient(coefficient: float, kl: float, target: float, samples: int, horizon: int) -> float:
    """The next KL coefficient (arXiv 1909.08593, a proportional controller). ``kl``, ``target``: nats per response."""
    error = min(max(kl / target - 1, -0.2), 0.2)
    return coefficient * (1 + error * samples / horizon)
