"""Rows of JSON files from anywhere, read with bounded memory: the one reader of every command. Standard library only.

A file is JSON lines (``.jsonl``) or one JSON list (``.json``), either gzipped; a byte order mark, line ends of other
systems and blank lines make no difference. A row is at most ``MAX_ROW_BYTES`` long. A gzipped file may hold a lot more
than its size, but not without end: beyond ``FREE_GZIP_BYTES`` it may be ``MAX_GZIP_RATIO`` times as large as it is
packed. A row takes memory however short it is: beyond ``FREE_GZIP_ROWS`` there may be one for each ``ROW_BYTES`` of
that size. Of problems with rows the first are kept and the others counted.
"""

from __future__ import annotations

import codecs
import gzip
import json
import os
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from redline.files.strict_json import LENIENT, STRICT, check_surrogates, parse_json, reason_of

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz")
MAX_ROW_BYTES = 16 * 2**20
FREE_GZIP_BYTES = 256 * 2**20
MAX_GZIP_RATIO = 200
FREE_GZIP_ROWS = 2**18
ROW_BYTES = 1024
MAX_PROBLEMS = 10_000
_SHOWN_CHARACTERS = 500
_CHUNK = 2**16
_BLANK = " \t\r\n"


class BadRowError(ValueError):
    """A row cannot be used; the text says why. Other rows of its file can be read."""


class LongRowError(BadRowError):
    """A row is longer than ``MAX_ROW_BYTES``; reading on means to skip the rest of it."""


class UnknownFormatError(ValueError):
    """The name of a file does not say that it holds rows; the text names the file and what is read."""


class UnreadableRowError(ValueError):
    """A row or the rest of a file cannot be read; ``where`` is the file, and the row if it is known."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where}: {reason}")
        self.where = where
        self.reason = reason


class Row(NamedTuple):
    """One row: its place, its value (a BadRowError where it is not JSON), and its text in the file."""

    where: str
    value: Any
    text: bytes = b""


class Problems:
    """Problems with rows, in bounded memory: the first ``shown`` are kept, shortened, and all are counted."""

    def __init__(self, shown: int, *, is_bounded: bool = True) -> None:
        self.count = 0
        self.first: list[str] = []
        self._shown = shown
        self._is_bounded = is_bounded

    def add(self, problem: str) -> None:
        """One more."""
        self.count += 1
        if len(self.first) < self._shown:
            is_long = len(problem) > _SHOWN_CHARACTERS
            self.first.append(problem[:_SHOWN_CHARACTERS] + "..." if is_long else problem)

    @property
    def is_full(self) -> bool:
        """Whether there are so many that reading on is of no use; never, if all are to be counted."""
        return self._is_bounded and self.count >= MAX_PROBLEMS

    @property
    def counted(self) -> str:
        """Their number, as far as they were counted."""
        return f"{self.count} or more" if self.is_full else str(self.count)

    @property
    def shown(self) -> list[str]:
        """The first of them, and how many more there are."""
        left = self.count - len(self.first)
        more = f"more: reading stopped at {self.count}" if self.is_full else f"{left} more"
        return [*self.first, f"... and {more}"] if left else list(self.first)

    def listing(self, what: str) -> str:
        """``N what`` and the problems, one on a line."""
        return "\n  ".join([f"{self.counted} {what}", *self.shown])


def read_rows(path: Path) -> Iterator[Row]:
    """Every row of a file, one held at a time; ``where`` is ``file:line``, or ``file:row N`` in a list.

    Raises:
        UnknownFormatError: the name has none of ``SUFFIXES``.
        UnreadableRowError: the file or the rest of it cannot be read, or it inflates without end.
    """
    if path.exists() and not path.is_file():
        raise UnreadableRowError(str(path), "is not a regular file, and rows are read more than once")
    name = _name_with_suffix(path)
    with _opened(path, is_packed=name.endswith(".gz")) as file:
        yield from (_list_rows if name.removesuffix(".gz").endswith(".json") else _line_rows)(path, file)


def _name_with_suffix(path: Path) -> str:
    """The file's own name, or that of the file it links to (as /dev/stdin does), whichever says what it holds."""
    for name in (path.name, Path(os.path.realpath(path)).name):
        if name.endswith(SUFFIXES):
            return name
    if str(path).startswith(("/dev/", "/proc/")):
        return "lines.jsonl"
    raise UnknownFormatError(f"{path}: unknown data format; this reads {', '.join(SUFFIXES)}")


def _line_rows(path: Path, file: _BoundedFile) -> Iterator[Row]:
    number = 0
    while True:
        number += 1
        where = f"{path}:{number}"
        file.rows = number
        line = file.line(where)
        if not line:
            return
        if len(line) > MAX_ROW_BYTES:
            yield Row(where, LongRowError(f"the line is longer than {MAX_ROW_BYTES:,} bytes"))
            while line and not line.endswith(b"\n"):
                line = file.line(where)
                file.check(where)
            continue
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if line.strip():
            value: Any
            try:
                value = parse_json(line)
            except ValueError as error:
                value = BadRowError(str(error))
            yield Row(where, value, line)


