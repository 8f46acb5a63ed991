"""Accuracy of rankings: pairs, and the three styles of RM-Bench; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def win(chosen: float, rejected: float) -> float:
    """1 if ``chosen`` is higher, 0 if ``rejected`` is, 1/2 for a tie."""
    return 1.0 if chosen > rejected else 0.0 if chosen < rejected else 0.5


def style_accuracies(chosen: Sequence[float], rejected: Sequence[float]) -> Mapping[str, float]:
    """RM-Bench's accuracies of one row: ``easy``, ``normal``, ``hard`` and their mean, ``accuracy``.

    With the styles in increasing order (concise, detailed, detailed with markdown) and ``W[i][j] = win(chosen[i],
    rejected[j])``: ``normal`` is the mean of the diagonal (equal styles), ``hard`` the mean above it (the rejected
    response has the richer style), ``easy`` the mean below it. Source: RM-Bench, arXiv 2410.16184, section 4; there a
    tie counts 0, here one half.

    Args:
        chosen, rejected: scores by style, equally many, at least 2.

    Raises:
        ValueError: their numbers differ or are below 2.
    """
    styles = range(len(chosen))
    if len(chosen) != len(rejected) or len(chosen) < 2:
        raise ValueError(f"{len(chosen)} chosen and {len(rejected)} rejected scores; need equally many, at least 2")
    groups = {
        "easy": [(i, j) for i in styles for j in styles if i > j],
        "normal": [(i, i) for i in styles],
        "hard": [(i, j) for i in styles for j in styles if i < j],
    }
    values = {name: sum(win(chosen[i], rejected[j]) for i, j in at) / len(at) for name, at in groups.items()}
    return {**values, "accuracy": sum(values.values()) / len(values)}
