"""Writes result rows to standard output, or to a file that appears complete and whose run can be resumed."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from redline.errors import CommandError
from redline.files.atomic import RecordingFile, atomic_file, check_file_writable, is_special, open_special
from redline.files.locks import is_same_file, lock_holder, try_lock
from redline.files.row_files import Problems
from redline.text.printable import visible_json
from redline_cli.terminal import is_terminal, print_line, require_modules, write_stdout

_ROW_GROUP = 4096
_MAX_LINE_BYTES = 256 * 2**20  # enough for several numbers per token of the longest row


def is_parquet(out: Path | None) -> bool:
    """Whether ``out`` is to be a Parquet file."""
    return out is not None and out.suffix == ".parquet"


class Output:
    """Writes result rows to standard output or to ``out``.

    Rows are collected in ``OUT.partial``, which becomes ``out`` (JSONL or Parquet) once all rows are written. A killed
    run leaves that file, and the same command resumes after its last complete row. ``done``: rows written so far.
    If ``out`` is not a regular file (a pipe, a terminal, /dev/stdout), each row is written to it directly.

    Args:
        run_identity: input file, model and options; a partial file of a run with others is refused.

    Raises:
        CommandError: the partial file belongs to another run, or another process is writing it.
        OSError: ``out`` cannot be written.
    """

    def __init__(self, out: Path | None, run_identity: Mapping[str, Any]) -> None:
        self.out = out
        self.done = 0
        self.failures = Problems(1)
        self._special: RecordingFile | None = None
        self._partial: Path | None = None
        if out is None:
            return
        if is_parquet(out):
            require_modules("parquet", "pyarrow")
            if is_special(out):
                raise CommandError(f"{out}: Parquet needs a regular file")
        self._special = open_special(out)
        if self._special is None:
            check_file_writable(out)
            self._begin(out.with_name(out.name + ".partial"), run_identity)

    def _begin(self, partial: Path, run_identity: Mapping[str, Any]) -> None:
        if is_special(partial):
            raise CommandError(f"{partial} is not a regular file; remove it")
        self._partial = partial
        self._file = self._locked(partial)
        header = json.dumps({"redline_partial": 1, **run_identity}, sort_keys=True, ensure_ascii=False)
        try:
            self._resume(partial, header.encode() + b"\n")
        except BaseException:
            self._file.close()
            raise

    def _locked(self, partial: Path) -> RecordingFile:
        """The partial file, locked for this process until it is closed. Raises CommandError and OSError."""
        while True:
            try:
                partial.parent.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(partial, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(self.out)) from error
            file = RecordingFile(descriptor, "ab")
            if not try_lock(descriptor):
                holder = lock_holder(descriptor)
                file.close()
                raise CommandError(f"{holder} is writing {partial}")
            if is_same_file(descriptor, partial):
                return file
            file.close()  # the process that wrote it has just finished

    def _resume(self, partial: Path, header: bytes) -> None:
        """Count the complete rows, and cut off an incomplete last one."""
        complete_bytes = 0
        with partial.open("rb") as lines:
            number = 0
            while (line := lines.readline(_MAX_LINE_BYTES)).endswith(b"\n"):
                if number == 0 and line != header:
                    raise CommandError(
                        f"{partial} belongs to a run with another file, model or options; "
                        "finish that run or remove the file"
                    )
                complete_bytes += len(line)
                if number:
                    self._add_failures(*_parse_record(partial, number + 1, line)[:2])
                    self.done += 1
                number += 1
        self._file.truncate(complete_bytes)
        if complete_bytes == 0:
            self._append(header)
        if self.done:
            print(f"{partial}: resuming after {self.done} rows", file=sys.stderr)

    def _append(self, line: bytes) -> None:
        """Append a line completely, or not at all."""
        size = os.fstat(self._file.fileno()).st_size
        try:
            self._file.write(line)
        except BaseException:
            with suppress(OSError):
                self._file.truncate(size)
            raise

    def _add_failures(self, location: str, failed: list[str]) -> None:
        for reason in failed:
            self.failures.add(f"{location}: {reason}")

    def write(self, location: str, row: Mapping[str, Any], failed: list[str]) -> None:
        """Write one row.

        Args:
            location: file and line of the row that it is the result of.
            failed: error messages of results in ``row`` that are errors.

        Raises:
            OSError: the row cannot be written.
        """
        data = _line(row)
        if self.out is None:
            write_stdout(visible_json(data.decode()).encode() if is_terminal() else data)
        else:
            try:
                if self._special is not None:
                    self._special.write(data)
                else:
                    self._append(_line({"where": location, "failed": failed, "row": row}))
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(self.out)) from error
        self._add_failures(location, failed)
        self.done += 1

    def rows(self) -> Iterator[dict[str, Any]]:
        """Every row of the partial file; none if rows are written directly."""
        if self._partial is None:
            return
        with self._partial.open("rb") as lines:
            lines.readline()
            number = 1
            while line := lines.readline(_MAX_LINE_BYTES):
                number += 1
                yield _parse_record(self._partial, number, line)[2]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._special is not None:
            self._special.close()
        if self.out is None or self._partial is None:
            return
        try:
            if error is None:
                self._finish(self.out)
                self._partial.unlink()
                print_line(f"wrote {self.out}: {self.done} rows")
            elif not self.done:
                self._partial.unlink()
            else:
                print(f"{self._partial} keeps {self.done} rows; run the same command again to resume", file=sys.stderr)
        finally:
            self._file.close()  # releases the lock

    def _finish(self, out: Path) -> None:
        with atomic_file(out) as file:
            if is_parquet(out):
                _write_parquet(file, self.rows)
            else:
                file.writelines(map(_line, self.rows()))


def _line(row: Mapping[str, Any]) -> bytes:
    # half a surrogate pair is written as the escape that it came as
    return json.dumps(row, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"


def _parse_record(partial: Path, number: int, line: bytes) -> tuple[str, list[str], dict[str, Any]]:
    """``(location, failed, row)`` of a line of the partial file. Raises CommandError."""
    try:
        record = json.loads(line)
        return record["where"], record["failed"], record["row"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CommandError(f"{partial}:{number}: is damaged; remove the file to start over") from error


def _write_parquet(file: IO[bytes], rows: Callable[[], Iterator[dict[str, Any]]]) -> None:
    """Write rows as Parquet, one row group at a time. The schema covers all rows: some fields are in few of them.

    Ids become text, because one file may have both numbers and words as ids.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([])
    for group in _groups(rows()):
        names = dict.fromkeys(name for row in group for name in row)
        group_schema = pa.table({name: [row.get(name) for row in group] for name in names}).schema
        schema = pa.unify_schemas([schema, group_schema], promote_options="permissive")
    with pq.ParquetWriter(file, schema) as writer:
        for group in _groups(rows()):
            columns = {name: [row.get(name) for row in group] for name in schema.names}
            writer.write_table(pa.table(columns, schema=schema))


def _groups(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    group: list[dict[str, Any]] = []
    for row in rows:
        group.append({**row, "id": str(row["id"])} if row.get("id") is not None else row)
        if len(group) == _ROW_GROUP:
            yield group
            group = []
    if group:
        yield group
