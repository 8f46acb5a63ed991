"""Reads rows of JSONL and JSON files, plain or gzipped, in bounded memory; all commands use it. Standard library only.

A file is JSON lines (``.jsonl``) or one JSON list (``.json``), each also gzipped. A byte order mark, Windows line ends
and blank lines are accepted. A row is at most ``MAX_ROW_BYTES`` long. The decompressed size of a gzipped file is
limited to ``MAX_GZIP_RATIO`` times its compressed size (or ``FREE_GZIP_BYTES``, if that is more), and the number of its
rows to one per ``ROW_BYTES`` of that limit (or ``FREE_GZIP_ROWS``). The first problems with rows are kept, the others
counted.
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

from redline.files.strict_json import LENIENT, STRICT, check_surrogates, error_reason, parse_json

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz")
MAX_ROW_BYTES = 16 * 2**20
FREE_GZIP_BYTES = 256 * 2**20
MAX_GZIP_RATIO = 200
FREE_GZIP_ROWS = 2**18
ROW_BYTES = 1024
MAX_PROBLEMS = 10_000
_MAX_MESSAGE_CHARACTERS = 500
_CHUNK = 2**16
_BLANK = " \t\r\n"


class BadRowError(ValueError):
    """A row cannot be used; the text is the reason. Other rows of its file can be read."""


class LongRowError(BadRowError):
    """A row is longer than ``MAX_ROW_BYTES``; a reader that continues skips the rest of it."""


class UnknownFormatError(ValueError):
    """The name of a file has no known suffix; the text has the file and the known suffixes."""


class UnreadableRowError(ValueError):
    """A row or the rest of a file cannot be read; ``location`` is the file, and the row if known."""

    def __init__(self, location: str, reason: str) -> None:
        super().__init__(f"{location}: {reason}")
        self.location = location
        self.reason = reason


class Row(NamedTuple):
    """One row: its location, its value (a BadRowError if it is not JSON), and its text in the file."""

    location: str
    value: Any
    text: bytes = b""


class Problems:
    """Problems with rows, in bounded memory: the first ``max_kept`` are kept, shortened, and all are counted."""

    def __init__(self, max_kept: int, *, is_bounded: bool = True) -> None:
        self.count = 0
        self.first: list[str] = []
        self._max_kept = max_kept
        self._is_bounded = is_bounded

    def add(self, problem: str) -> None:
        """Count a problem; the first ones are kept."""
        self.count += 1
        if len(self.first) < self._max_kept:
            is_long = len(problem) > _MAX_MESSAGE_CHARACTERS
            self.first.append(problem[:_MAX_MESSAGE_CHARACTERS] + "..." if is_long else problem)

    @property
    def is_full(self) -> bool:
        """Whether there are so many that reading should stop; never if ``is_bounded`` is False."""
        return self._is_bounded and self.count >= MAX_PROBLEMS

    @property
    def counted(self) -> str:
        """Their number; "or more" if reading stopped early."""
        return f"{self.count} or more" if self.is_full else str(self.count)

    @property
    def shown(self) -> list[str]:
        """The first problems, and a line with the number of others."""
        remaining = self.count - len(self.first)
        more = f"more: reading stopped at {self.count}" if self.is_full else f"{remaining} more"
        return [*self.first, f"... and {more}"] if remaining else list(self.first)

    def listing(self, noun: str) -> str:
        """``N noun`` and the problems, one per line."""
        return "\n  ".join([f"{self.counted} {noun}", *self.shown])


def read_rows(path: Path) -> Iterator[Row]:
    """Every row of a file, one in memory at a time; ``location`` is ``file:line``, or ``file:row N`` in a list.

    Raises:
        UnknownFormatError: the name has none of ``SUFFIXES``.
        UnreadableRowError: the file or the rest of it cannot be read, or its decompressed size exceeds the limit.
    """
    if path.exists() and not path.is_file():
        raise UnreadableRowError(str(path), "is not a regular file; rows are read twice")
    name = _name_with_suffix(path)
    with _opened(path, is_gzipped=name.endswith(".gz")) as file:
        yield from (_list_rows if name.removesuffix(".gz").endswith(".json") else _line_rows)(path, file)


def _name_with_suffix(path: Path) -> str:
    """The name of the file, or of the file that it links to (as /dev/stdin does), whichever has a known suffix."""
    for name in (path.name, Path(os.path.realpath(path)).name):
        if name.endswith(SUFFIXES):
            return name
    if str(path).startswith(("/dev/", "/proc/")):
        return "lines.jsonl"
    raise UnknownFormatError(f"{path}: unknown data format; supported are {', '.join(SUFFIXES)}")


def _line_rows(path: Path, file: _BoundedFile) -> Iterator[Row]:
    number = 0
    while True:
        number += 1
        location = f"{path}:{number}"
        file.rows = number
        line = file.line(location)
        if not line:
            return
        if len(line) > MAX_ROW_BYTES:
            yield Row(location, LongRowError(f"the line is longer than {MAX_ROW_BYTES:,} bytes"))
            while line and not line.endswith(b"\n"):
                line = file.line(location)
                file.check(location)
            continue
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if line.strip():
            value: Any
            try:
                value = parse_json(line)
            except ValueError as error:
                value = BadRowError(str(error))
            yield Row(location, value, line)


def _list_rows(path: Path, file: _BoundedFile) -> Iterator[Row]:
    reader = _ElementReader(path, file)
    if reader.next_character() != "[":
        raise UnreadableRowError(str(path), "a .json file must hold a list of rows")
    if reader.next_character(after=1) != "]":
        while True:
            value = reader.element()
            yield Row(reader.location, value, reader.text)
            separator = reader.next_character()
            if separator == "]":
                break
            if separator != ",":
                raise UnreadableRowError(reader.location, "not JSON: no ',' or ']' after the row")
            reader.next_character(after=1)
            reader.number += 1
    if reader.next_character(after=1):
        raise UnreadableRowError(reader.location, "not JSON: something follows the list")


class _ElementReader:
    """Reads the elements of a JSON list one by one.

    ``number`` counts elements from 1; ``text`` is that of the last one.
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
    def location(self) -> str:
        return f"{self._path}:row {self.number}"

    def next_character(self, *, after: int = 0) -> str:
        """Skip ``after`` characters and white space; the next character, "" at the end of the file."""
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
        """The next element; a BadRowError if its end is known but it cannot be used."""
        while True:
            try:
                value, after = self._decoded()
            except RecursionError as error:
                raise UnreadableRowError(self.location, f"not JSON: {error_reason(error)}") from error
            except json.JSONDecodeError as error:
                if self._is_end:
                    raise UnreadableRowError(self.location, f"not JSON: {error.msg}") from error
            else:
                # "-1.5e" at the end of the buffer may be the start of -1.5e-7
                margin = 3 if isinstance(value, (int, float)) else 1
                if after + margin <= len(self._text) or self._is_end:
                    self.text, self._at = self._text[self._at : after].encode() + b"\n", after
                    return value
            self._read_more()

    def _decoded(self) -> tuple[Any, int]:
        """The next element and its end. Raises JSONDecodeError if it does not end within the buffer."""
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
        remaining = self._text[self._at :]
        if len(remaining) > MAX_ROW_BYTES:
            raise UnreadableRowError(self.location, f"not JSON, or longer than {MAX_ROW_BYTES:,} bytes")
        with self._file.reading(self.location):
            # double the buffer each time, so that a long row is not parsed again for every chunk
            data = self._file.read(max(_CHUNK, len(remaining)))
            self._file.rows = self.number
            self._text, self._at, self._is_end = remaining + self._decoder.decode(data, final=not data), 0, not data
        self._file.check(self.location)


