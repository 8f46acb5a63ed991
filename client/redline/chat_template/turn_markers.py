"""Turn markers that a chat template writes in ordinary characters, so that a caller's text could contain them too.

A boundary of special tokens cannot be forged, because special tokens in callers' texts are tokenised as ordinary text.
``[/INST]`` or ``<|user|>`` as ordinary text can be forged, so a prompt that contains such a marker is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

# turns whose boundaries are examined; the end after the last answer is not, because templates write reasoning there
_ROLE_SEQUENCES = (
    ("user", "assistant", "user", "assistant", "user"),
    ("system", "user", "assistant", "user"),
)
_WORD = re.compile(r"\w")
_LETTER = re.compile(r"[^\W\d_]")
_SYMBOL = re.compile(r"[^\w\s]")
_EMPTY_PAIR = re.compile(r"<(\w+)>\s*</\1>")  # empty reasoning: part of an answer, not of a boundary
_OPENED_REASONING = re.compile(r"(?<=\S)\s*<\w+>\s*$")  # reasoning that is opened for the answer


def turn_markers(
    render: Callable[[Sequence[str]], list[str] | None], special: re.Pattern[str] | None, *, opening: str = ""
) -> tuple[str, ...]:
    """The texts of ordinary characters that mark a turn.

    A line of a boundary is a marker if it has a letter and a symbol and no special token: ``[/INST]``, ``<|user|>``,
    ``### Response:``. A line that begins with a letter (``Human:``) could be a word of any text, so it is a marker only
    together with the white space that the template writes around it.

    Args:
        render: from roles to what the template writes before, between and after their contents; None if it refuses.
        special: matches the tokenizer's special tokens; None if all boundaries are ordinary characters.
        opening: what the template writes after a question to open the assistant's turn.
    """
    markers: dict[str, None] = {}
    rendered = [texts for texts in map(render, _ROLE_SEQUENCES) if texts is not None]
    for boundary in [*(boundary for texts in rendered for boundary in texts[1:-1]), _OPENED_REASONING.sub("", opening)]:
        for part in special.split(boundary) if special is not None else [boundary]:
            markers.update(dict.fromkeys(_markers_in(part)))
    return tuple(markers)


def _markers_in(part: str) -> Iterator[str]:
    part = _EMPTY_PAIR.sub("", part)
    lines = part.split("\n")
    for n, line in enumerate(lines):
        text = line.strip()
        if not _LETTER.search(text) or not _SYMBOL.search(text):
            continue
        if not _WORD.match(text[0]):
            yield text
        elif sum(bool(other.strip()) for other in lines) == 1:
            yield part
        else:
            yield ("\n" if n else "") + line + ("\n" if n + 1 < len(lines) else "")
