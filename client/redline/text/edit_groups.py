"""Edits for people to read: a passage that is mostly rewritten is one replacement; pure.

An edit script by words keeps every word that two texts share. Where a sentence is rewritten as a whole, single kept
words stand between single changed ones, and nobody can read either text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from redline.wire import Edit

# Fewer kept words than this between two edits may be taken into one replacement.
MAX_KEPT_WORDS = 3
_WORD = re.compile(r"\w+")


class _Run(NamedTuple):
    """``edits[first : last + 1]`` as one, with the words that it takes out and puts in, kept ones on both sides."""

    first: int
    last: int
    removed: int
    added: int

    def is_worth(self, kept: int) -> bool:
        return kept <= max(self.removed, self.added)


def grouped(response: str, edits: Sequence[Edit]) -> list[Edit]:
    """``edits`` with runs of edits that little text separates made one replacement each; they lead to the same text.

    Two edits become one if fewer than ``MAX_KEPT_WORDS`` words and no line break stand between them, and neither edit
    is shorter in words than what stands between: two corrected words around a kept pair of words stay two edits.
    (The second condition is that of the semantic clean-up in diff-match-patch.)

    Args:
        edits: in order and without overlap, offsets into ``response``.
    """
    runs: list[_Run] = []
    for index, edit in enumerate(edits):
        run = _Run(index, index, _words(response[edit.start : edit.end]), _words(edit.text))
        while runs:
            before = runs[-1]
            between = response[edits[before.last].end : edits[run.first].start]
            kept = _words(between)
            if kept >= MAX_KEPT_WORDS or "\n" in between or not (before.is_worth(kept) and run.is_worth(kept)):
                break
            runs.pop()
            run = _Run(before.first, run.last, before.removed + kept + run.removed, before.added + kept + run.added)
        runs.append(run)
    return [_merged(response, edits[run.first : run.last + 1]) for run in runs]


def _words(text: str) -> int:
    return len(_WORD.findall(text))


def _merged(response: str, edits: Sequence[Edit]) -> Edit:
    start, end = edits[0].start, edits[-1].end
    parts: list[str] = []
    at = start
    for edit in edits:
        parts += [response[at : edit.start], edit.text]
        at = edit.end
    text = "".join(parts)
    op: Literal["insert", "delete", "replace"] = "insert" if start == end else "replace" if text else "delete"
    return Edit(op=op, start=start, end=end, text=text)
