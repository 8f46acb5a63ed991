"""Temperature, calibration error and accuracy intervals, against formulas and simulations."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from redline_trainer.evaluation.accuracy import Interval, accuracy_by_prompt
from redline_trainer.evaluation.calibration import calibrate, expected_calibration_error, fit_temperature

MAX_TEMPERATURE = 1e6
quickly = settings(deadline=None, database=None, max_examples=60)


def bradley_terry(count: int, temperature: float, spread: float, seed: int = 0) -> Tensor:
    """Differences ``(count,)`` of scores, the winner's first, of a model with this true temperature."""
    generator = torch.Generator().manual_seed(seed)
    gaps = spread * torch.randn(count, generator=generator, dtype=torch.float64)
    first_wins = torch.rand(count, generator=generator, dtype=torch.float64) < torch.sigmoid(gaps / temperature)
    return torch.where(first_wins, gaps, -gaps)


# --- temperature -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("temperature", "spread"), [(0.5, 1.0), (1.0, 1.0), (3.0, 2.0), (20.0, 30.0)])
def test_the_fitted_temperature_is_that_of_the_simulation(temperature: float, spread: float) -> None:
    d = bradley_terry(20_000, temperature, spread)
    # 1/T is within four standard errors, by the Fisher information of logistic regression
    p = torch.sigmoid(d / temperature)
    standard_error = 1 / math.sqrt(float((d**2 * p * (1 - p)).sum()))
    assert standard_error * temperature < 0.03  # otherwise the bound would be useless
    assert abs(1 / fit_temperature(d) - 1 / temperature) < 4 * standard_error


@pytest.mark.parametrize(("won", "lost"), [(3, 1), (7, 3), (60, 40), (1, 0), (10, 0)])
def test_temperature_of_equal_gaps_by_hand(won: int, lost: int) -> None:
    # each pair is also counted reversed, with weight w = 0.5 / N: the odds are then (won + w lost) : (lost + w won)
    gap = 2.0
    weight = 0.5 / (won + lost)
    expected = gap / math.log((won + weight * lost) / (lost + weight * won))
    d = torch.tensor([gap] * won + [-gap] * lost)
    assert fit_temperature(d) == pytest.approx(expected, rel=1e-9)


def test_pairs_that_are_all_ranked_correctly_have_a_finite_temperature() -> None:
    generator = torch.Generator().manual_seed(1)
    d = torch.rand(500, generator=generator, dtype=torch.float64) + 0.1
    temperature = fit_temperature(d)
    assert math.isfinite(temperature)
    assert temperature > 0.01
    # confident, but less than 1
    assert float(torch.sigmoid(d.max() / temperature)) < 1.0
    assert float(torch.sigmoid(d.min() / temperature)) > 0.5


def test_more_correctly_ranked_pairs_have_a_lower_temperature() -> None:
    temperatures = [fit_temperature(torch.ones(n)) for n in (1, 10, 100, 1000)]
    assert temperatures == sorted(temperatures, reverse=True)
    assert temperatures == pytest.approx([1 / math.log(2 * n) for n in (1, 10, 100, 1000)])


@pytest.mark.parametrize(
    "differences",
    [[1.0, -1.0], [3.0, -3.0, 0.5, -0.5], [0.0, 0.0], [-1.0, -2.0], [1.0, -5.0]],
    ids=["balanced", "balanced, two sizes", "ties", "reversed", "more wrong than right"],
)
def test_scores_without_information_have_the_largest_temperature(differences: list[float]) -> None:
    temperature = fit_temperature(torch.tensor(differences))
    assert temperature == MAX_TEMPERATURE
    assert float(torch.sigmoid(torch.tensor(5.0) / temperature)) == pytest.approx(0.5, abs=1e-5)


def test_scores_unrelated_to_the_labels_have_a_confidence_near_one_half() -> None:
    d = bradley_terry(20_000, temperature=math.inf, spread=1.0, seed=3)
    confidence = torch.sigmoid(d.abs() / fit_temperature(d))
    assert float(confidence.mean()) == pytest.approx(0.5, abs=0.01)


