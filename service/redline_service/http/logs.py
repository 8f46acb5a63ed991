"""Logging of the service, without keys.

Nothing that a caller sends is logged unchanged: the access log names routes, not paths. In addition, keys are replaced
in every line, in plain and in percent-encoded form, wherever they came from.
"""

from __future__ import annotations

import logging
import logging.config
import re
from collections.abc import Sequence
from typing import Any

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class KeyRedactor(logging.Formatter):
    """Formats a record, including its traceback, and replaces keys by ``***``.

    A key is found in any mixture of plain, percent-encoded and backslash-escaped characters, in upper or lower case.
    """

    def __init__(self, format: str, keys: Sequence[str] = ()) -> None:
        super().__init__(format)
        longest_first = sorted(set(keys), key=len, reverse=True)
        self._keys = re.compile("|".join(map(_any_form, longest_first)), re.IGNORECASE) if longest_first else None

    def format(self, record: logging.LogRecord) -> str:
        """The line to write."""
        line = super().format(record)
        return line if self._keys is None else self._keys.sub("***", line)


def _any_form(key: str) -> str:
    """A pattern for ``key`` in any encoding, with a fixed choice for each character so that it takes linear time."""

    def forms(character: str) -> str:
        percent = "".join(f"%(?:25)?{byte:02x}" for byte in character.encode())
        escaped = "".join(rf"\\x{byte:02x}" for byte in character.encode())
        code = ord(character)
        return rf"(?:\\?{re.escape(character)}|{percent}|{escaped}|\\x{code:02x}|\\u{code:04x})"

    return "".join(map(forms, key))


def access_line(method: str, route: str, status: int, seconds: float) -> str:
    """A line of the access log. ``route`` is a route's pattern, never a path."""
    known_method = method if method in _METHODS else "OTHER"
    return f'"{known_method} {route}" {status} {1000 * seconds:.1f} ms'


def logging_config(level: str, keys: Sequence[str]) -> dict[str, Any]:
    """Configuration for ``logging.config.dictConfig``: the service and uvicorn log to standard error."""
    own = {"handlers": ["stderr"], "level": level.upper(), "propagate": False}
    # at "info" uvicorn logs its start and stop; the service prints its own line when it is ready
    uvicorn = {**own, "level": "WARNING" if level == "info" else level.upper()}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"redacted": {"()": KeyRedactor, "format": "%(levelname)s: %(message)s", "keys": list(keys)}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "redacted"}},
        "loggers": {
            "redline": own,
            "uvicorn": uvicorn,
            "uvicorn.error": {"level": uvicorn["level"]},
            "uvicorn.access": {"handlers": [], "propagate": False},  # it logs paths
            "asyncio": own,
        },
    }
