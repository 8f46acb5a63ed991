"""Measures of localisation and ranking, compared with slow definitions and with those of the trainer."""

from __future__ import annotations

import random
from itertools import permutations
from statistics import fmean

import pytest
import torch

from redline.measures.intervals import mean_interval, paired_difference, statistic_interval
from redline.measures.localisation import is_left_alone, precision_at_marked, response_measures, roc_auc
from redline.measures.ranking import style_accuracies, win
from redline_trainer.evaluation import accuracy, error_spans


def random_response(generator: random.Random, tokens: int) -> tuple[list[float], list[bool]]:
    """Scores with many ties, and marks."""
    return [generator.randrange(5) / 2 for _ in range(tokens)], [generator.random() < 0.3 for _ in range(tokens)]


@pytest.mark.parametrize("seed", range(20))
def test_auc_is_the_probability_over_pairs_and_equals_that_of_the_trainer(seed: int) -> None:
    scores, marked = random_response(random.Random(seed), 30)
    pairs = [win(a, b) for a, m in zip(scores, marked, strict=True) if m
             for b, n in zip(scores, marked, strict=True) if not n]  # fmt: skip
    assert roc_auc(scores, marked) == pytest.approx(fmean(pairs))
    weights = [float(random.Random(seed + 1).randrange(1, 4)) for _ in scores]
    tensors = (torch.tensor(scores, dtype=torch.float64), torch.tensor(marked), torch.tensor(weights))
    assert roc_auc(scores, marked) == pytest.approx(error_spans.roc_auc(*tensors[:2]))
    assert roc_auc(scores, marked, weights) == pytest.approx(error_spans.roc_auc(*tensors))


def test_measures_without_a_meaning_are_none() -> None:
    assert roc_auc([1.0, 2.0], [True, True]) is None
    assert roc_auc([1.0, 2.0], [False, False]) is None
    assert roc_auc([], []) is None
    assert precision_at_marked([1.0, 2.0], [False, False]) is None
    assert precision_at_marked([1.0, 2.0], [True, True]) == 1.0
    assert response_measures([1.0, 2.0], [True, True]) == {"precision": 1.0}


@pytest.mark.parametrize("measure", [roc_auc, precision_at_marked])
def test_a_score_that_is_not_a_number_is_refused(measure: object) -> None:
    with pytest.raises(ValueError, match="NaN"):
        measure([1.0, float("nan")], [True, False])  # type: ignore[operator]
    with pytest.raises(ValueError, match="2 scores for 1"):
        measure([1.0, 2.0], [True])  # type: ignore[operator]


@pytest.mark.parametrize("seed", range(10))
def test_precision_at_marked_is_the_mean_over_all_orders_of_ties(seed: int) -> None:
    scores, marked = random_response(random.Random(seed), 6)
    marked[0] = True
    wanted = sum(marked)
    found = []
    for order in permutations(range(6)):  # sorting is stable, so the permutation decides the order of ties
        top = sorted(order, key=lambda n: -scores[n])[:wanted]
        found.append(sum(marked[n] for n in top) / wanted)
    assert precision_at_marked(scores, marked) == pytest.approx(fmean(found))


def test_only_scores_above_the_threshold_are_reports_of_errors() -> None:
    assert is_left_alone([-1.0, 0.0], 0.0)
    assert not is_left_alone([-1.0, 1e-9], 0.0)


def test_styles_are_compared_as_in_rm_bench() -> None:
    # the scorer likes style (0, 1, 2) and hardly content: right whenever the chosen side is at least as rich
    styled = style_accuracies([0.1, 1.1, 2.1], [0.0, 1.0, 2.0])
    assert styled == pytest.approx({"easy": 1.0, "normal": 1.0, "hard": 0.0, "accuracy": 2 / 3})
    # row 1 of W: only (1, 2) is wrong; ties count half
    mixed = style_accuracies([3.0, 1.0, 2.0], [0.0, 1.0, 1.5])
    assert mixed == pytest.approx({"easy": 1.0, "normal": 2.5 / 3, "hard": 2 / 3, "accuracy": 2.5 / 3})
    with pytest.raises(ValueError, match="equally many"):
        style_accuracies([1.0, 2.0], [1.0])


def test_the_interval_of_grouped_means_agrees_with_the_trainers() -> None:
    generator = random.Random(3)
    groups = [f"prompt {n // 3}" for n in range(300)]
    differences = [generator.gauss(0.3, 1) for _ in groups]
    found = mean_interval([win(d, 0) for d in differences], groups, resamples=4000)
    expected = accuracy.accuracy_by_prompt(differences, groups)
    assert (found.mean, found.values, found.groups) == pytest.approx((expected.mean, 300, 100))
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.01)


def test_values_of_one_group_are_resampled_together() -> None:
    values = [float(n // 50) for n in range(100)]  # two prompts of fifty equal values
    alone, together = (mean_interval(values, groups) for groups in (list(map(str, range(100))), list(map(str, values))))
    assert (together.low, together.high) == (0.0, 1.0)
    assert alone.high - alone.low < 0.25
    assert mean_interval([2.0], ["a"])[:3] == (2.0, 2.0, 2.0)
    with pytest.raises(ValueError, match="no values"):
        mean_interval([], [])


def test_a_paired_difference_is_narrower_than_the_scorers_own_intervals() -> None:
    generator = random.Random(0)
    first = {str(n): generator.random() for n in range(200)}
    second = {key: value - 0.05 + generator.gauss(0, 0.02) for key, value in first.items()}
    groups = {key: key for key in first}
    found = paired_difference(first, {**second, "other": 3.0}, groups)
    assert found.mean == pytest.approx(0.05, abs=0.01)
    assert found.is_above_zero
    single = mean_interval(list(first.values()), list(first))
    assert found.high - found.low < 0.2 * (single.high - single.low)
    with pytest.raises(ValueError, match="no values"):
        paired_difference(first, {"other": 1.0}, groups)


def test_the_interval_of_a_statistic_is_that_of_the_mean_if_it_is_a_mean() -> None:
    generator = random.Random(1)
    values = [generator.random() for _ in range(100)]
    groups = [str(n // 2) for n in range(100)]

    def mean(weights: object) -> float:
        return sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)  # type: ignore[call-overload]

    found = statistic_interval(mean, groups, resamples=3000)
    assert found.mean == pytest.approx(fmean(values))
    expected = mean_interval(values, groups, resamples=3000)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.01)
