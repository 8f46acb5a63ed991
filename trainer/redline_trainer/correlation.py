"""Pearson's correlation, for training losses and for evaluation."""

from __future__ import annotations

import torch
from torch import Tensor


def pearson(a: Tensor, b: Tensor, *, epsilon: float = 0.0, if_constant: float = 0.0) -> Tensor:
    """``cov(a, b) / sqrt(var(a) var(b) + epsilon)`` of ``(N,)`` and ``(N,)``, a scalar.

    Args:
        epsilon: above 0 for use in a loss: with constant input the correlation is then 0 and has finite gradients.
        if_constant: the result without ``epsilon`` if ``a`` or ``b`` is constant, for which a correlation is not
            defined: 0, or 1 if two inputs that do not vary count as equal.
    """
    a, b = a - a.mean(), b - b.mean()
    scale = (a.square().mean() * b.square().mean() + epsilon).sqrt()
    return torch.where(scale > 0, (a * b).mean() / scale, if_constant)
