"""Text from elsewhere, made fit for a terminal or a log. Standard library only.

What a service, a file or a model writes may hold escape sequences: shown as it is, it would recolour a terminal, move
its cursor, set its title, or forge lines of a log.
"""

from __future__ import annotations

import re

_LONGEST_MESSAGE = 1000
# one character for each, so that offsets stay right
_VISIBLE: dict[int, int] = {
    **{code: 0x2400 + code for code in range(0x20) if code not in {0x09, 0x0A}},
    0x7F: 0x2421,
    **dict.fromkeys(range(0x80, 0xA0), 0xFFFD),
    # what turns the direction of the text around it
    **dict.fromkeys([0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)], 0xFFFD),
    0x2028: 0x240A,
    0x2029: 0x240A,
    **dict.fromkeys(range(0xD800, 0xE000), 0xFFFD),
}
_UNFIT_IN_JSON = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def one_line(text: str) -> str:
    """``text`` on one line, without control characters, and not at any length: blanks stand in their place."""
    shown = text if len(text) <= _LONGEST_MESSAGE else f"{text[:_LONGEST_MESSAGE]}..."
    return "".join(c if c.isprintable() else " " for c in shown)


def visible(text: str) -> str:
    """``text`` with a picture or U+FFFD for every control character but line ends and tabs; of the same length."""
    return text.translate(_VISIBLE)


def visible_json(text: str) -> str:
    """JSON with every control character in it escaped; the values are the same."""
    return _UNFIT_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
