"""Rows of a JSONL file, plain or gzipped, each with its place."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

from redline.errors import CommandError
from redline.row_files import Problems, UnreadableRowError, parse_json, read_lines

T = TypeVar("T")
_SHOWN = 10


class CheckedRows(Generic[T]):
    """The rows of a file, each put through ``parse``; all are checked at once, and read again one by one.

    ``count``: rows, at most ``limit``. ``sha256``: of the lines that hold them.

    Args:
        parse: ``(where, row)`` to whatever is wanted of it; raises CommandError where a row will not do.

    Raises:
        CommandError: it cannot be read, holds nothing, or holds rows that will not do (all of them counted, the first
            in full).
    """

    def __init__(self, path: Path, parse: Callable[[str, dict[str, Any]], T], limit: int | None = None) -> None:
        self.path = path
        self._parse = parse
        self._limit = limit
        problems = Problems(_SHOWN)
        digest = hashlib.sha256()
        self.count = 0
        try:
            for where, line in self._lines():
                digest.update(line[:-2] + b"\n" if line.endswith(b"\r\n") else line)
                self.count += 1
                try:
                    parse(where, _row(where, line))
                except CommandError as error:
                    problems.add(str(error))
                if problems.is_full:
                    break
        except CommandError as error:
            problems.add(str(error))
        _refuse_if_any(problems)
        if not self.count:
            raise CommandError(f"{path}: holds no rows")
        self.sha256 = digest.hexdigest()

    def __iter__(self) -> Iterator[tuple[str, T]]:
        for where, line in self._lines():
            yield where, self._parse(where, _row(where, line))

    def _lines(self) -> Iterator[tuple[str, bytes]]:
        try:
            for count, found in enumerate(read_lines(self.path)):
                if self._limit is not None and count >= self._limit:
                    return
                yield found
        except UnreadableRowError as error:
            raise CommandError(str(error)) from error


def _row(where: str, line: bytes) -> dict[str, Any]:
    try:
        row = parse_json(line)
    except ValueError as error:
        raise CommandError(f"{where}: {error}") from error
    if not isinstance(row, dict):
        raise CommandError(f"{where}: a row must be an object")
    return row


def _refuse_if_any(problems: Problems) -> None:
    """Raise CommandError with all problems, the first ten in full."""
    if problems.count:
        more = f"; and {problems.count - _SHOWN} more" if problems.count > _SHOWN else ""
        if problems.is_full:
            more = f"; and more: reading stopped at {problems.count}"
        raise CommandError("; ".join(problems.first) + more)
