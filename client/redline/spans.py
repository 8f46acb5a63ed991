"""Character spans, which texts, requests and evaluation share."""

from __future__ import annotations

from collections.abc import Sequence

# (start, end) in characters (Unicode code points), end exclusive; equal for a token without text.
Span = tuple[int, int]


def share_characters(spans: Sequence[Span], marked: Sequence[Span]) -> list[bool]:
    """Whether each of ``spans`` shares a character with one of ``marked``. Empty spans share none."""
    return [any(max(start, s) < min(end, e) for s, e in marked) for start, end in spans]
