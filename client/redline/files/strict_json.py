"""JSON as any parser takes it: without NaN, endless numbers or half surrogate pairs. Standard library only."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn


def parse_json(line: bytes) -> Any:
    """The value that a line holds.

    Raises:
        ValueError: the line is not JSON in UTF-8, or holds what no JSON parser has to take: NaN, infinity, numbers of
            thousands of digits, nesting of a thousand levels, half a surrogate pair. The message says which.
    """
    try:
        text = line.decode()
        value = STRICT.decode(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {reason_of(error)}") from error
    check_surrogates(value, text)
    return value


def check_surrogates(value: Any, text: str) -> None:
    """Raise ValueError where ``value``, which was parsed from ``text``, holds half a surrogate pair."""
    if "\\u" not in text:
        return
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError("is not valid Unicode: it holds half a surrogate pair") from error
    except RecursionError as error:
        raise ValueError(f"not JSON: {reason_of(error)}") from error


def reason_of(error: Exception) -> str:
    """What a parser's error says, fit to be shown."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8: {error.reason} at byte {error.start}"
    return str(error)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"the number {digits[:20]} is too large")
    return value


def _whole(digits: str) -> int:
    if len(digits) > 1000:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


STRICT = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite, parse_int=_whole)
# finds the end of a value that STRICT refuses for one of its numbers
LENIENT = json.JSONDecoder(parse_constant=str, parse_float=str, parse_int=str)
