"""Makes untrusted text safe for a terminal or a log. Standard library only.

Text from a service, a file or a model may contain escape sequences that change the colours of a terminal, move its
cursor, set its title, or forge log lines.
"""

from __future__ import annotations

import re

_MAX_MESSAGE = 1000
# one character each, so that offsets stay valid
_VISIBLE: dict[int, int] = {
    **{code: 0x2400 + code for code in range(0x20) if code not in {0x09, 0x0A}},
    0x7F: 0x2421,
    **dict.fromkeys(range(0x80, 0xA0), 0xFFFD),
    # characters that change the direction of text
    **dict.fromkeys([0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)], 0xFFFD),
    0x2028: 0x240A,
    0x2029: 0x240A,
    **dict.fromkeys(range(0xD800, 0xE000), 0xFFFD),
}
_UNFIT_IN_JSON = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def one_line(text: str) -> str:
    """``text`` on one line, cut to 1000 characters; control characters are replaced by blanks."""
    short = text if len(text) <= _MAX_MESSAGE else f"{text[:_MAX_MESSAGE]}..."
    return "".join(c if c.isprintable() else " " for c in short)


def visible(text: str) -> str:
    """``text`` with every control character except line ends and tabs replaced by a symbol or U+FFFD; same length."""
    return text.translate(_VISIBLE)


def visible_json(text: str) -> str:
    """JSON with every control character escaped; the values are the same."""
    return _UNFIT_IN_JSON.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
