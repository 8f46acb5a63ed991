"""Pearson's correlation: values computed by hand, and constant input."""

from __future__ import annotations

import pytest
import torch

from redline_trainer.correlation import pearson

A = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)


def test_values_by_hand() -> None:
    assert float(pearson(A, 2 * A + 1)) == pytest.approx(1.0)
    assert float(pearson(A, -A)) == pytest.approx(-1.0)
    assert float(pearson(A, torch.tensor([1.0, 0.0, 1.0]))) == pytest.approx(0.0)
    # centred: (-4, -1, 5) / 3 and (-1, 0, 1); 3 / sqrt(42 / 9 * 2)
    assert float(pearson(torch.tensor([1.0, 2.0, 4.0]), A)) == pytest.approx(3 / (28 / 3) ** 0.5)


@pytest.mark.parametrize("other", [A, torch.ones(3, dtype=torch.float64)])
def test_constant_input_gives_if_constant(other: torch.Tensor) -> None:
    constant = torch.full((3,), 2.0, dtype=torch.float64)
    assert float(pearson(constant, other)) == 0.0
    assert float(pearson(other, constant, if_constant=1.0)) == 1.0


def test_constant_input_gives_0_and_finite_gradients_with_an_epsilon() -> None:
    values = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    correlation = pearson(values, torch.ones(3), epsilon=1e-12)
    correlation.backward()
    assert float(correlation.detach()) == 0.0
    assert values.grad is not None
    assert torch.isfinite(values.grad).all()


def test_an_epsilon_does_not_change_other_correlations() -> None:
    b = torch.tensor([3.0, -1.0, 2.0], dtype=torch.float64)
    assert float(pearson(A, b, epsilon=1e-12)) == pytest.approx(float(pearson(A, b)), abs=1e-11)
