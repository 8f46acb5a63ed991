"""LOWESS against values that were computed by hand."""

from __future__ import annotations

import pytest
import torch

from redline_trainer.evaluation.lowess import local_line, lowess, tricube


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.7, 1.0])
def test_points_on_a_line_are_reproduced(fraction: float) -> None:
    x = torch.tensor([3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0, 5.0, 3.0])
    at = torch.tensor([1.0, 2.5, 9.0])
    assert lowess(x, 2.0 * x - 7.0, at, fraction).tolist() == pytest.approx((2.0 * at - 7.0).tolist())


def test_the_tricube_by_hand() -> None:
    weights = tricube(torch.tensor([0.0, 1.0, 2.0, 3.0], dtype=torch.float64), 2.0)
    assert weights.tolist() == pytest.approx([1.0, (1 - 1 / 8) ** 3, 0.0, 0.0])
    assert tricube(torch.tensor([0.0, 1.0]), 0.0).tolist() == [1.0, 0.0]


def test_a_local_fit_by_hand() -> None:
    # at x0 = 1 with all three points: h = 2, weights w = (1 - 1/8)^3 at 0, 1 at 1, 0 at 3; the line through (0, 2)
    # and (1, 5) has the value 5 at 1; at x0 = 0.5, the nearest two are 0 and 1 with h = 1/2 and weight 0 each
    x, y = torch.tensor([0.0, 1.0, 3.0]), torch.tensor([2.0, 5.0, 100.0])
    assert lowess(x, y, torch.tensor([1.0]), 1.0).tolist() == pytest.approx([5.0])
    # weights 1, 3 on (0, 0), (1, 4), (1, 8): the line from 0 to the weighted mean 7 at 1
    line = local_line(torch.tensor([0.0, 1.0, 1.0]), torch.tensor([0.0, 4.0, 8.0]), torch.tensor([5.0, 1.0, 3.0]), 0.5)
    assert line == pytest.approx(3.5)


def test_equal_lengths_give_their_mean() -> None:
    x, y = torch.tensor([5.0, 5.0, 5.0]), torch.tensor([1.0, 2.0, 6.0])
    assert lowess(x, y, torch.tensor([5.0, 8.0])).tolist() == pytest.approx([3.0, 3.0])
    assert lowess(x[:1], y[:1], torch.tensor([5.0])).tolist() == [1.0]


def test_points_outside_the_window_have_no_weight() -> None:
    x = torch.arange(20.0)
    y = torch.where(x < 10, x, 1000.0)
    assert lowess(x, y, torch.tensor([3.0]), 0.3).tolist() == pytest.approx([3.0])


def test_invalid_inputs_are_errors() -> None:
    x = torch.arange(3.0)
    for fraction in (0.0, 1.5, -1.0):
        with pytest.raises(ValueError, match="fraction"):
            lowess(x, x, x, fraction)
    with pytest.raises(ValueError, match="no points"):
        lowess(x[:0], x[:0], x)
