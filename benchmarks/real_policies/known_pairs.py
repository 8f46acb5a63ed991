"""Checks the evaluators on pairs whose order is known: people's rewrites against the texts that they rewrote."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.real_policies.metrics import Evaluators

if TYPE_CHECKING:
    from redline.preference_data.rows import Pair

Score = Callable[[Sequence[str]], Sequence[float | None]]


def known_pair_figures(evaluators: Evaluators, pairs: Sequence[Pair]) -> dict[str, Any]:
    """What each evaluator says of the two sides of ``pairs``.

    For an evaluator of single texts: the means of both sides, and the share of pairs in which the chosen side is
    better, equal and worse. ``chrf``: mean overlap of each rejected text with its rewrites, and with those of the next
    text. ``topic``: mean cosine of the two sides of a pair, and of the rejected side with the next pair's chosen side.
    """
    figures: dict[str, Any] = {"pairs": len(pairs)}
    scores: dict[str, tuple[Score, int]] = {}
    if evaluators.findings is not None:
        scores["findings"] = (evaluators.findings, -1)
    if evaluators.toxicity is not None:
        scores["toxicity"] = (evaluators.toxicity, -1)
    if evaluators.fluency is not None:
        scores["fluency"] = (evaluators.fluency, 1)
    for name, (score, better) in scores.items():
        chosen, rejected = score([pair.chosen for pair in pairs]), score([pair.rejected for pair in pairs])
        figures[name] = side_figures(chosen, rejected, better)
    rewrites: dict[str, list[str]] = {}
    for pair in pairs:
        rewrites.setdefault(pair.rejected, []).append(pair.chosen)
    texts, own = list(rewrites), list(rewrites.values())
    if evaluators.overlap is not None and len(texts) > 1:
        shifted = [*own[1:], own[0]]
        both = [evaluators.overlap(texts, references) for references in (own, shifted)]
        figures["chrf"] = {name: sum(v) / len(v) for name, v in zip(("own", "other"), both, strict=True)}
    if evaluators.embeddings is not None and len(texts) > 1:
        first = evaluators.embeddings(texts)
        second = evaluators.embeddings([several[0] for several in own])
        figures["topic"] = {
            "own": float((first * second).sum(-1).mean()),
            "other": float((first * second.roll(-1, 0)).sum(-1).mean()),
        }
    return figures


def side_figures(chosen: Sequence[float | None], rejected: Sequence[float | None], better: int) -> Mapping[str, float]:
    """Means of both sides, and the shares of pairs in which the chosen side is better, equal and worse.

    Args:
        better: 1 if a higher value is better, -1 if a lower one is.
    """
    both = [(c, r) for c, r in zip(chosen, rejected, strict=True) if c is not None and r is not None]
    differences = [better * (c - r) for c, r in both]
    count = max(1, len(both))
    return {
        "chosen": sum(c for c, _ in both) / count,
        "rejected": sum(r for _, r in both) / count,
        "chosen_better": sum(d > 0 for d in differences) / count,
        "equal": sum(d == 0 for d in differences) / count,
        "chosen_worse": sum(d < 0 for d in differences) / count,
    }
