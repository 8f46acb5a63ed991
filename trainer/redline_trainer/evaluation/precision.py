"""Compares precisions (dtypes and quantisations) of a reward model: rewards, speed and memory."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from pydantic import BaseModel
from torch import Tensor

from redline.preference_data.row_report import RowReport
from redline.preference_data.rows import Pair
from redline_model.bundle.bundle import Bundle
from redline_model.bundle.load_options import LoadOptions
from redline_model.errors import DataError, UnsupportedError
from redline_model.extraction import TokenStatistics
from redline_model.reward_spec import reward_spec, spec_key
from redline_model.scorer import outputs_and_corrections
from redline_trainer.correlation import pearson
from redline_trainer.encode_pairs import encode_pairs
from redline_trainer.evaluation.accuracy import Interval, accuracy_by_prompt

Precision = Literal["float32", "bfloat16", "float16", "int8", "nf4"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


class PrecisionReport(BaseModel):
    """One precision, compared with the reference: the first precision of the list.

    ``accuracy``: share of pairs that are ranked correctly.
    ``argmax_agreement``: share of scored tokens at which both have the same most likely token; None for models without
    token probabilities.
    ``same_paper_rewards``: share of responses whose ``paper`` rewards are all equal.
    ``score_correlation``: Pearson's correlation of the default score, over responses.
    ``score_shift``: mean difference of that score.
    ``score_spread``: standard deviation of the reference's scores.
    ``judged_tokens_per_s``: response tokens that are scored per second.
    ``weights_mb``: memory of the weights, MiB.
    """

    precision: str
    accuracy: Interval
    argmax_agreement: float | None
    same_paper_rewards: float | None
    score_correlation: float
    score_shift: float
    score_spread: float
    judged_tokens_per_s: float
    weights_mb: float


class PrecisionTable(BaseModel):
    """Figures of every precision, and the bundle, device and pairs with which they were measured."""

    bundle: str
    digest: str
    device: str
    reading: str
    pairs: int
    skipped_pairs: int
    rows: list[PrecisionReport]


def load_options_of(precision: str, device: str) -> LoadOptions:
    """The options to load weights in ``precision``. Raises UnsupportedError for an unknown one."""
    if precision in {"int8", "nf4"}:
        # on a CPU the arithmetic between the quantised layers is float32; bfloat16 is slow there
        return LoadOptions(device=device, quantization=precision)  # type: ignore[arg-type]
    if precision not in PRECISIONS:
        raise UnsupportedError(f"unknown precision {precision!r}; supported are {', '.join(PRECISIONS)}")
    return LoadOptions(device=device, dtype=precision)  # type: ignore[arg-type]


def compare_precisions(
    bundle: str | Path,
    pairs: Sequence[Pair],
    precisions: Sequence[str],
    *,
    device: str = "auto",
    max_batch_tokens: int = 2048,
    report: RowReport | None = None,
) -> Iterator[PrecisionTable]:
    """Evaluate ``bundle`` on ``pairs`` in each of ``precisions``, and yield the table so far after each one.

    Models are loaded one after the other, so that only one is in memory. ``report`` collects pairs that cannot be used
    if it skips bad rows.

    Raises:
        DataError, BundleError, UnsupportedError: the pairs, the bundle or a precision cannot be used.
    """
    all_load_options = [load_options_of(precision, device) for precision in precisions]
    rows: list[PrecisionReport] = []
    reference: tuple[list[Any], Tensor] | None = None
    for precision, load_options in zip(precisions, all_load_options, strict=True):
        loaded = Bundle.load(bundle, load_options)
        scorer = loaded.scorer
        encoded, skipped = encode_pairs(scorer.encoder, pairs, "skip", report)
        if report is not None:
            report.finish()  # the other precisions leave out the same pairs
        if not encoded:
            raise DataError(f"all {skipped} pairs are too long for this model")
        items = [pair.chosen for pair in encoded] + [pair.rejected for pair in encoded]
        scorer.forward(items[:2])  # warm-up: the first passes are slower
        started = time.perf_counter()
        spec = reward_spec(scorer)
        results = outputs_and_corrections(scorer, items, max_batch_tokens, with_corrections=spec.needs_correction)
        seconds = time.perf_counter() - started
        outputs = [output for output, _ in results]
        scored = [scorer.to_rewards(output, spec, correction).score for output, correction in results]
        scores = torch.tensor(scored, dtype=torch.float64)
        reference = reference or (outputs, scores)
        chosen, rejected = scores.chunk(2)
        rows.append(
            PrecisionReport(
                precision=precision,
                accuracy=accuracy_by_prompt((chosen - rejected).tolist(), [pair.prompt_key for pair in encoded]),
                argmax_agreement=_argmax_agreement(outputs, reference[0]),
                same_paper_rewards=_same_paper_rewards(outputs, reference[0]),
                score_correlation=float(pearson(scores, reference[1], if_constant=1.0)),
                score_shift=float((scores - reference[1]).mean()),
                score_spread=float(reference[1].std()),
                judged_tokens_per_s=sum(len(item.target_ids) for item in items) / seconds,
                weights_mb=sum(model.get_memory_footprint() for model in scorer.models) / 2**20,
            )
        )
        yield PrecisionTable(
            bundle=str(bundle),
            digest=loaded.digest,
            device=str(scorer.model.device),
            reading=spec_key(scorer, spec),
            pairs=len(encoded),
            skipped_pairs=skipped,
            rows=list(rows),
        )
        del loaded, scorer
        gc.collect()


def _argmax_agreement(outputs: Sequence[Any], reference: Sequence[Any]) -> float | None:
    if not isinstance(outputs[0], TokenStatistics):
        return None
    best_ids, reference_ids = (torch.cat([output.best_ids for output in part]) for part in (outputs, reference))
    return float((best_ids == reference_ids).double().mean())


def _same_paper_rewards(outputs: Sequence[Any], reference: Sequence[Any]) -> float | None:
    if not isinstance(outputs[0], TokenStatistics):
        return None
    # ``paper`` rewards depend only on the agreement with the response
    same = [torch.equal(a.agrees, b.agrees) for a, b in zip(outputs, reference, strict=True)]
    return sum(same) / len(same)
