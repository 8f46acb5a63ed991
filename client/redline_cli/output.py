"""Where answers go: standard output, or a file that is whole once it has its name and can be added to until then."""

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
from redline.files.locks import holder_of, is_at, try_lock
from redline.files.row_files import Problems
from redline.text.printable import visible_json
from redline_cli.terminal import is_terminal, need, say, write_stdout

_ROW_GROUP = 4096
_MAX_LINE_BYTES = 256 * 2**20  # of an answer with a number or two for every token of the longest row


def is_parquet(out: Path | None) -> bool:
    """Whether ``out`` asks for Parquet."""
    return out is not None and out.suffix == ".parquet"


class Output:
    """Rows as they come, to standard output or towards ``out``.

    Rows are kept in ``OUT.partial`` and are given their name, as JSONL or Parquet, when all are there. A run that was
    killed leaves that file: the same command goes on behind its last whole row. ``done``: rows that are there already.
    An ``out`` that is no regular file (a pipe, a terminal, /dev/stdout) gets each row as it comes.

    Args:
        asked: what the answers are answers to; a partial file of anything else is refused.

    Raises:
        CommandError: there is a partial file of something else, or another process writes it.
        OSError: ``out`` cannot be written.
    """

    def __init__(self, out: Path | None, asked: Mapping[str, Any]) -> None:
        self.out = out
        self.done = 0
        self.failures = Problems(1)
        self._special: RecordingFile | None = None
        self._partial: Path | None = None
        if out is None:
            return
        if is_parquet(out):
            need("parquet", "pyarrow")
            if is_special(out):
                raise CommandError(f"{out}: Parquet needs a regular file")
        self._special = open_special(out)
        if self._special is None:
            check_file_writable(out)
            self._begin(out.with_name(out.name + ".partial"), asked)

    def _begin(self, partial: Path, asked: Mapping[str, Any]) -> None:
        if is_special(partial):
            raise CommandError(f"{partial} is not a regular file; remove it")
        self._partial = partial
        self._file = self._locked(partial)
        head = json.dumps({"redline_partial": 1, **asked}, sort_keys=True, ensure_ascii=False)
        try:
            self._resume(partial, head.encode() + b"\n")
        except BaseException:
            self._file.close()
            raise

    def _locked(self, partial: Path) -> RecordingFile:
        """The partial file, this process's alone until it is closed. Raises CommandError and OSError."""
        while True:
            try:
                partial.parent.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(partial, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(self.out)) from error
            file = RecordingFile(descriptor, "ab")
            if not try_lock(descriptor):
                holder = holder_of(descriptor)
                file.close()
                raise CommandError(f"{holder} is writing {partial}")
            if is_at(descriptor, partial):
                return file
            file.close()  # whoever wrote it has just finished

    def _resume(self, partial: Path, head: bytes) -> None:
        """Count the whole rows, and cut off the one that was being written."""
        whole = 0
        with partial.open("rb") as lines:
            number = 0
            while (line := lines.readline(_MAX_LINE_BYTES)).endswith(b"\n"):
                if number == 0 and line != head:
                    raise CommandError(
                        f"{partial} holds answers to something else (another file, model or options); "
                        "finish that run or remove it"
                    )
                whole += len(line)
                if number:
                    self._note(*_answer(partial, number + 1, line)[:2])
                    self.done += 1
                number += 1
        self._file.truncate(whole)
        if whole == 0:
            self._append(head)
        if self.done:
            print(f"{partial}: {self.done} rows are there, going on", file=sys.stderr)

    def _append(self, line: bytes) -> None:
        """Write a whole line, or none of it."""
        size = os.fstat(self._file.fileno()).st_size
        try:
            self._file.write(line)
        except BaseException:
            with suppress(OSError):
                self._file.truncate(size)
            raise

    def _note(self, where: str, failed: list[str]) -> None:
        for why in failed:
            self.failures.add(f"{where}: {why}")

    def write(self, where: str, row: Mapping[str, Any], failed: list[str]) -> None:
        """One more row. ``where`` it came from, and why answers in it failed, if any did. Raises OSError."""
        data = _line(row)
        if self.out is None:
            write_stdout(visible_json(data.decode()).encode() if is_terminal() else data)
        else:
            try:
                if self._special is not None:
                    self._special.write(data)
                else:
                    self._append(_line({"where": where, "failed": failed, "row": row}))
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(self.out)) from error
        self._note(where, failed)
        self.done += 1

    def rows(self) -> Iterator[dict[str, Any]]:
        """Every row of the partial file; none where rows are written as they come."""
        if self._partial is None:
            return
        with self._partial.open("rb") as lines:
            lines.readline()
            number = 1
            while line := lines.readline(_MAX_LINE_BYTES):
                number += 1
                yield _answer(self._partial, number, line)[2]

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
                say(f"wrote {self.out}: {self.done} rows")
            elif not self.done:
                self._partial.unlink()
            else:
                print(f"{self._partial} keeps {self.done} rows; the same command goes on", file=sys.stderr)
        finally:
            self._file.close()  # the lock goes with it

    def _finish(self, out: Path) -> None:
        with atomic_file(out) as file:
            if is_parquet(out):
                _write_parquet(file, self.rows)
            else:
                file.writelines(map(_line, self.rows()))


def _line(row: Mapping[str, Any]) -> bytes:
    # half a surrogate pair stays the escape that it came as
    return json.dumps(row, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"


def _answer(partial: Path, number: int, line: bytes) -> tuple[str, list[str], dict[str, Any]]:
    """Where a row came from, why answers in it failed, and the row itself. Raises CommandError."""
    try:
        held = json.loads(line)
        return held["where"], held["failed"], held["row"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CommandError(f"{partial}:{number}: is damaged; remove the file to start over") from error


def _write_parquet(file: IO[bytes], rows: Callable[[], Iterator[dict[str, Any]]]) -> None:
    """Rows as Parquet, a row group at a time. The schema is that of all rows: some fields stand in few.

    Ids are text: a file may have numbers here and words there.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([])
    for group in _groups(rows()):
        names = dict.fromkeys(name for row in group for name in row)
        found = pa.table({name: [row.get(name) for row in group] for name in names}).schema
        schema = pa.unify_schemas([schema, found], promote_options="permissive")
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
