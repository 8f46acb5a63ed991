"""A strict JSON parser: no NaN, no huge numbers, no half surrogate pairs. Standard library only."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn


def parse_json(line: bytes) -> Any:
    """Parse a line of JSON.

    Raises:
        ValueError: the line is not JSON in UTF-8, or has NaN, infinity, a number of thousands of digits, a thousand
            levels of nesting, or half a surrogate pair. The message has the reason.
    """
    try:
        text = line.decode()
        value = STRICT.decode(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error_reason(error)}") from error
    check_surrogates(value, text)
    return value


def check_surrogates(value: Any, text: str) -> None:
    """Raise ValueError if ``value``, which was parsed from ``text``, has half a surrogate pair."""
    if "\\u" not in text:
        return
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError("is not valid Unicode: it holds half a surrogate pair") from error
    except RecursionError as error:
        raise ValueError(f"not JSON: {error_reason(error)}") from error


def error_reason(error: Exception) -> str:
    """The reason of a parser's error, for a message."""
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


def _bounded_int(digits: str) -> int:
    if len(digits) > 1000:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


STRICT = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite, parse_int=_bounded_int)
# finds the end of a value that STRICT refuses for one of its numbers
LENIENT = json.JSONDecoder(parse_constant=str, parse_float=str, parse_int=str)
