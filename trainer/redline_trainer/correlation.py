"""Pearson's correlation as a differentiable function, for losses and for evaluation."""

from __future__ import annotations

import torch
from torch import Tensor


def pearson(a: Tensor, b: Tensor, *, epsilon: float = 0.0, if_constant: float = 0.0) -> Tensor:
    """``cov(a, b) / sqrt(var(a) var(b) + epsilon)`` of ``(N,)`` and ``(N,)``, a scalar.

    Args:
        epsilon: a positive value makes the correlation of constant input 0 with finite gradients, as losses need it.
        if_constant: the result for constant ``a`` or ``b`` if ``epsilon`` is 0, because the correlation is undefined.
    """
    a, b = a - a.mean(), b - b.mean()
    scale = (a.square().mean() * b.square().mean() + epsilon).sqrt()
    return torch.where(scale > 0, (a * b).mean() / scale, if_constant)
