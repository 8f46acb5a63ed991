"""One class a file; every scorer turns encoded items into judgements behind the same protocol."""

from __future__ import annotations

from redline_model.rewriting import Correction, Rewriter
from redline_model.scorers.protocol import Judgement, Scorer, correct_all, measure_all, reading_of
from redline_model.scorers.scalar import ScalarScorer
from redline_model.scorers.seq2seq import Seq2SeqScorer

__all__ = [
    "Correction",
    "Judgement",
    "Rewriter",
    "ScalarScorer",
    "Scorer",
    "Seq2SeqScorer",
    "correct_all",
    "measure_all",
    "reading_of",
]
