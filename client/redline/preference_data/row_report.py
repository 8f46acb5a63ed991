"""The loop in which every command checks rows, and its report of skipped rows and ignored columns.

Standard library only.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, TypeVar

from redline.files.atomic import atomic_file
from redline.files.row_files import BadRowError, LongRowError, Problems, Row, UnreadableRowError

T = TypeVar("T")
MAX_SHOWN = 50
_MAX_COLUMNS = 100
_MAX_NAME_CHARACTERS = 60
_LATEST, _LATEST_SHOWN = 5, 500


class RowReport:
    """The bad rows that a command skipped, and the columns that it did not use.

    Memory is bounded: skipped rows are counted and written at once, each as
    ``{"file": ..., "row": line number or index in the list, "reason": ...}``.

    Args:
        skips: whether bad rows are skipped; otherwise the reader refuses the file.
        file: JSONL file for the skipped rows; an earlier file of that name is removed if there are none. None: the
            report shows the first of them instead.
        show: called with each line of the report once reading has ended.
    """

    def __init__(
        self, *, skips: bool = False, file: Path | None = None, show: Callable[[str], None] | None = None
    ) -> None:
        self.skips = skips
        self.rows = 0
        self.skipped = Problems(MAX_SHOWN, is_bounded=False)
        self.latest: deque[str] = deque(maxlen=_LATEST)
        self.ignored: dict[str, int] = {}
        self._file = file
        self._show = show
        self._written: BinaryIO | None = None
        self._stack = ExitStack()
        self._is_finished = False

    def skip(self, location: str, reason: str) -> bool:
        """Whether to skip a bad row; if so, it is counted and written. Raises OSError."""
        if self.skips and not self._is_finished:
            self.skipped.add(f"{location}: {reason}")
            self.latest.append(f"{location}: {reason}"[:_LATEST_SHOWN])
            if self._file is not None:
                if self._written is None:
                    self._file.parent.mkdir(parents=True, exist_ok=True)
                    self._written = self._stack.enter_context(atomic_file(self._file))
                row = json.dumps(_file_and_row(location) | {"reason": reason}, ensure_ascii=False)
                self._written.write(row.encode(errors="backslashreplace") + b"\n")
        return self.skips

    def ignore(self, columns: Iterable[str]) -> None:
        """Count the unused columns of one row."""
        if self._is_finished:
            return
        for column in columns:
            name = column if len(column) <= _MAX_NAME_CHARACTERS else f"{column[:_MAX_NAME_CHARACTERS]}..."
            if name not in self.ignored and len(self.ignored) >= _MAX_COLUMNS:
                name = "others"
            self.ignored[name] = self.ignored.get(name, 0) + 1

    def finish(self) -> None:
        """After the last row: complete the file of skipped rows and show the report. Raises OSError."""
        if self._is_finished:
            return
        self._is_finished = True
        self._stack.close()
        if self.skips and self._file is not None and not self.skipped.count:
            self._file.unlink(missing_ok=True)
        if self._show is not None:
            for line in self.lines():
                self._show(line)

    def lines(self) -> list[str]:
        """The report: how many rows were skipped and where the reasons are, and the columns that were ignored."""
        lines = []
        if self.skipped.count:
            summary = f"skipped {self.skipped.count} of {self.rows} rows"
            if self._file is not None:
                lines.append(f"{summary}; the reasons are in {self._file}")
            else:
                lines += [summary, *(f"  {problem}" for problem in self.skipped.shown)]
        if self.ignored:
            counts = ", ".join(
                f"{name} ({count} row{'s' if count > 1 else ''})" for name, count in self.ignored.items()
            )
            lines.append(f"ignored columns: {counts}")
        return lines

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.finish()
        else:
            self._stack.__exit__(kind, error, trace)


def _file_and_row(location: str) -> dict[str, Any]:
    """``file:12`` and ``file:row 12`` as file and row."""
    file, _, row = location.rpartition(":")
    digits = row.removeprefix("row ")
    return {"file": file, "row": int(digits)} if file and digits.isdecimal() else {"file": location, "row": None}


def checked_rows(
    rows: Iterable[Row], parse: Callable[[str, dict[str, Any]], T], report: RowReport, problems: Problems
) -> Iterator[tuple[str, T]]:
    """``(location, parsed)`` of every good row; bad rows go to ``report`` if it skips them, else to ``problems``.

    A file that cannot be read to its end is always a problem. No further row is read once ``problems`` is full.

    Args:
        parse: ``(location, row)`` to the parsed row; raises BadRowError if the row cannot be used.
    """
    try:
        for location, value, _ in rows:
            report.rows += 1
            try:
                parsed = parse_row_with(parse, location, value)
            except BadRowError as error:
                if report.skip(location, str(error)):
                    continue
                problems.add(f"{location}: {error}")
                if problems.is_full or isinstance(error, LongRowError):
                    return
            else:
                yield location, parsed
    except UnreadableRowError as error:
        problems.add(str(error))


def parse_row_with(parse: Callable[[str, dict[str, Any]], T], location: str, value: Any) -> T:
    """Parse ``value``, which must be an object. Raises BadRowError."""
    if isinstance(value, BadRowError):
        raise value
    if not isinstance(value, dict):
        raise BadRowError(f"a row must be an object, this is a {type(value).__name__}")
    return parse(location, value)
