"""Joins neighbouring edits so that people can read them: a mostly rewritten passage becomes one replacement; pure.

An edit script by words keeps every common word. If a sentence is rewritten completely, single kept words alternate with
single changed ones, which is hard to read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from redline.wire import Edit

# Edits with fewer kept words than this between them may be joined.
MAX_KEPT_WORDS = 3
_WORD = re.compile(r"\w+")


class _Run(NamedTuple):
    """``edits[first : last + 1]`` as one edit, with its numbers of removed and added words (kept words in both)."""

    first: int
    last: int
    removed: int
    added: int

    def can_absorb(self, kept: int) -> bool:
        return kept <= max(self.removed, self.added)


def grouped(response: str, edits: Sequence[Edit]) -> list[Edit]:
    """``edits`` with neighbouring edits joined; the result is the same text.

    Two edits are joined if fewer than ``MAX_KEPT_WORDS`` words and no line break are between them, and neither edit has
    fewer words than the text between: two corrected words around a kept pair of words stay two edits. (The second
    condition is that of the semantic cleanup in diff-match-patch.)

    Args:
        edits: in order and without overlaps; offsets into ``response``.
    """
    runs: list[_Run] = []
    for index, edit in enumerate(edits):
        run = _Run(index, index, _words(response[edit.start : edit.end]), _words(edit.text))
        while runs:
            previous = runs[-1]
            between = response[edits[previous.last].end : edits[run.first].start]
            kept = _words(between)
            if kept >= MAX_KEPT_WORDS or "\n" in between or not (previous.can_absorb(kept) and run.can_absorb(kept)):
                break
            runs.pop()
            run = _Run(
                previous.first, run.last, previous.removed + kept + run.removed, previous.added + kept + run.added
            )
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
