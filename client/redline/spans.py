"""The type of a span, in the lightest place: texts, requests and evaluation all use it."""

from __future__ import annotations

# Characters (Unicode code points) of a text from start to end, end exclusive; of a token without text both are equal.
Span = tuple[int, int]
