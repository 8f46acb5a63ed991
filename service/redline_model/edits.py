"""The redline: the edits that turn a response into its correction."""

from __future__ import annotations

import re
from difflib import SequenceMatcher
from typing import Literal, NamedTuple

_PIECES = re.compile(r"\s+|\w+|[^\w\s]")


class TextEdit(NamedTuple):
    """Replace ``response[start:end]`` by ``text``; character offsets, end exclusive."""

    op: Literal["insert", "delete", "replace"]
    start: int
    end: int
    text: str


def edits_between(response: str, correction: str) -> list[TextEdit]:
    """The word-level edits, in order and without overlap, that turn ``response`` into ``correction``."""
    source, target = _PIECES.findall(response), _PIECES.findall(correction)
    starts = [0]
    for piece in source:
        starts.append(starts[-1] + len(piece))
    edits: list[TextEdit] = []
    for op, i, j, k, m in SequenceMatcher(None, source, target, autojunk=False).get_opcodes():
        if op == "insert" or op == "delete" or op == "replace":
            edits.append(TextEdit(op, starts[i], starts[j], "".join(target[k:m])))
    return edits


def apply_edits(response: str, edits: list[TextEdit]) -> str:
    """The text after all edits."""
    parts: list[str] = []
    at = 0
    for edit in edits:
        parts += [response[at : edit.start], edit.text]
        at = edit.end
    return "".join([*parts, response[at:]])
