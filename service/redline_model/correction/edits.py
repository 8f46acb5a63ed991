"""The redline: word-level edits that turn a response into its correction."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

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


def token_edits(response_ids: Sequence[int], correction_ids: Sequence[int]) -> Tensor:
    """How much of its correction each token of a response is responsible for, ``(T,)`` float64, at least 0.

    1 for a token that the correction deletes or replaces. Each token that it inserts without replacing one adds 1/2 to
    the response's next token, which is the end token if the response lacks its end.
    """
    charges = [0.0] * len(response_ids)
    end_response = end_correction = 0
    for match in [
        *matches_between(response_ids, correction_ids),
        Match(len(response_ids), len(correction_ids), 0),
    ]:
        removed, written = match.start_a - end_response, match.start_b - end_correction
        for position in range(end_response, match.start_a):
            charges[position] += 1.0
        if written > removed and charges:
            charges[min(match.start_a, len(charges) - 1)] += 0.5 * (written - removed)
        end_response, end_correction = match.start_a + match.size, match.start_b + match.size
    return torch.tensor(charges, dtype=torch.float64)


def apply_edits(response: str, edits: list[TextEdit]) -> str:
    """``response`` after all edits."""
    parts: list[str] = []
    end = 0
    for edit in edits:
        parts += [response[end : edit.start], edit.text]
        end = edit.end
    return "".join([*parts, response[end:]])
