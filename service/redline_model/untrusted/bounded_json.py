"""JSON from an untrusted file: limits of size, depth and number of values are checked before it is used."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from redline_model.errors import BundleError

MAX_BYTES = 8 * 2**20
MAX_DEPTH = 100
_MAX_MESSAGE = 300
_SEPARATORS_PER_VALUE = 20


def read_object(path: Path, *, max_values: int | None = None, is_strict: bool = False) -> dict[str, Any]:
    """The object in a file.

    Args:
        max_values: how many values it may have, nested ones included.
        is_strict: NaN, infinity, repeated keys and text that is not Unicode are errors.

    Raises:
        BundleError: it is missing, not a regular file, too large, nested too deep, or not a JSON object.
    """
    return parse_object(read_bytes(path, MAX_BYTES), str(path), max_values=max_values, is_strict=is_strict)


def read_bytes(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most ``limit`` bytes. Raises BundleError."""
    check_size(path, limit)
    try:
        with path.open("rb") as file:
            return file.read(limit)
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}") from error


def check_size(path: Path, limit: int) -> None:
    """Raise BundleError unless ``path`` is a regular file of at most ``limit`` bytes; it is not opened."""
    try:
        # checked before opening, because opening a pipe would wait for a writer
        is_file, size = path.is_file(), path.stat().st_size
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be read: {one_line(error)}") from error
    if not is_file:
        raise BundleError(f"{path} is not a regular file")
    if size > limit:
        raise BundleError(f"{path} has {size} bytes; such a file may have {limit}")


def parse_object(
    data: bytes, source: str, *, max_values: int | None = None, is_strict: bool = False, max_depth: int = MAX_DEPTH
) -> dict[str, Any]:
    """The object in ``data``; arguments and errors as in ``read_object``."""
    # building millions of values takes seconds; texts have commas and brackets too, but far fewer than this
    if max_values is not None and sum(map(data.count, (b",", b"[", b"{"))) > _SEPARATORS_PER_VALUE * max_values:
        raise BundleError(f"{source} holds more than {max_values} values")
    strict_options: dict[str, Any] = (
        {"parse_constant": _refuse_constant, "object_pairs_hook": _unique_keys} if is_strict else {}
    )
    try:
        raw = json.loads(data.decode("utf-8-sig"), **strict_options)
    except RecursionError:
        raise BundleError(f"{source} is nested too deep") from None
    except (ValueError, MemoryError) as error:
        raise BundleError(f"{source} is not JSON: {one_line(error)}") from error
    if not isinstance(raw, dict):
        raise BundleError(f"{source} is not a JSON object")
    _check_extent(raw, source, max_depth, max_values)
    if is_strict:
        try:
            # half of a surrogate pair, or 1e999: a JSON response could not contain them
            json.dumps(raw, ensure_ascii=False, allow_nan=False).encode()
        except ValueError as error:
            raise BundleError(f"{source} holds text that is not Unicode, or a number that is not finite") from error
    return raw


def one_line(error: object) -> str:
    """The first line of a message, printable and of limited length."""
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    text = "".join(letter if letter.isprintable() else "?" for letter in text[: 2 * _MAX_MESSAGE])
    return text if len(text) <= _MAX_MESSAGE else text[: _MAX_MESSAGE - 3] + "..."


def _check_extent(raw: dict[str, Any], source: str, max_depth: int, max_values: int | None) -> None:
    level: Sequence[Any] = [raw]
    depth = values = 0
    while level:
        depth, values = depth + 1, values + len(level)
        if depth > max_depth:
            raise BundleError(f"{source} is nested deeper than {max_depth} levels")
        if max_values is not None and values > max_values:
            raise BundleError(f"{source} holds more than {max_values} values")
        inner: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                inner += value.values()
            elif isinstance(value, list):
                inner += value
        level = inner


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("an object has the same key twice")
    return result
