"""Scanning of texts for markers, each function in time linear in the text; pure, standard library only.

Positions are moved and texts are not copied: a text may be made of nothing but markers and white space.
"""

from __future__ import annotations

from collections.abc import Sequence

_SPACE_BLOCK = 256


def marker_at_end(text: str, end: int, known: Sequence[str]) -> str | None:
    """Which of ``known`` ``text[:end]`` ends with, trailing white space aside."""
    kept = end_of_content(text, end)
    return next((one for one in known if one and text.endswith(one, 0, kept)), None)


def end_before_marker(text: str, end: int, found: str) -> int:
    """Where ``text[:end]`` ends without ``found`` and the white space behind it."""
    return end_of_content(text, end) - len(found)


def end_of_content(text: str, end: int) -> int:
    """Where ``text[:end].rstrip()`` ends, in time linear in the white space."""
    while end > 0:
        block = text[max(0, end - _SPACE_BLOCK) : end]
        if kept := block.rstrip():
            return end - len(block) + len(kept)
        end -= len(block)
    return 0


def start_of_content(text: str, start: int) -> int:
    """Where ``text[start:].lstrip()`` begins, in time linear in the white space."""
    while start < len(text):
        block = text[start : start + _SPACE_BLOCK]
        if kept := block.lstrip():
            return start + len(block) - len(kept)
        start += len(block)
    return len(text)


def overlap(before: str, after: str) -> int:
    """Length of the longest end of ``before`` that ``after`` begins with (Knuth, Morris and Pratt, 1977)."""
    after = after[: len(before)]
    if not after:
        return 0
    borders = [0] * len(after)  # of each beginning of ``after``: its longest proper end that is a beginning, too
    matched = 0
    for n in range(1, len(after)):
        while matched and after[n] != after[matched]:
            matched = borders[matched - 1]
        matched += after[n] == after[matched]
        borders[n] = matched
    matched = 0
    for character in before:
        while matched and (matched == len(after) or character != after[matched]):
            matched = borders[matched - 1]
        matched += character == after[matched]
    return matched
