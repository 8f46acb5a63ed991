"""Rows of JSON files from anywhere, read with bounded memory. Standard library only.

A row is at most ``MAX_ROW_BYTES`` long. A gzipped file may hold a lot more than its size, but not without end: beyond
``FREE_GZIP_BYTES`` it may be ``MAX_GZIP_RATIO`` times as large as it is packed. Of problems with rows the first are
kept and the others counted.
"""

from __future__ import annotations

import codecs
import gzip
import json
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast

MAX_ROW_BYTES = 16 * 2**20
FREE_GZIP_BYTES = 256 * 2**20
MAX_GZIP_RATIO = 200
MAX_PROBLEMS = 10_000
_SHOWN_CHARACTERS = 500
_CHUNK = 2**16
_BLANK = " \t\r\n"


class UnreadableRowError(ValueError):
    """A row or the rest of a file cannot be read; ``where`` is the file, and the row if it is known."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where}: {reason}")
        self.where = where
        self.reason = reason


class Problems:
    """Problems with rows, in bounded memory: the first ``shown`` are kept, shortened, and all are counted."""

    def __init__(self, shown: int) -> None:
        self.count = 0
        self.first: list[str] = []
        self._shown = shown

    def add(self, problem: str) -> None:
        """One more."""
        self.count += 1
        if len(self.first) < self._shown:
            is_long = len(problem) > _SHOWN_CHARACTERS
            self.first.append(problem[:_SHOWN_CHARACTERS] + "..." if is_long else problem)

    @property
    def is_full(self) -> bool:
        """Whether there are so many that reading on is of no use."""
        return self.count >= MAX_PROBLEMS

    @property
    def counted(self) -> str:
        """Their number, as far as they were counted."""
        return f"{self.count} or more" if self.is_full else str(self.count)


def read_lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """``(file:line, line)`` of every line that is not blank, as it stands, its line end included.

    Raises:
        UnreadableRowError: the file cannot be read, a line is too long, or it inflates without end.
    """
    with _opened(path) as file:
        number = 0
        while True:
            number += 1
            where = f"{path}:{number}"
            with _reading(where, path):
                line = file.readline(MAX_ROW_BYTES + 1)
            if not line:
                return
            if len(line) > MAX_ROW_BYTES:
                raise UnreadableRowError(where, f"the line is longer than {MAX_ROW_BYTES:,} bytes")
            file.check(where)
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if line.strip():
                yield where, line


def read_list(path: Path) -> Iterator[tuple[str, Any]]:
    """``(file:row N, value)`` of every element of a file that holds one JSON list; one element is held at a time.

    Raises:
        UnreadableRowError: the file cannot be read, is no such list, or an element is too long.
    """
    with _opened(path) as file:
        reader = _ElementReader(path, file)
        if reader.next_character() != "[":
            raise UnreadableRowError(str(path), "a .json file must hold a list of rows")
        if reader.next_character(after=1) != "]":
            while True:
                yield reader.where, reader.element()
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
    """Text of a file as far as it was read, and the place in it: ``number`` counts elements from 1."""

    def __init__(self, path: Path, file: _BoundedFile) -> None:
        self.number = 1
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
        """The value here."""
        while True:
            try:
                value, after = _DECODER.raw_decode(self._text, self._at)
            except RecursionError as error:
                raise UnreadableRowError(self.where, f"not JSON: {_reason(error)}") from error
            except ValueError as error:
                if self._is_end:
                    reason = error.msg if isinstance(error, json.JSONDecodeError) else _reason(error)
                    raise UnreadableRowError(self.where, f"not JSON: {reason}") from error
            else:
                # "-1.5e" at the end of what was read may be the start of -1.5e-7
                margin = 3 if isinstance(value, (int, float)) else 1
                if after + margin <= len(self._text) or self._is_end:
                    self._at = after
                    return value
            self._read_more()

    def _read_more(self) -> None:
        left = self._text[self._at :]
        if len(left) > MAX_ROW_BYTES:
            raise UnreadableRowError(self.where, f"not JSON, or longer than {MAX_ROW_BYTES:,} bytes")
        with _reading(self.where, self._path):
            # twice as much each time, so that a long row is not parsed again for every chunk
            data = self._file.read(max(_CHUNK, len(left)))
            self._text, self._at, self._is_end = left + self._decoder.decode(data, final=not data), 0, not data
        self._file.check(self.where)


def parse_json(line: bytes) -> Any:
    """The value that a line holds.

    Raises:
        ValueError: the line is not JSON in UTF-8, or holds what no JSON parser has to take: NaN, infinity, numbers of
            thousands of digits, nesting of a thousand levels, half a surrogate pair. The message says which.
    """
    try:
        text = line.decode()
        value = _DECODER.decode(text)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError("is not valid Unicode: it holds half a surrogate pair") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {_reason(error)}") from error
    return value


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8: {error.reason} at byte {error.start}"
    return str(error)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"the number {digits[:20]} is too large")
    return value


def _whole(digits: str) -> int:
    if len(digits) > 1000:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite, parse_int=_whole)


class _BoundedFile:
    """A plain or gzipped file, opened for reading; ``check`` raises once it has inflated out of all proportion."""

    def __init__(self, path: Path) -> None:
        self._is_packed = path.name.endswith(".gz")
        self._bound = max(FREE_GZIP_BYTES, MAX_GZIP_RATIO * path.stat().st_size)
        self.raw: BinaryIO = cast(BinaryIO, gzip.GzipFile(path, "rb")) if self._is_packed else path.open("rb")
        self.read = self.raw.read
        self.readline = self.raw.readline
        self._count = 0

    def check(self, where: str) -> None:
        """Raise UnreadableRowError if more has come out of the file than it may hold."""
        if self._is_packed and self.raw.tell() > self._bound:
            reason = f"the file inflates to more than {MAX_GZIP_RATIO} times its size; unpack it first if that is right"
            raise UnreadableRowError(where, reason)


@contextmanager
def _opened(path: Path) -> Iterator[_BoundedFile]:
    with _reading(str(path), path):
        if path.exists() and not path.is_file():
            raise UnreadableRowError(str(path), "is not a regular file, and rows are read more than once")
        file = _BoundedFile(path)
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
        raise UnreadableRowError(where, f"not JSON: {_reason(error)}") from error
