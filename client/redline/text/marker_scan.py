"""Finds markers at the ends of texts in linear time; pure, standard library only.

Functions return positions and do not copy the text: a text may consist of nothing but markers and white space.
"""

from __future__ import annotations

from collections.abc import Sequence

_SPACE_BLOCK = 256


def marker_at_end(text: str, end: int, markers: Sequence[str]) -> str | None:
    """The one of ``markers`` that ``text[:end]`` ends with, ignoring trailing white space; None if there is none."""
    content = trailing_space_start(text, end)
    return next((marker for marker in markers if marker and text.endswith(marker, 0, content)), None)


def end_before_marker(text: str, end: int, marker: str) -> int:
    """The end of ``text[:end]`` without ``marker`` and the white space after it."""
    return trailing_space_start(text, end) - len(marker)


def trailing_space_start(text: str, end: int) -> int:
    """The end of ``text[:end].rstrip()``, in time linear in the white space."""
    while end > 0:
        block = text[max(0, end - _SPACE_BLOCK) : end]
        if content := block.rstrip():
            return end - len(block) + len(content)
        end -= len(block)
    return 0


def skip_leading_space(text: str, start: int) -> int:
    """The start of ``text[start:].lstrip()``, in time linear in the white space."""
    while start < len(text):
        block = text[start : start + _SPACE_BLOCK]
        if content := block.lstrip():
            return start + len(block) - len(content)
        start += len(block)
    return len(text)


def overlap(before: str, after: str) -> int:
    """Length of the longest suffix of ``before`` that is a prefix of ``after`` (Knuth, Morris and Pratt, 1977)."""
    after = after[: len(before)]
    if not after:
        return 0
    # for each prefix of ``after``: length of its longest proper suffix that is also a prefix
    prefix_function = [0] * len(after)
    matched = 0
    for n in range(1, len(after)):
        while matched and after[n] != after[matched]:
            matched = prefix_function[matched - 1]
        matched += after[n] == after[matched]
        prefix_function[n] = matched
    matched = 0
    for character in before:
        while matched and (matched == len(after) or character != after[matched]):
            matched = prefix_function[matched - 1]
        matched += character == after[matched]
    return matched