@quickly
@given(st.floats(0.01, 100.0), st.integers(0, 1000))
def test_temperature_scales_with_the_scores(factor: float, seed: int) -> None:
    d = bradley_terry(200, temperature=1.0, spread=1.5, seed=seed)
    assert fit_temperature(factor * d) == pytest.approx(factor * fit_temperature(d), rel=1e-6)


@quickly
@given(st.integers(0, 1000))
def test_no_other_temperature_has_a_lower_loss(seed: int) -> None:
    d = bradley_terry(200, temperature=2.0, spread=1.5, seed=seed)

    def loss(temperature: float) -> float:
        softplus = torch.nn.functional.softplus
        return float((softplus(-d / temperature) + 0.5 / len(d) * softplus(d / temperature)).mean())

    fitted = fit_temperature(d)
    assert all(loss(fitted) <= loss(fitted * factor) for factor in (0.5, 0.99, 1.01, 2.0))


# --- calibration error -----------------------------------------------------------------------------------


def outcomes(*groups: tuple[float, int, int]) -> Tensor:
    """Differences with T = 1: for each (confidence, right, wrong) that many pairs with that confidence."""
    d: list[float] = []
    for confidence, right, wrong in groups:
        gap = math.log(confidence / (1 - confidence))
        d += [gap] * right + [-gap] * wrong
    return torch.tensor(d, dtype=torch.float64)


def test_the_error_is_0_if_accuracy_equals_confidence() -> None:
    d = outcomes((0.6, 6, 4), (0.75, 3, 1), (0.9, 18, 2), (0.99, 99, 1))
    assert expected_calibration_error(d, 1.0) == pytest.approx(0.0, abs=1e-12)


def test_error_is_the_gap_weighted_by_pairs() -> None:
    # confidence .9, right half of the time: gap .4 for 10 pairs; .6 and always right: gap .4 for 5
    d = outcomes((0.9, 5, 5), (0.6, 5, 0))
    assert expected_calibration_error(d, 1.0) == pytest.approx(0.4)
    d = outcomes((0.9, 5, 5), (0.75, 3, 1), (0.75, 3, 1), (0.75, 1, 1))
    # 10 x .4 and 10 x |.75 - .7|, over 20
    assert expected_calibration_error(d, 1.0) == pytest.approx((10 * 0.4 + 10 * 0.05) / 20)


def test_gaps_of_opposite_sign_do_not_cancel_across_bins() -> None:
    d = outcomes((0.95, 1, 1), (0.55, 2, 0))
    assert expected_calibration_error(d, 1.0) == pytest.approx((2 * 0.45 + 2 * 0.45) / 4)


def test_confidence_1_is_in_the_last_bin() -> None:
    assert expected_calibration_error(torch.tensor([1e9, 1e9, 1e9, -1e9]), 1.0) == pytest.approx(0.25)


def test_error_depends_on_gap_over_temperature_only() -> None:
    d = bradley_terry(500, temperature=1.0, spread=2.0)
    assert expected_calibration_error(8 * d, 8.0) == pytest.approx(expected_calibration_error(d, 1.0))


def test_true_temperature_is_better_calibrated_than_a_wrong_one() -> None:
    d = bradley_terry(20_000, temperature=2.0, spread=3.0)
    errors = {t: expected_calibration_error(d, t) for t in (0.5, fit_temperature(d), 8.0)}
    right = errors[fit_temperature(d)]
    # ten bins of some 2,000: the noise of a bin's accuracy is at most .5 / sqrt(2,000)
    assert right < 0.5 / math.sqrt(2_000)
    assert right < errors[0.5] / 3
    assert right < errors[8.0] / 3


def test_mean_and_std_are_of_both_sides() -> None:
    fit = calibrate([3.0, 5.0, 1.0], [1.0, 1.0, 1.0])
    # 3 5 1 1 1 1: mean 2, squared deviations 1 9 1 1 1 1 over 6
    assert fit.mean == pytest.approx(2.0)
    assert fit.std == pytest.approx(math.sqrt(14 / 6))
    d = torch.tensor([2.0, 4.0, 0.0])
    assert fit.temperature == pytest.approx(fit_temperature(d))
    assert fit.expected_calibration_error == pytest.approx(expected_calibration_error(d, fit.temperature))


