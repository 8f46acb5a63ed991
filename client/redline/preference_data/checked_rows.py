"""Rows of a file that are all checked first and then read again, each with its place."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

from redline.errors import RowsError
from redline.files.row_files import BadRowError, Problems, Row, UnknownFormatError, UnreadableRowError, read_rows
from redline.preference_data.row_report import RowReport, checked_rows, parse_row_with

T = TypeVar("T")
SHOWN = 10


class CheckedRows(Generic[T]):
    """The rows of a file, each put through ``parse``; all are checked at once, and read again one by one.

    ``count``: rows, at most ``limit``, of which ``good`` will do. ``sha256``: of the lines that hold them.

    Args:
        parse: ``(where, row)`` to whatever is wanted of it; raises BadRowError where a row will not do.
        report: takes bad rows if it skips them; by default they are refused.
        stand_in: ``(where, value, reason)`` to what stands in the place of a row that was skipped; by default nothing
            does.

    Raises:
        RowsError: it cannot be read, holds nothing, or holds rows that will not do (all of them counted, the first
            in full), or nothing else if those are skipped.
    """

    def __init__(
        self,
        path: Path,
        parse: Callable[[str, dict[str, Any]], T],
        limit: int | None = None,
        *,
        report: RowReport | None = None,
        stand_in: Callable[[str, Any, str], T] | None = None,
    ) -> None:
        self.path = path
        self.count = 0
        self._parse = parse
        self._limit = limit
        self._report = report or RowReport()
        self._stand_in = stand_in
        self._digest = hashlib.sha256()
        problems = Problems(SHOWN)
        try:
            self.good = sum(1 for _ in checked_rows(self._counted(), parse, self._report, problems))
        except UnknownFormatError as error:
            raise RowsError(str(error)) from error
        refuse_bad_rows(path, problems, self._report, self.good)
        self.sha256 = self._digest.hexdigest()

    def __iter__(self) -> Iterator[tuple[str, T]]:
        try:
            for where, value, _ in self._rows():
                try:
                    yield where, parse_row_with(self._parse, where, value)
                except BadRowError as error:
                    if not self._report.skips:
                        raise RowsError(f"{where}: {error}") from error
                    if self._stand_in is not None:
                        yield where, self._stand_in(where, value, str(error))
        except UnreadableRowError as error:
            raise RowsError(str(error)) from error

    def _rows(self) -> Iterator[Row]:
        for count, row in enumerate(read_rows(self.path)):
            if self._limit is not None and count >= self._limit:
                return
            yield row

    def _counted(self) -> Iterator[Row]:
        for row in self._rows():
            self.count += 1
            text = row.text
            self._digest.update(text[:-2] + b"\n" if text.endswith(b"\r\n") else text)
            yield row


def refuse_bad_rows(path: Path, problems: Problems, report: RowReport, good: int) -> None:
    """Raise RowsError, naming the first bad rows, where there are ``problems`` or no ``good`` rows."""
    if problems.count:
        raise RowsError("; ".join(problems.shown))
    if not good and report.skipped.count:
        raise RowsError("; ".join([f"{path}: every row is bad", *report.skipped.first[:SHOWN]]))
    if not good:
        raise RowsError(f"{path}: holds no rows")
