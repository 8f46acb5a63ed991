"""LOWESS: smooths points by local linear regression (Cleveland 1979). Pure functions.

At a point ``x0`` a straight line is fitted to the nearest share of the points, with the tricube weights
``(1 - (|x - x0| / h)^3)^3``, h the distance of the farthest of these points. The curve is the line's value at ``x0``.
The robustness iterations of the original are omitted, because scores have no large outliers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def tricube(distances: Tensor, width: float) -> Tensor:
    """Weights ``(N,)`` of points at ``distances`` ``(N,)``: 1 at 0, 0 from ``width`` on. For width 0: 1 at 0 only."""
    if width == 0:
        return (distances == 0).to(distances.dtype)
    return (1 - (distances / width).clamp(max=1) ** 3) ** 3


def local_line(x: Tensor, y: Tensor, weights: Tensor, at: float) -> float:
    """The value at ``at`` of the weighted least-squares line through ``(N,)`` points. Their mean if x is constant."""
    total = weights.sum()
    center = (weights * x).sum() / total
    mean = (weights * y).sum() / total
    spread = (weights * (x - center) ** 2).sum()
    if float(spread) <= 1e-12 * float(total):
        return float(mean)
    slope = (weights * (x - center) * (y - mean)).sum() / spread
    return float(mean + slope * (at - center))


def lowess(x: Tensor, y: Tensor, at: Tensor, fraction: float = 0.3) -> Tensor:
    """The curve through points ``(N,)`` at ``at`` ``(K,)``, float64.

    Args:
        fraction: share of the points in each local fit, above 0 and at most 1. At least two points are used.

    Raises:
        ValueError: there are no points, or the fraction is out of range.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"the fraction is {fraction}; it must be above 0 and at most 1")
    if len(x) == 0:
        raise ValueError("there are no points to draw a curve through")
    x, y, at = x.double(), y.double(), at.double()
    count = min(len(x), max(2, math.ceil(fraction * len(x))))
    values = []
    for point in at.tolist():
        distances = (x - point).abs()
        width = float(distances.kthvalue(count).values)
        weights = tricube(distances, width)
        # the farthest point has weight 0, so with few points all weights may be 0
        values.append(local_line(x, y, weights if bool(weights.any()) else torch.ones_like(x), point))
    return torch.tensor(values, dtype=torch.float64)