# --- accuracy by prompt ----------------------------------------------------------------------------------


def width(interval: Interval) -> float:
    return interval.high - interval.low


def test_a_tie_is_half_a_win() -> None:
    interval = accuracy_by_prompt([1.0, -1.0, 0.0, 0.0, 2.0], list("abcde"))
    assert interval.mean == pytest.approx((1 + 0 + 0.5 + 0.5 + 1) / 5)
    assert accuracy_by_prompt([0.0] * 4, list("abcd")).model_dump() == {
        "mean": 0.5,
        "low": 0.5,
        "high": 0.5,
        "pairs": 4,
        "prompts": 4,
    }


def test_every_pair_has_the_same_weight() -> None:
    interval = accuracy_by_prompt([1.0, 1.0, 1.0, -1.0], ["a", "a", "a", "b"])
    assert interval.mean == 0.75  # not the mean of prompt means, .5
    assert (interval.pairs, interval.prompts) == (4, 2)


@quickly
@given(st.lists(st.tuples(st.sampled_from([-1.0, 0.0, 2.0]), st.integers(0, 9)), min_size=1, max_size=60))
def test_the_interval_contains_the_mean_and_is_within_0_and_1(pairs: list[tuple[float, int]]) -> None:
    interval = accuracy_by_prompt([d for d, _ in pairs], [str(prompt) for _, prompt in pairs])
    assert 0.0 <= interval.low <= interval.mean + 1e-12
    assert interval.mean - 1e-12 <= interval.high <= 1.0


def test_all_pairs_of_a_prompt_are_resampled_together() -> None:
    # two prompts, one all won, one all lost: a resample is 0, 1/2 or 1; 0 and 1 have probability 1/4 each
    wins, losses = [1.0] * 50, [-1.0] * 50
    together = accuracy_by_prompt(wins + losses, ["a"] * 50 + ["b"] * 50)
    assert (together.low, together.mean, together.high) == (0.0, 0.5, 1.0)
    apart = accuracy_by_prompt(wins + losses, [str(n) for n in range(100)])
    assert 0.35 < apart.low < apart.high < 0.65  # +- 1.96 x .05


def test_with_one_prompt_the_interval_is_over_pairs() -> None:
    """Sets of rewrites have one constant prompt; an interval over one prompt would have no width."""
    signs = [1.0, 1.0, -1.0] * 20
    constant = accuracy_by_prompt(signs, ["a"] * 60)
    assert constant.prompts == 1
    assert (constant.low, constant.high) == pytest.approx((2 / 3 - 0.12, 2 / 3 + 0.12), abs=0.04)


def test_copies_of_pairs_do_not_narrow_the_interval() -> None:
    generator = torch.Generator().manual_seed(5)
    d = [1.0 if u < 0.7 else -1.0 for u in torch.rand(100, generator=generator).tolist()]
    keys = [str(n) for n in range(100)]
    single = accuracy_by_prompt(d, keys)
    copied = accuracy_by_prompt(d * 9, keys * 9)
    assert copied.mean == pytest.approx(single.mean)
    assert width(copied) == pytest.approx(width(single), rel=0.01)
    naive = accuracy_by_prompt(d * 9, [str(n) for n in range(900)])
    # nine times the pairs, taken for new ones, would be three times as certain
    assert width(copied) == pytest.approx(3 * width(naive), rel=0.15)


def test_the_interval_has_the_width_of_a_binomial_one() -> None:
    d = [1.0] * 320 + [-1.0] * 80
    interval = accuracy_by_prompt(d, [str(n) for n in range(400)])
    expected = 1.96 * math.sqrt(0.8 * 0.2 / 400)
    assert (interval.mean - interval.low, interval.high - interval.mean) == pytest.approx((expected,) * 2, rel=0.15)


def test_the_interval_is_deterministic() -> None:
    d, keys = [1.0, -1.0, 1.0, 1.0], list("aabc")
    assert accuracy_by_prompt(d, keys) == accuracy_by_prompt(d, keys)
