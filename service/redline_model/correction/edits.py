"""The redline: word-level edits that turn a response into its correction."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from redline_model.correction.word_diff import Match, matches_between

_WORDS = re.compile(r"\s+|\w+|[^\w\s]")


class TextEdit(NamedTuple):
    """Replace ``response[start:end]`` by ``text``; character offsets, end exclusive."""

    op: Literal["insert", "delete", "replace"]
    start: int
    end: int
    text: str


def edits_between(response: str, correction: str) -> list[TextEdit]:
    """The word-level edits, in order and without overlap, that turn ``response`` into ``correction``.

    The time is bounded: long texts with little in common are replaced as a whole, or in a few large parts.
    """
    source, target = _WORDS.findall(response), _WORDS.findall(correction)
    starts = [0]
    for word in source:
        starts.append(starts[-1] + len(word))
    edits: list[TextEdit] = []
    i = k = 0  # everything before is unchanged or part of an edit
    for match in [*matches_between(source, target), Match(len(source), len(target), 0)]:
        text = "".join(target[k : match.start_b])
        if i < match.start_a or text:
            op: Literal["insert", "delete", "replace"]
            op = "insert" if i == match.start_a else "replace" if text else "delete"
            edits.append(TextEdit(op, starts[i], starts[match.start_a], text))
        i, k = match.start_a + match.size, match.start_b + match.size
    return edits


def apply_edits(response: str, edits: list[TextEdit]) -> str:
    """``response`` after all edits."""
    parts: list[str] = []
    end = 0
    for edit in edits:
        parts += [response[end : edit.start], edit.text]
        end = edit.end
    return "".join([*parts, response[end:]])
