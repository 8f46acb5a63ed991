"""Preference pairs from files and hub data sets, in every form of ``redline.pairs``.

Every bad row is reported, with file, line and reason, before anything else happens; none is dropped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

from redline.pairs import BadRowError, Pair, parse_row
from redline.row_files import Problems, UnreadableRowError, parse_json, read_lines, read_list
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
    problems = Problems(MAX_REPORTED)
    for source in sources:
        before = len(pairs)
        is_file = Path(source).exists() and not Path(source).is_dir()
        rows = _file_rows(Path(source)) if is_file else _hub_rows(str(source))
        for where, row in rows:
            try:
                if isinstance(row, BadRowError):
                    raise row
                pairs.append(parse_row(row, where))
            except BadRowError as error:
                problems.add(f"{where}: {error}")
            if problems.is_full:
                raise DataError(listing(problems, "bad rows; nothing was used"))
        if len(pairs) == before and not problems.count:
            problems.add(f"{source}: holds no pairs")
        digest = file_digest(Path(source)) if Path(source).is_file() else None
        origins.append(DataSource(name=str(source), sha256=digest, pairs=len(pairs) - before))
    if problems.count:
        raise DataError(listing(problems, "bad rows; nothing was used"))
    return pairs, origins


def listing(problems: Problems, what: str) -> str:
    """``N what`` and the problems, one a line, the first fifty."""
    shown = list(problems.first)
    if problems.count > len(shown):
        shown.append(f"... and {problems.count - len(shown)} more")
    return "\n  ".join([f"{problems.counted} {what}", *shown])


def _file_rows(path: Path) -> Iterator[tuple[str, Any]]:
    if not path.name.endswith(_SUFFIXES):
        raise DataError(f"{path}: unknown data format; this reads {', '.join(_SUFFIXES)} and hub ids")
    try:
        if path.name.removesuffix(".gz").endswith(".json"):
            yield from read_list(path)
            return
        for where, line in read_lines(path):
            try:
                yield where, parse_json(line)
            except ValueError as error:
                yield where, BadRowError(str(error))
    except UnreadableRowError as error:
        yield error.where, BadRowError(error.reason)


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
