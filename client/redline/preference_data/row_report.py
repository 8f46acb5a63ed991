"""Rows checked by one loop for every command, and a report of what reading left out. Standard library only."""

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
_NAME_SHOWN = 60
_LATEST, _LATEST_SHOWN = 5, 500


class RowReport:
    """What the readers of one command left out: bad rows, if they are to be skipped, and columns that nothing uses.

    In bounded memory: skipped rows are counted and written as they come, each as
    ``{"file": ..., "row": line or place in the list, "reason": ...}``.

    Args:
        skips: bad rows are left out; otherwise whoever reads them refuses them.
        file: where the skipped rows are written (JSONL); an earlier file of that name is removed if there are none.
            None shows the first of them.
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

    def skip(self, where: str, reason: str) -> bool:
        """Whether a bad row is to be left out; if so, it is counted and written. Raises OSError."""
        if self.skips and not self._is_finished:
            self.skipped.add(f"{where}: {reason}")
            self.latest.append(f"{where}: {reason}"[:_LATEST_SHOWN])
            if self._file is not None:
                if self._written is None:
                    self._file.parent.mkdir(parents=True, exist_ok=True)
                    self._written = self._stack.enter_context(atomic_file(self._file))
                row = json.dumps(_place(where) | {"reason": reason}, ensure_ascii=False)
                self._written.write(row.encode(errors="backslashreplace") + b"\n")
        return self.skips

    def ignore(self, columns: Iterable[str]) -> None:
        """Count columns of one row that are not used."""
        if self._is_finished:
            return
        for column in columns:
            name = column if len(column) <= _NAME_SHOWN else f"{column[:_NAME_SHOWN]}..."
            if name not in self.ignored and len(self.ignored) >= _MAX_COLUMNS:
                name = "others"
            self.ignored[name] = self.ignored.get(name, 0) + 1

    def finish(self) -> None:
        """After the last row: put the file of skipped rows in place, and show the report. Raises OSError."""
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
            head = f"skipped {self.skipped.count} of {self.rows} rows"
            if self._file is not None:
                lines.append(f"{head}; the reasons are in {self._file}")
            else:
                lines += [head, *(f"  {problem}" for problem in self.skipped.shown)]
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


def _place(where: str) -> dict[str, Any]:
    """``file:12`` and ``file:row 12`` as file and row."""
    file, _, row = where.rpartition(":")
    digits = row.removeprefix("row ")
    return {"file": file, "row": int(digits)} if file and digits.isdecimal() else {"file": where, "row": None}


def checked_rows(
    rows: Iterable[Row], parse: Callable[[str, dict[str, Any]], T], report: RowReport, problems: Problems
) -> Iterator[tuple[str, T]]:
    """``(where, parsed)`` of every good row; bad ones go to ``report`` if it skips them, else to ``problems``.

    A file that cannot be read to its end is a problem in any case. No more rows are read once ``problems`` is full.

    Args:
        parse: ``(where, row)`` to whatever is wanted of it; raises BadRowError where the row will not do.
    """
    try:
        for where, value, _ in rows:
            report.rows += 1
            try:
                parsed = parse_row_with(parse, where, value)
            except BadRowError as error:
                if report.skip(where, str(error)):
                    continue
                problems.add(f"{where}: {error}")
                if problems.is_full or isinstance(error, LongRowError):
                    return
            else:
                yield where, parsed
    except UnreadableRowError as error:
        problems.add(str(error))


def parse_row_with(parse: Callable[[str, dict[str, Any]], T], where: str, value: Any) -> T:
    """``value`` parsed, if it is an object. Raises BadRowError."""
    if isinstance(value, BadRowError):
        raise value
    if not isinstance(value, dict):
        raise BadRowError(f"a row must be an object, this is a {type(value).__name__}")
    return parse(where, value)
