"""Two passes over a file: all rows are checked first, then read one by one with their locations."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

from redline.errors import RowsError
from redline.files.row_files import BadRowError, Problems, Row, UnknownFormatError, UnreadableRowError, read_rows
from redline.preference_data.row_report import RowReport, checked_rows, parse_row_with

T = TypeVar("T")
MAX_REPORTED = 10


class CheckedRows(Generic[T]):
    """The rows of a file, each parsed with ``parse``: all are checked at construction, and iteration reads them again.

    ``count``: number of rows, at most ``limit``. ``good``: how many of them are usable. ``sha256``: of their lines.

    Args:
        parse: ``(location, row)`` to the parsed row; raises BadRowError if the row cannot be used.
        report: records bad rows if it skips them; by default they are refused.
        stand_in: ``(location, value, reason)`` to the value that replaces a skipped row; by default skipped rows are
            left out.

    Raises:
        RowsError: the file cannot be read or is empty, has bad rows (the message counts them and shows the first), or
            has only bad rows if those are skipped.
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
        problems = Problems(MAX_REPORTED)
        try:
            self.good = sum(1 for _ in checked_rows(self._counted(), parse, self._report, problems))
        except UnknownFormatError as error:
            raise RowsError(str(error)) from error
        refuse_bad_rows(path, problems, self._report, self.good)
        self.sha256 = self._digest.hexdigest()

    def __iter__(self) -> Iterator[tuple[str, T]]:
        try:
            for location, value, _ in self._rows():
                try:
                    yield location, parse_row_with(self._parse, location, value)
                except BadRowError as error:
                    if not self._report.skips:
                        raise RowsError(f"{location}: {error}") from error
                    if self._stand_in is not None:
                        yield location, self._stand_in(location, value, str(error))
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
    """Raise RowsError, naming the first bad rows, if there are ``problems`` or no ``good`` rows."""
    if problems.count:
        raise RowsError("; ".join(problems.shown))
    if not good and report.skipped.count:
        raise RowsError("; ".join([f"{path}: every row is bad", *report.skipped.first[:MAX_REPORTED]]))
    if not good:
        raise RowsError(f"{path}: holds no rows")
