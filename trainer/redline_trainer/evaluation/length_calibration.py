"""Derives a length-calibrated bundle: scores minus their trend in length (arXiv 2409.17407)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from redline.preference_data.row_report import RowReport
from redline.preference_data.rows import Pair
from redline_model.bundle.bundle import Bundle, write_bundle
from redline_model.bundle.derive import (
    BundleMetrics,
    EvaluateScorer,
    copy_bundle,
    distinct,
    source_record,
    with_metrics,
)
from redline_model.bundle.files import check_free
from redline_model.bundle.load_options import LoadOptions
from redline_model.bundle.manifest import DataSource, Manifest
from redline_model.encoding.items import EncodedItem
from redline_model.errors import DataError, UnsupportedError
from redline_model.options import LengthCalibration, LengthCurve
from redline_model.reward_spec import all_reward_specs, spec_key
from redline_model.scorer import Scorer, outputs_and_corrections
from redline_model.scorers.length_calibrated import INNER, LengthCalibratedScorer
from redline_trainer.encode_pairs import encode_pairs
from redline_trainer.evaluation.accuracy import evaluate
from redline_trainer.evaluation.lowess import lowess

# Limit of the knots of a curve, to keep the manifest short.
_MAX_KNOTS = 200


def fit_length_curves(
    scorer: Scorer[Any], items: Sequence[EncodedItem], *, fraction: float = 0.3, max_batch_tokens: int = 2048
) -> dict[str, LengthCurve]:
    """The expected score by length for every reward spec of ``scorer``, over the responses ``items`` (at least one).

    Raises:
        NonFiniteError: the model's output contains NaN or infinity.
    """
    specs = all_reward_specs(scorer)
    with_corrections = any(spec.needs_correction for spec in specs)
    outputs = outputs_and_corrections(scorer, items, max_batch_tokens, with_corrections=with_corrections)
    curves: dict[str, LengthCurve] = {}
    lengths = torch.tensor([len(item.target_ids) for item in items], dtype=torch.float64)
    distinct = sorted({len(item.target_ids) for item in items})
    indices = torch.linspace(0, len(distinct) - 1, min(len(distinct), _MAX_KNOTS)).round().int().tolist()
    knots = torch.tensor([distinct[index] for index in indices], dtype=torch.float64)
    for spec in specs:
        scored = [scorer.to_rewards(output, spec, correction).score for output, correction in outputs]
        scores = torch.tensor(scored, dtype=torch.float64)
        values = lowess(lengths, scores, knots, fraction)
        curves[spec_key(scorer, spec)] = LengthCurve(lengths=knots.tolist(), values=values.tolist())
    return curves


def evaluate_on(
    pairs: Sequence[Pair],
    data: Sequence[DataSource],
    max_batch_tokens: int = 2048,
    report: RowReport | None = None,
) -> EvaluateScorer:
    """A function that evaluates and calibrates a derived bundle on ``pairs``. Pairs that are too long are skipped.

    ``report`` collects pairs that cannot be used if it skips bad rows. The function raises DataError if none is left.
    """

    def evaluate_scorer(scorer: Scorer[Any]) -> BundleMetrics:
        encoded, _ = encode_pairs(scorer.encoder, pairs, "skip", report)
        if not encoded:
            raise DataError("no pair fits into this model")
        evaluated = evaluate(scorer, encoded, max_batch_tokens)
        return BundleMetrics(evaluated.calibration, evaluated.evaluation.model_dump(exclude_none=True), list(data))

    return evaluate_scorer


def derive_length_calibrated(
    source: str | Path,
    out: str | Path,
    pairs: Sequence[Pair],
    *,
    fraction: float = 0.3,
    data: Sequence[DataSource] = (),
    load_options: LoadOptions | None = None,
    max_batch_tokens: int = 2048,
    overwrite: bool = False,
    report: RowReport | None = None,
) -> Manifest:
    """Write ``out``, the bundle ``source`` without its trend in length. The trend is fitted on both sides of ``pairs``.

    Calibration and figures are computed on the same pairs, so they are not an independent check.

    Args:
        fraction: share of the responses in each local regression.
        data: sources of the pairs, for the manifest.
        report: collects pairs that cannot be used if it skips bad rows.

    Raises:
        BundleError: ``source`` is not a bundle, or ``out`` exists and ``overwrite`` is not set.
        DataError: pairs cannot be used, or none is left.
        UnsupportedError: the fraction is out of range.
    """
    if not 0 < fraction <= 1:
        raise UnsupportedError(f"the fraction is {fraction}; it must be above 0 and at most 1")
    check_free(Path(out), overwrite=overwrite)
    bundle = Bundle.load(source, load_options)
    encoded, skipped = encode_pairs(bundle.scorer.encoder, pairs, "skip", report)
    if not encoded:
        raise DataError(f"there are no pairs to fit a curve on; {skipped} are too long for this model")
    usable = [pairs[pair.number] for pair in encoded]
    items = [side for pair in encoded for side in (pair.chosen, pair.rejected)]
    curves = fit_length_curves(bundle.scorer, items, fraction=fraction, max_batch_tokens=max_batch_tokens)
    inner = bundle.manifest
    manifest = Manifest(
        kind="length_calibrated",
        base_model=inner.base_model,
        max_tokens=inner.max_tokens,
        template=inner.template,
        extraction=inner.extraction,
        length_calibration=LengthCalibration(fraction=fraction, responses=len(items), curves=curves),
        data=distinct([*inner.data, *data]),
        training={"derived_from": [source_record(bundle)]},
    )
    scorer = LengthCalibratedScorer(bundle.scorer, curves)
    manifest = with_metrics(manifest, scorer, evaluate_on(usable, data, max_batch_tokens))
    return write_bundle(out, manifest, lambda folder: copy_bundle(bundle, folder / INNER), overwrite=overwrite)
