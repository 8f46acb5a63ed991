"""How well error scores find the marked tokens (or words) of responses; pure.

An error score is high where a scorer sees an error: the negated token reward. Tokens with equal scores are tied.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby


def roc_auc(scores: Sequence[float], marked: Sequence[bool], weights: Sequence[float] | None = None) -> float | None:
    """Probability that a marked token has a higher score than an unmarked one; ties count half.

    This is the area under the ROC curve, by the Mann-Whitney statistic. None if no token, or every token, is marked.

    Args:
        scores, marked: one entry per token.
        weights: how often each token counts; by default once.

    Raises:
        ValueError: the lengths differ, or a score is NaN.
    """
    _check(scores, marked)
    area = pooled_auc([[score] for score in scores], [[is_marked] for is_marked in marked])
    return area([1.0] * len(scores) if weights is None else weights)


def precision_at_marked(scores: Sequence[float], marked: Sequence[bool]) -> float | None:
    """Share of marked tokens among the k highest scores, where k is the number of marked tokens.

    If tokens are tied at the k-th score, each of them counts with the share of them that is needed: the expectation
    under a random order of ties. None if no token is marked. Raises ValueError as ``roc_auc`` does.
    """
    _check(scores, marked)
    wanted = sum(marked)
    if not wanted:
        return None
    sizes = Counter(scores)
    hits = Counter(score for score, is_marked in zip(scores, marked, strict=True) if is_marked)
    left, found = wanted, 0.0
    for score in sorted(sizes, reverse=True):
        taken = min(left, sizes[score])
        found += hits[score] * taken / sizes[score]
        left -= taken
        if not left:
            break
    return found / wanted


def is_left_alone(scores: Sequence[float], threshold: float) -> bool:
    """Whether no score is above ``threshold``: the scorer reports no error."""
    return all(score <= threshold for score in scores)


def highest(scores: Sequence[float]) -> float:
    """The highest score of a response, its error score as a whole. Raises ValueError if there is none."""
    return max(scores)


def _check(scores: Sequence[float], marked: Sequence[bool]) -> None:
    if len(scores) != len(marked):
        raise ValueError(f"{len(scores)} scores for {len(marked)} marks")
    if any(math.isnan(score) for score in scores):
        raise ValueError("a score is NaN")


def response_measures(scores: Sequence[float], marked: Sequence[bool]) -> Mapping[str, float]:
    """``auc`` and ``precision`` of one response, without those that are not defined for it."""
    values = {"auc": roc_auc(scores, marked), "precision": precision_at_marked(scores, marked)}
    return {name: value for name, value in values.items() if value is not None}


def pooled_auc(
    scores: Sequence[Sequence[float]], marked: Sequence[Sequence[bool]]
) -> Callable[[Sequence[float]], float | None]:
    """``roc_auc`` of the tokens of all responses together, as a function of how often each response counts.

    The tokens are sorted once, so that it is quick to call for many resamples.

    Args:
        scores, marked: one sequence per response, with one entry per token.

    Raises:
        ValueError: as ``roc_auc`` does.
    """
    for values, marks in zip(scores, marked, strict=True):
        _check(values, marks)
    tokens = (
        (score, is_marked, n)
        for n, (values, marks) in enumerate(zip(scores, marked, strict=True))
        for score, is_marked in zip(values, marks, strict=True)
    )
    levels = [
        [(is_marked, n) for _, is_marked, n in level]
        for _, level in groupby(sorted(tokens, key=lambda token: token[0]), key=lambda token: token[0])
    ]

    def area(weights: Sequence[float]) -> float | None:
        below = wins = positives = 0.0
        for level in levels:
            positive = negative = 0.0
            for is_marked, n in level:
                if is_marked:
                    positive += weights[n]
                else:
                    negative += weights[n]
            wins += positive * (below + negative / 2)
            below += negative
            positives += positive
        return wins / (positives * below) if positives and below else None

    return area
