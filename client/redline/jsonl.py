"""Rows of a JSONL file, plain or gzipped, each with its place."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from redline.errors import CommandError

T = TypeVar("T")
Row = tuple[str, dict[str, Any]]
_SHOWN = 10


def read_rows(path: Path, limit: int | None = None) -> list[Row]:
    """``(file:line, row)`` of every row, blank lines left out, at most ``limit``.

    Raises:
        CommandError: it cannot be read, holds nothing, or holds lines that are no objects (all of them told).
    """
    return [(where, row) for where, row in CheckedRows(path, lambda where, row: row, limit)]


class CheckedRows(Generic[T]):
    """The rows of a file, each put through ``parse``; all are checked at once, and read again one by one.

    ``count``: rows, at most ``limit``. ``sha256``: of the lines that hold them.

    Args:
        parse: ``(where, row)`` to whatever is wanted of it; raises CommandError where a row will not do.

    Raises:
        CommandError: it cannot be read, holds nothing, or holds rows that will not do (all of them told).
    """

    def __init__(self, path: Path, parse: Callable[[str, dict[str, Any]], T], limit: int | None = None) -> None:
        self.path = path
        self._parse = parse
        self._limit = limit
        problems: list[str] = []
        digest = hashlib.sha256()
        self.count = 0
        for where, line in _lines(path, limit):
            digest.update(line.encode())
            self.count += 1
            try:
                parse(where, _row(where, line))
            except CommandError as error:
                problems.append(str(error))
        refuse_if_any(problems)
        if not self.count:
            raise CommandError(f"{path}: holds no rows")
        self.sha256 = digest.hexdigest()

    def __iter__(self) -> Iterator[tuple[str, T]]:
        for where, line in _lines(self.path, self._limit):
            yield where, self._parse(where, _row(where, line))


def _lines(path: Path, limit: int | None) -> Iterator[tuple[str, str]]:
    opener = gzip.open if path.name.endswith(".gz") else open
    count = 0
    try:
        with opener(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if limit is not None and count >= limit:
                    return
                if line.strip():
                    count += 1
                    yield f"{path}:{number}", line
    except (OSError, UnicodeDecodeError, EOFError, zlib.error) as error:
        raise CommandError(f"{path}: cannot be read: {error}") from error


def _row(where: str, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
        if "\\u" in line:
            json.dumps(row, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        raise CommandError(f"{where}: not JSON: {error}") from error
    if not isinstance(row, dict):
        raise CommandError(f"{where}: a row must be an object")
    return row


def refuse_if_any(problems: Sequence[str]) -> None:
    """Raise CommandError with all problems, the first ten in full."""
    if problems:
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise CommandError("; ".join(problems[:_SHOWN]) + more)
