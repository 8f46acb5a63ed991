"""One class a file; every scorer turns encoded items into judgements behind the same protocol."""

from __future__ import annotations

from redline_model.rewriting import Correction, Rewriter
from redline_model.scorers.dpo import DPOScorer
from redline_model.scorers.ensemble import Combine, EnsembleOptions, EnsembleScorer
from redline_model.scorers.length_calibrated import LengthCalibratedScorer, LengthCalibration, LengthCurve
from redline_model.scorers.protocol import (
    Judgement,
    Scorer,
    all_readings,
    correct_all,
    measure_all,
    reading_key,
    reading_of,
)
from redline_model.scorers.redistributed import RedistributedScorer
from redline_model.scorers.scalar import ScalarScorer
from redline_model.scorers.seq2seq import Seq2SeqScorer

__all__ = [
    "Combine",
    "Correction",
    "DPOScorer",
    "EnsembleOptions",
    "EnsembleScorer",
    "Judgement",
    "LengthCalibratedScorer",
    "LengthCalibration",
    "LengthCurve",
    "RedistributedScorer",
    "Rewriter",
    "ScalarScorer",
    "Scorer",
    "Seq2SeqScorer",
    "all_readings",
    "correct_all",
    "measure_all",
    "reading_key",
    "reading_of",
]
