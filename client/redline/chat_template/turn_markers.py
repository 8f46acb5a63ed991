"""What a chat template writes between two turns in ordinary characters, which a caller's text could spell as well.

A border made of special tokens cannot be forged: they are never read in callers' text. ``[/INST]`` or ``<|user|>``
as ordinary text can, so a prompt that holds such a marker is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

# turns whose borders are looked at; the last answer is left out, for templates write thoughts into it
_SHAPES = (
    ("user", "assistant", "user", "assistant", "user"),
    ("system", "user", "assistant", "user"),
)
_WORD = re.compile(r"\w")
_LETTER = re.compile(r"[^\W\d_]")
_SIGN = re.compile(r"[^\w\s]")
_EMPTY_PAIR = re.compile(r"<(\w+)>\s*</\1>")  # a thought that was left out: part of an answer, not of a border
_OPENED = re.compile(r"(?<=\S)\s*<\w+>\s*$")  # a thought that is begun for the answer, behind what opens the turn


def turn_markers(
    render: Callable[[Sequence[str]], list[str] | None], special: re.Pattern[str] | None, *, opening: str = ""
) -> tuple[str, ...]:
    """Texts that mark a turn and are made of ordinary characters.

    A line of a border counts if it holds a letter and a sign and no special token: ``[/INST]``, ``<|user|>``,
    ``### Response:``. One that begins with a letter (``Human:``) is a word of any text and counts only with the
    white space that the template writes around it.

    Args:
        render: roles to what the template writes before, between and behind their contents; None if it refuses them.
        special: matches the tokenizer's special tokens; None where borders are of ordinary characters.
        opening: what the template writes behind a question to open the assistant's turn.
    """
    found: dict[str, None] = {}
    shapes = [pieces for pieces in map(render, _SHAPES) if pieces is not None]
    for border in [*(border for pieces in shapes for border in pieces[1:-1]), _OPENED.sub("", opening)]:
        for part in special.split(border) if special is not None else [border]:
            found.update(dict.fromkeys(_of_part(part)))
    return tuple(found)


def _of_part(part: str) -> Iterator[str]:
    part = _EMPTY_PAIR.sub("", part)
    lines = part.split("\n")
    for n, line in enumerate(lines):
        text = line.strip()
        if not _LETTER.search(text) or not _SIGN.search(text):
            continue
        if not _WORD.match(text[0]):
            yield text
        elif len([one for one in lines if one.strip()]) == 1:
            yield part
        else:
            yield ("\n" if n else "") + line + ("\n" if n + 1 < len(lines) else "")
