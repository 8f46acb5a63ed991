"""The type of a character span, which texts, requests and evaluation share."""

from __future__ import annotations

# (start, end) in characters (Unicode code points), end exclusive; equal for a token without text.
Span = tuple[int, int]
