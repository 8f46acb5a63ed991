"""Error scores of words, so that scorers with different tokenizers can be compared; pure."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence

from redline.spans import Span

_WORD = re.compile(r"\S+")


def word_spans(text: str) -> list[Span]:
    """The words of ``text``: its longest parts without white space."""
    return [match.span() for match in _WORD.finditer(text)]


def word_error_scores(words: Sequence[Span], offsets: Sequence[Span], rewards: Sequence[float]) -> list[float] | None:
    """The error score of each word: the highest negated reward of the tokens that share a character with it.

    Tokens without text (the end token) count for no word. None if no token covers some word.

    Args:
        words: in order, without overlaps.
        offsets, rewards: one entry per token, with characters into the response.
    """
    starts = [start for start, _ in words]
    scores: list[float | None] = [None] * len(words)
    for (start, end), reward in zip(offsets, rewards, strict=True):
        n = max(0, bisect_right(starts, start) - 1)
        while n < len(words) and words[n][0] < end:
            if max(words[n][0], start) < min(words[n][1], end):
                known = scores[n]
                scores[n] = -reward if known is None else max(known, -reward)
            n += 1
    return None if None in scores else [score for score in scores if score is not None]
