"""Measures whether negative token rewards are on the words that humans have marked as errors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from redline.measures import localisation
from redline.spans import Span, share_characters
from redline_trainer.evaluation.accuracy import Interval, mean_by_prompt

_RESAMPLES = 400


class SpanDetection(BaseModel):
    """How well error scores (negated token rewards) detect the marked tokens.

    Intervals are 95 % bootstrap intervals; prompts are resampled with all their responses.

    ``auc``: area under the ROC curve, the probability that a marked token has a higher error score than an unmarked
    one; ties count half.
    ``average_precision``: mean precision at every marked token, in decreasing order of error scores.
    ``marked_share``: share of marked tokens, which is the average precision of random error scores.
    ``tokens``: number of tokens.
    ``auc_resamples``: the AUC of each resample. Other error scores for the same responses are resampled in the same
    way, so that differences are paired.
    """

    auc: float
    auc_low: float
    auc_high: float
    average_precision: float
    average_precision_low: float
    average_precision_high: float
    marked_share: float
    tokens: int
    auc_resamples: list[float] = Field(repr=False)


def error_tokens(offsets: Sequence[Span], spans: Sequence[Span]) -> Tensor:
    """True for every token ``(T,)`` that shares a character with a span. Empty tokens and spans share none."""
    return torch.tensor(share_characters(offsets, spans), dtype=torch.bool)


def roc_auc(error_scores: Tensor, marked: Tensor, weights: Tensor | None = None) -> float:
    """Area under the ROC curve of ``error_scores`` for ``marked``, both ``(N,)``; ties count half.

    0.5 if no token or every token is marked. ``weights`` ``(N,)``: how often each token counts.
    """
    w = torch.ones_like(error_scores, dtype=torch.float64) if weights is None else weights.double()
    levels, index = torch.unique(error_scores, return_inverse=True)
    positive = torch.zeros(len(levels), dtype=torch.float64).index_add_(0, index, w * marked)
    negative = torch.zeros(len(levels), dtype=torch.float64).index_add_(0, index, w * ~marked)
    total = float(positive.sum() * negative.sum())
    below = negative.cumsum(0) - negative
    return float((positive * (below + negative / 2)).sum()) / total if total else 0.5


def within_response_auc(
    error_scores: Sequence[Tensor], marked: Sequence[Tensor | None], keys: Sequence[str]
) -> Interval | None:
    """The mean of the areas within single responses, with its interval by prompt.

    Responses without an area are left out: those that are not annotated (``marked`` is None), and those in which no
    token or every token is marked. None if no response is left.
    """
    found = [
        (area, key)
        for row, marks, key in zip(error_scores, marked, keys, strict=True)
        if marks is not None and (area := localisation.roc_auc(row.tolist(), marks.tolist())) is not None
    ]
    return mean_by_prompt([area for area, _ in found], [key for _, key in found]) if found else None


def average_precision(error_scores: Tensor, marked: Tensor, weights: Tensor | None = None) -> float:
    """Mean precision at the marked tokens in decreasing order of ``error_scores`` ``(N,)``. Ties have equal precision.

    0 if no token is marked.
    """
    w = torch.ones_like(error_scores, dtype=torch.float64) if weights is None else weights.double()
    levels, index = torch.unique(-error_scores, return_inverse=True)
    positive = torch.zeros(len(levels), dtype=torch.float64).index_add_(0, index, w * marked)
    every = torch.zeros(len(levels), dtype=torch.float64).index_add_(0, index, w)
    seen = every.cumsum(0)
    precision = positive.cumsum(0) / seen.clamp_min(1e-12)
    total = float(positive.sum())
    return float((positive * precision).sum()) / total if total else 0.0


def span_detection(
    error_scores: Sequence[Tensor], marked: Sequence[Tensor], keys: Sequence[str], seed: int = 0
) -> SpanDetection:
    """Figures over the tokens of all responses, with one tensor ``(T,)`` per response.

    Args:
        keys: one per response, equal for responses to the same prompt.
    """
    position = {key: n for n, key in enumerate(dict.fromkeys(keys))}
    prompt_index = torch.cat([torch.full((len(s),), position[k]) for s, k in zip(error_scores, keys, strict=True)])
    all_scores, all_marked = torch.cat(list(error_scores)), torch.cat(list(marked))
    generator = torch.Generator().manual_seed(seed)
    aucs, precisions = [], []
    for _ in range(_RESAMPLES):
        resample = torch.randint(len(position), (len(position),), generator=generator)
        weights = torch.bincount(resample, minlength=len(position))[prompt_index]
        aucs.append(roc_auc(all_scores, all_marked, weights))
        precisions.append(average_precision(all_scores, all_marked, weights))
    quantiles = torch.tensor([0.025, 0.975], dtype=torch.float64)
    auc_low, auc_high = torch.tensor(aucs, dtype=torch.float64).quantile(quantiles).tolist()
    low, high = torch.tensor(precisions, dtype=torch.float64).quantile(quantiles).tolist()
    return SpanDetection(
        auc=roc_auc(all_scores, all_marked),
        auc_low=auc_low,
        auc_high=auc_high,
        average_precision=average_precision(all_scores, all_marked),
        average_precision_low=low,
        average_precision_high=high,
        marked_share=float(all_marked.double().mean()),
        tokens=len(all_scores),
        auc_resamples=aucs,
    )


def auc_difference(first: SpanDetection, second: SpanDetection) -> tuple[float, float, float]:
    """``first.auc - second.auc`` and its paired 95 % interval. Both must be of the same responses."""
    differences = torch.tensor(first.auc_resamples, dtype=torch.float64) - torch.tensor(
        second.auc_resamples, dtype=torch.float64
    )
    low, high = differences.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return first.auc - second.auc, low, high
