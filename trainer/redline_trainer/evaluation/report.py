"""The quality report of a reward model on held-out pairs: accuracy, length, calibration, detection of marked errors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor

from redline.files.atomic import atomic_file
from redline.preference_data.row_report import RowReport
from redline.preference_data.rows import Pair
from redline_model.errors import DataError
from redline_model.reward_spec import RewardSpec, all_reward_specs, reward_spec, spec_key
from redline_model.scorer import Scorer, outputs_and_corrections
from redline_trainer.correlation import pearson
from redline_trainer.encode_pairs import encode_pairs
from redline_trainer.evaluation.accuracy import Interval, accuracy_by_prompt
from redline_trainer.evaluation.calibration import expected_calibration_error, fit_temperature
from redline_trainer.evaluation.context_probes import (
    SourceDependence,
    TruncationProbe,
    source_dependence,
    truncation_probes,
)
from redline_trainer.evaluation.error_spans import SpanDetection, error_tokens, span_detection, within_response_auc
from redline_trainer.evaluation.lowess import lowess

_BINS = 10


class ReliabilityBin(BaseModel):
    """Pairs whose predicted probability of the chosen side lies in ``[low, high)``."""

    low: float
    high: float
    pairs: int
    predicted: float
    observed: float


class QualityReport(BaseModel):
    """Figures of one reward spec on one set of pairs.

    Prompts are split into two halves. LOWESS curve and temperature of a half are fitted on the other half. If all pairs
    have the same prompt, they are fitted on the pairs themselves.

    ``reading``: the reward spec.
    ``skipped_pairs``: pairs that were skipped because they are too long.
    ``accuracy``: share of pairs that are ranked correctly.
    ``longer_wins``: accuracy of preferring the longer response, in characters; ties count half. A reward that depends
    on length only reaches the larger of this figure and its complement.
    ``length_correlation``: Pearson's correlation of score and length in tokens, over all responses.
    ``length_correlation_calibrated``, ``accuracy_calibrated``: after the trend in length was subtracted, which is a
    LOWESS curve (arXiv 2409.17407).
    ``expected_calibration_error``, ``reliability``: of ``sigmoid(d / T)`` with a fitted temperature T.
    ``spans``: by reward spec, over the pairs that humans have checked for errors. ``within``: the same as the mean of
    the areas within single responses, which does not mix *where* an error is with *which* response has errors.
    ``source_dependence``, ``truncation``: see ``redline_trainer.evaluation.context_probes``.
    """

    reading: str
    skipped_pairs: int
    accuracy: Interval
    longer_wins: float
    length_correlation: float
    length_correlation_calibrated: float
    accuracy_calibrated: Interval
    expected_calibration_error: float
    reliability: list[ReliabilityBin]
    spans: dict[str, SpanDetection]
    within: dict[str, Interval] = {}
    source_dependence: SourceDependence | None = None
    truncation: TruncationProbe | None = None


def quality_report(
    scorer: Scorer[Any],
    pairs: Sequence[Pair],
    *,
    spec: RewardSpec | None = None,
    max_batch_tokens: int = 2048,
    report: RowReport | None = None,
) -> QualityReport:
    """Figures of ``scorer`` on ``pairs``. Pairs that are too long for it are skipped.

    Args:
        spec: None for the scorer's default. Figures of tokens are for all specs with aggregate ``sum``.
        report: collects pairs that cannot be used if it skips bad rows.

    Raises:
        DataError: no pair fits, or one cannot be used.
        NonFiniteError: the model's output contains NaN or infinity.
    """
    spec = spec or reward_spec(scorer)
    encoded, skipped = encode_pairs(scorer.encoder, pairs, "skip", report)
    if not encoded:
        raise DataError("no pair fits into this model")
    pairs = [pairs[pair.number] for pair in encoded]
    items = [pair.chosen for pair in encoded] + [pair.rejected for pair in encoded]
    # with error spans, every mode is measured, also those that need corrections
    has_spans = any(pair.spans for pair in pairs)
    with_corrections = spec.needs_correction or (has_spans and scorer.can_correct)
    outputs = outputs_and_corrections(scorer, items, max_batch_tokens, with_corrections=with_corrections)
    scored = [scorer.to_rewards(output, spec, correction) for output, correction in outputs]
    scores = torch.tensor([response.score for response in scored], dtype=torch.float64)
    lengths = torch.tensor([len(item.target_ids) for item in items], dtype=torch.float64)
    keys = [pair.prompt_key for pair in pairs]
    halves = _halves(keys)
    chosen, rejected = scores.chunk(2)
    differences = chosen - rejected
    free = _without_trend(scores, lengths, torch.cat([halves, halves]))
    probabilities, error = _probabilities(differences, halves)
    detections: dict[str, SpanDetection] = {}
    within: dict[str, Interval] = {}
    marks = [
        None if pair.spans is None or not has_spans else error_tokens(ids.rejected.offsets, pair.spans)
        for ids, pair in zip(encoded, pairs, strict=True)
    ]
    if has_spans:
        labels = [label for label in marks if label is not None]
        checked = [n for n, label in enumerate(marks) if label is not None]
        checked_keys = [keys[n] for n in checked]
        for token_spec in all_reward_specs(scorer, with_corrections=with_corrections):
            if token_spec.aggregate == "sum" and token_spec.score_mode is None:
                rejected_outputs = [outputs[len(encoded) + n] for n in checked]
                rewards = [
                    scorer.to_rewards(output, token_spec, written).rewards for output, written in rejected_outputs
                ]
                error_scores = [-torch.tensor(row, dtype=torch.float64) for row in rewards]
                detections[spec_key(scorer, token_spec)] = span_detection(error_scores, labels, checked_keys)
                interval = within_response_auc(error_scores, labels, checked_keys)
                if interval is not None:
                    within[spec_key(scorer, token_spec)] = interval
    probes = truncation_probes(scorer, encoded, outputs[: len(encoded)], [spec], max_batch_tokens)
    longer = torch.tensor([float(len(p.chosen) - len(p.rejected)) for p in pairs])
    return QualityReport(
        reading=spec_key(scorer, spec),
        skipped_pairs=skipped,
        accuracy=accuracy_by_prompt(differences.tolist(), keys),
        longer_wins=float(((longer > 0).double() + 0.5 * (longer == 0).double()).mean()),
        length_correlation=float(pearson(scores, lengths)),
        length_correlation_calibrated=float(pearson(free, lengths)),
        accuracy_calibrated=accuracy_by_prompt((free[: len(pairs)] - free[len(pairs) :]).tolist(), keys),
        expected_calibration_error=error,
        reliability=reliability(probabilities),
        spans=detections,
        within=within,
        source_dependence=source_dependence(
            scorer, encoded, [output for output, _ in outputs], marks, max_batch_tokens
        ),
        truncation=None if probes is None else probes[0],
    )


def _halves(keys: Sequence[str]) -> Tensor:
    """The half of each pair ``(N,)``, False or True, equal for pairs of one prompt."""
    position = {key: n for n, key in enumerate(dict.fromkeys(keys))}
    return torch.tensor([position[key] % 2 == 1 for key in keys])


def _without_trend(scores: Tensor, lengths: Tensor, halves: Tensor) -> Tensor:
    """Scores minus their LOWESS trend in length, which is fitted on the other half; all ``(N,)``.

    Outside of the lengths on which it was fitted, a curve is constant, as a served ``LengthCurve`` is.
    """
    free = scores.clone()
    for half in (False, True):
        in_half, in_other_half = halves == half, halves != half
        in_other_half = in_other_half if in_other_half.any() else in_half
        if in_half.any():
            distinct, place = torch.unique(lengths[in_half], return_inverse=True)
            known = distinct.clamp(lengths[in_other_half].min(), lengths[in_other_half].max())
            free[in_half] = scores[in_half] - lowess(lengths[in_other_half], scores[in_other_half], known)[place]
    return free


def _probabilities(differences: Tensor, halves: Tensor) -> tuple[Tensor, float]:
    """P(chosen wins) ``(N,)`` with the temperature of the other half, and the expected calibration error."""
    scaled = differences.clone()
    for half in (False, True):
        in_half, in_other_half = halves == half, halves != half
        if in_half.any():
            scaled[in_half] = differences[in_half] / fit_temperature(
                differences[in_other_half if in_other_half.any() else in_half]
            )
    return torch.sigmoid(scaled), expected_calibration_error(scaled, 1.0)


def reliability(probabilities: Tensor) -> list[ReliabilityBin]:
    """Predicted and observed probabilities in bins, from P(chosen wins) ``(N,)`` and its complement.

    Bins have equal width over [0, 1]; empty ones are omitted. The chosen side wins by definition, so the observed share
    of the complement is 0.
    """
    predicted = torch.cat([probabilities, 1 - probabilities])
    observed = torch.cat([torch.ones_like(probabilities), torch.zeros_like(probabilities)])
    index = (predicted * _BINS).long().clamp(max=_BINS - 1)
    bins = []
    for b in range(_BINS):
        in_bin = index == b
        if in_bin.any():
            bins.append(
                ReliabilityBin(
                    low=b / _BINS,
                    high=(b + 1) / _BINS,
                    pairs=int(in_bin.sum()),
                    predicted=float(predicted[in_bin].mean()),
                    observed=float(observed[in_bin].mean()),
                )
            )
    return bins


def plot_reliability(reports: dict[str, QualityReport], path: Path) -> None:
    """Plot observed against predicted probability, one line per report. Raises OSError."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(1, 1, 1)
    axes.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=1)
    for name, report in reports.items():
        points = [(b.predicted, b.observed) for b in report.reliability]
        label = f"{name} (ECE {report.expected_calibration_error:.3f})".replace(
            "$", r"\$"
        )  # matplotlib would render $...$ as a formula
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, linewidth=1.2, label=label)
    axes.set_xlabel("predicted probability of preference")
    axes.set_ylabel("observed share")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.25)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        figure.savefig(file, dpi=110, format="png")