def _list_rows(path: Path, file: _BoundedFile) -> Iterator[Row]:
    reader = _ElementReader(path, file)
    if reader.next_character() != "[":
        raise UnreadableRowError(str(path), "a .json file must hold a list of rows")
    if reader.next_character(after=1) != "]":
        while True:
            value = reader.element()
            yield Row(reader.where, value, reader.text)
            separator = reader.next_character()
            if separator == "]":
                break
            if separator != ",":
                raise UnreadableRowError(reader.where, "not JSON: no ',' or ']' after the row")
            reader.next_character(after=1)
            reader.number += 1
    if reader.next_character(after=1):
        raise UnreadableRowError(reader.where, "not JSON: something follows the list")


class _ElementReader:
    """Text of a file as far as it was read, and the place in it: ``number`` counts elements from 1.

    ``text``: of the element that was read last.
    """

    def __init__(self, path: Path, file: _BoundedFile) -> None:
        self.number = 1
        self.text = b""
        self._path = path
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._text = ""
        self._at = 0
        self._is_end = False

    @property
    def where(self) -> str:
        return f"{self._path}:row {self.number}"

    def next_character(self, *, after: int = 0) -> str:
        """Skip ``after`` characters and white space; the character there, "" at the end of the file."""
        self._at += after
        while True:
            while self._at < len(self._text) and self._text[self._at] in _BLANK:
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if self._is_end:
                return ""
            self._read_more()

    def element(self) -> Any:
        """The value here, a BadRowError if it can be told where it ends but not be used."""
        while True:
            try:
                value, after = self._decoded()
            except RecursionError as error:
                raise UnreadableRowError(self.where, f"not JSON: {reason_of(error)}") from error
            except json.JSONDecodeError as error:
                if self._is_end:
                    raise UnreadableRowError(self.where, f"not JSON: {error.msg}") from error
            else:
                # "-1.5e" at the end of what was read may be the start of -1.5e-7
                margin = 3 if isinstance(value, (int, float)) else 1
                if after + margin <= len(self._text) or self._is_end:
                    self.text, self._at = self._text[self._at : after].encode() + b"\n", after
                    return value
            self._read_more()

    def _decoded(self) -> tuple[Any, int]:
        """The value here and where it ends. Raises JSONDecodeError if it does not end in what was read."""
        try:
            value, after = STRICT.raw_decode(self._text, self._at)
        except json.JSONDecodeError:
            raise
        except ValueError as error:
            return BadRowError(f"not JSON: {error}"), LENIENT.raw_decode(self._text, self._at)[1]
        try:
            check_surrogates(value, self._text[self._at : after])
        except ValueError as error:
            return BadRowError(str(error)), after
        return value, after

    def _read_more(self) -> None:
        left = self._text[self._at :]
        if len(left) > MAX_ROW_BYTES:
            raise UnreadableRowError(self.where, f"not JSON, or longer than {MAX_ROW_BYTES:,} bytes")
        with self._file.reading(self.where):
            # twice as much each time, so that a long row is not parsed again for every chunk
            data = self._file.read(max(_CHUNK, len(left)))
            self._file.rows = self.number
            self._text, self._at, self._is_end = left + self._decoder.decode(data, final=not data), 0, not data
        self._file.check(self.where)


class _BoundedFile:
    """A plain or gzipped file, opened for reading; ``check`` raises once it has inflated out of all proportion.

    ``rows``: that were read of it, kept by whoever reads them.
    """

    def __init__(self, path: Path, *, is_packed: bool) -> None:
        self._path = path
        self._is_packed = is_packed
        largest = MAX_GZIP_RATIO * path.stat().st_size
        self._most_bytes = max(FREE_GZIP_BYTES, largest)
        self._most_rows = max(FREE_GZIP_ROWS, largest // ROW_BYTES)
        self.raw: BinaryIO = cast(BinaryIO, gzip.GzipFile(path, "rb")) if is_packed else path.open("rb")
        self.read = self.raw.read
        self.rows = 0

    def line(self, where: str) -> bytes:
        """The next line, or more than ``MAX_ROW_BYTES`` of one that is longer; empty at the end."""
        with self.reading(where):
            line = self.raw.readline(MAX_ROW_BYTES + 1)
        if len(line) <= MAX_ROW_BYTES:
            self.check(where)
        return line

    def reading(self, where: str) -> AbstractContextManager[None]:
        """Failures to read as UnreadableRowErrors."""
        return _reading(where, self._path)

    def check(self, where: str) -> None:
        """Raise UnreadableRowError if more has come out of the file than it may hold."""
        if not self._is_packed:
            return
        is_large, is_many = self.raw.tell() > self._most_bytes, self.rows > self._most_rows
        if is_large or is_many:
            what = f"more than {MAX_GZIP_RATIO} times" if is_large else f"{self.rows} rows, too many for"
            reason = f"the file inflates to {what} its size; unpack it first if that is right"
            raise UnreadableRowError(where, reason)


@contextmanager
def _opened(path: Path, *, is_packed: bool) -> Iterator[_BoundedFile]:
    with _reading(str(path), path):
        file = _BoundedFile(path, is_packed=is_packed)
    with file.raw:
        yield file


@contextmanager
def _reading(where: str, path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        place = where if isinstance(error, EOFError) else str(path)
        raise UnreadableRowError(place, f"cannot be read: {reason}") from error
    except UnicodeDecodeError as error:
        raise UnreadableRowError(where, f"not JSON: {reason_of(error)}") from error
