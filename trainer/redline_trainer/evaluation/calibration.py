"""Calibration of scores: a temperature that turns score differences into probabilities of preference."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from redline_model.bundle.manifest import CalibrationFit

# Without a mistake in the ranking the most likely temperature would be 0, so half a mistake is added.
_PSEUDO_MISTAKES = 0.5


def fit_temperature(differences: Tensor) -> float:
    """The T that maximises the likelihood of ``sigmoid(d / T)``, d = score chosen - score rejected, ``(N,)``.

    The loss is convex in 1/T, and its minimum is found by bisection. Every pair is also counted reversed, with a total
    weight of half a pair, so that T is positive if all pairs are ranked correctly. T is between 1e-6 and 1e6.
    """
    d = differences.double()
    weight = _PSEUDO_MISTAKES / len(d)

    def slope(inverse: float) -> float:
        # derivative of mean[softplus(-d/T)] + weight * mean[softplus(+d/T)] in 1/T
        as_labelled = (-d * torch.sigmoid(-d * inverse)).mean()
        reversed_ = (d * torch.sigmoid(d * inverse)).mean()
        return float(as_labelled + weight * reversed_)

    low, high = -6.0, 6.0  # log10 of 1/T
    if slope(10.0**low) >= 0:  # not better than chance: the largest temperature
        return float(10.0**-low)
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(10.0**middle) < 0 else (low, middle)
    return float(10.0 ** (-(low + high) / 2))


def expected_calibration_error(differences: Tensor, temperature: float, bins: int = 10) -> float:
    """Mean absolute difference of confidence ``sigmoid(|d|/T)`` in [.5, 1] and accuracy, over bins of equal width."""
    confidence = torch.sigmoid(differences.double().abs() / temperature)
    is_correct = (differences > 0).double() + 0.5 * (differences == 0).double()  # a tie counts half
    index = ((confidence - 0.5) * 2 * bins).long().clamp(max=bins - 1)
    gaps = [
        float((confidence[index == b].mean() - is_correct[index == b].mean()).abs() * (index == b).sum())
        for b in range(bins)
        if bool((index == b).any())
    ]
    return math.fsum(gaps) / len(differences)


def calibrate(chosen: Sequence[float], rejected: Sequence[float]) -> CalibrationFit:
    """The calibration of one reward spec, from the scores of chosen and rejected responses."""
    w = torch.tensor(chosen, dtype=torch.float64)
    both = torch.cat([w, torch.tensor(rejected, dtype=torch.float64)])
    differences = w - torch.tensor(rejected, dtype=torch.float64)
    temperature = fit_temperature(differences)
    return CalibrationFit(
        temperature=temperature,
        mean=float(both.mean()),
        std=float(both.std(correction=0)),
        expected_calibration_error=expected_calibration_error(differences, temperature),
    )
