"""Preference pairs from files and hub data sets, in every form of ``redline.pairs``.

Every bad row is reported, with file, line and reason, before anything else happens; none is dropped.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

from redline.pairs import BadRowError, Pair, parse_row
from redline_model.errors import DataError
from redline_model.folders import file_digest
from redline_model.manifest import DataSource

_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz")
MAX_REPORTED = 50


def load_pairs(sources: Sequence[str | Path]) -> tuple[list[Pair], list[DataSource]]:
    """All pairs of all sources, and what they were.

    Args:
        sources: files (``.jsonl``, ``.json``, either gzipped) or hub ids ``owner/name``, optionally
            ``owner/name@split`` (default ``train``).

    Raises:
        DataError: listing every bad row of every source (the first 50 in full), or the source that is no source.
    """
    pairs: list[Pair] = []
    origins: list[DataSource] = []
    problems: list[str] = []
    for source in sources:
        before = len(pairs)
        digest: str | None
        if Path(source).is_file():
            rows, digest = _file_rows(Path(source)), file_digest(Path(source))
        else:
            rows, digest = _hub_rows(str(source)), None
        for where, row in rows:
            try:
                if isinstance(row, BadRowError):
                    raise row
                pairs.append(parse_row(row, where))
            except BadRowError as error:
                problems.append(f"{where}: {error}")
        if len(pairs) == before and not problems:
            problems.append(f"{source}: holds no pairs")
        origins.append(DataSource(name=str(source), sha256=digest, pairs=len(pairs) - before))
    if problems:
        raise DataError(listing(problems, "bad rows; nothing was used"))
    return pairs, origins


def listing(problems: Sequence[str], what: str) -> str:
    """``N what`` and the problems, one a line, the first fifty."""
    shown = list(problems[:MAX_REPORTED])
    if len(problems) > MAX_REPORTED:
        shown.append(f"... and {len(problems) - MAX_REPORTED} more")
    return "\n  ".join([f"{len(problems)} {what}", *shown])


def _file_rows(path: Path) -> Iterator[tuple[str, Any]]:
    if not path.name.endswith(_SUFFIXES):
        raise DataError(f"{path}: unknown data format; this reads {', '.join(_SUFFIXES)} and hub ids")
    opener = gzip.open if path.name.endswith(".gz") else open
    try:
        with opener(path, "rb") as file:
            if path.name.removesuffix(".gz").endswith(".json"):
                rows = json.loads(file.read())
                if not isinstance(rows, list):
                    raise DataError(f"{path}: a .json file must hold a list of rows")
                yield from ((f"{path}:row {n}", row) for n, row in enumerate(rows, 1))
                return
            for number, line in enumerate(file, 1):
                if line.strip():
                    try:
                        yield f"{path}:{number}", json.loads(line)
                    except (ValueError, RecursionError) as error:
                        yield f"{path}:{number}", BadRowError(f"not JSON: {error}")
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON: {error}") from error


def _hub_rows(source: str) -> Iterator[tuple[str, Any]]:
    name, _, split = source.partition("@")
    if name.count("/") != 1 or name.startswith((".", "/", "~")) or name.endswith(_SUFFIXES):
        raise DataError(f"{source}: there is no such file")
    from datasets import load_dataset

    # data sets before version 4 ask on the terminal whether to run code that comes with the data
    no_code = {"trust_remote_code": False} if "trust_remote_code" in signature(load_dataset).parameters else {}
    try:
        rows = load_dataset(name, split=split or "train", **no_code)
    except Exception as error:  # datasets raises a dozen unrelated types for "cannot be had"
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"{source}: no such file, and no such hub data set: {reason}") from error
    for number, row in enumerate(rows, 1):
        yield f"{source}:row {number}", row


def split_by_prompt(pairs: Iterable[Pair], held_out_share: float) -> tuple[list[Pair], list[Pair]]:
    """``(training, held out)``; decided by each prompt's digest, so a prompt is never on both sides."""
    sides: tuple[list[Pair], list[Pair]] = ([], [])
    for pair in pairs:
        digest = hashlib.sha256(pair.prompt_key.encode()).digest()
        sides[int.from_bytes(digest[:8], "big") / 2**64 < held_out_share].append(pair)
    return sides
