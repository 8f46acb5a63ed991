"""The redline: word-level edits that turn a response into its correction."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from redline_model.correction.word_diff import differences_between

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
    for start, end, start_target, end_target in differences_between(source, target):
        text = "".join(target[start_target:end_target])
        op: Literal["insert", "delete", "replace"]
        op = "insert" if start == end else "replace" if text else "delete"
        edits.append(TextEdit(op, starts[start], starts[end], text))
    return edits


def token_edits(response_ids: Sequence[int], correction_ids: Sequence[int]) -> Tensor:
    """How much of its correction each token of a response is responsible for, ``(T,)`` float64, at least 0.

    1 for a token that the correction deletes or replaces. Each token that it inserts without replacing one adds 1/2 to
    the response's next token, which is the end token if the response lacks its end.
    """
    charges = torch.zeros(len(response_ids), dtype=torch.float64)
    for start, end, start_written, end_written in differences_between(response_ids, correction_ids):
        charges[start:end] += 1
        inserted = (end_written - start_written) - (end - start)
        if inserted > 0 and len(charges):
            charges[min(end, len(charges) - 1)] += inserted / 2
    return charges


def apply_edits(response: str, edits: list[TextEdit]) -> str:
    """``response`` after all edits."""
    parts: list[str] = []
    end = 0
    for edit in edits:
        parts += [response[end : edit.start], edit.text]
        end = edit.end
    return "".join([*parts, response[end:]])