class _BoundedFile:
    """A plain or gzipped file, opened for reading; ``check`` raises once it exceeds the limits for gzipped files.

    ``rows``: number of rows read so far; the reader updates it.
    """

    def __init__(self, path: Path, *, is_gzipped: bool) -> None:
        self._path = path
        self._is_gzipped = is_gzipped
        max_size = MAX_GZIP_RATIO * path.stat().st_size
        self._max_bytes = max(FREE_GZIP_BYTES, max_size)
        self._max_rows = max(FREE_GZIP_ROWS, max_size // ROW_BYTES)
        self.raw: BinaryIO = cast(BinaryIO, gzip.GzipFile(path, "rb")) if is_gzipped else path.open("rb")
        self.read = self.raw.read
        self.rows = 0

    def line(self, location: str) -> bytes:
        """The next line, or its first ``MAX_ROW_BYTES + 1`` bytes; empty at the end."""
        with self.reading(location):
            line = self.raw.readline(MAX_ROW_BYTES + 1)
        if len(line) <= MAX_ROW_BYTES:
            self.check(location)
        return line

    def reading(self, location: str) -> AbstractContextManager[None]:
        """Converts read errors to UnreadableRowError."""
        return _reading(location, self._path)

    def check(self, location: str) -> None:
        """Raise UnreadableRowError if the file exceeds the limits for gzipped files."""
        if not self._is_gzipped:
            return
        is_large, is_many = self.raw.tell() > self._max_bytes, self.rows > self._max_rows
        if is_large or is_many:
            noun = f"more than {MAX_GZIP_RATIO} times" if is_large else f"{self.rows} rows, too many for"
            reason = f"the file decompresses to {noun} its size; unpack it first if that is intended"
            raise UnreadableRowError(location, reason)


@contextmanager
def _opened(path: Path, *, is_gzipped: bool) -> Iterator[_BoundedFile]:
    with _reading(str(path), path):
        file = _BoundedFile(path, is_gzipped=is_gzipped)
    with file.raw:
        yield file


@contextmanager
def _reading(location: str, path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        failed_at = location if isinstance(error, EOFError) else str(path)
        raise UnreadableRowError(failed_at, f"cannot be read: {reason}") from error
    except UnicodeDecodeError as error:
        raise UnreadableRowError(location, f"not JSON: {error_reason(error)}") from error
