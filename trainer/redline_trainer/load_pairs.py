"""Reads preference pairs from files and hub data sets, in the formats of ``redline.preference_data.rows``.

Every bad row is reported with its file, line and reason. Bad rows are skipped only on request, and then they are
counted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from inspect import signature
from pathlib import Path

from redline.files.digest import file_digest
from redline.files.row_files import SUFFIXES, Problems, Row, UnknownFormatError, read_rows
from redline.preference_data.row_report import MAX_SHOWN, RowReport, checked_rows
from redline.preference_data.rows import Pair, parse_row
from redline_model.bundle.manifest import DataSource
from redline_model.errors import DataError

_REASON_SHOWN = 500


def load_pairs(sources: Sequence[str | Path], report: RowReport | None = None) -> tuple[list[Pair], list[DataSource]]:
    """Read all pairs of all sources. Returns the pairs, and a record of each source for the manifest.

    Args:
        sources: files (``.jsonl``, ``.json``, either gzipped) or hub ids ``owner/name``, ``owner/name:configuration``,
            either with ``@split`` (default ``train``).
        report: collects unused columns and, if it skips bad rows, those rows. By default bad rows are an error.

    Raises:
        DataError: some rows are bad (the message lists the first 50), a source cannot be read, or a source has no
            usable row.
    """
    report = report or RowReport()
    pairs: list[Pair] = []
    records: list[DataSource] = []
    problems = Problems(MAX_SHOWN)
    for source in sources:
        before, skipped_before = len(pairs), report.skipped.count
        is_file = Path(source).exists() and not Path(source).is_dir()
        rows = read_rows(Path(source)) if is_file else _hub_rows(str(source))
        try:
            parsed = checked_rows(rows, partial(_parse, report), report, problems)
            pairs.extend(pair for _, pair in parsed)
        except UnknownFormatError as error:
            raise DataError(f"{error} and hub ids") from error
        if problems.is_full:
            break
        if len(pairs) == before and not problems.count:
            if report.skipped.count > skipped_before:
                lines = [line for line in report.skipped.first if line.startswith(f"{source}:")]
                raise DataError("\n  ".join([f"{source}: every row is bad", *(lines or report.latest)]))
            problems.add(f"{source}: holds no pairs")
        digest = file_digest(Path(source)) if Path(source).is_file() else None
        records.append(DataSource(name=str(source), sha256=digest, pairs=len(pairs) - before))
    if problems.count:
        raise DataError(problems.listing("bad rows; nothing was used"))
    return pairs, records


def _parse(report: RowReport, where: str, row: dict[str, object]) -> Pair:
    return parse_row(row, where, ignore=report.ignore)


def _hub_rows(source: str) -> Iterator[Row]:
    name, _, split = source.partition("@")
    name, _, configuration = name.partition(":")
    if name.count("/") != 1 or name.startswith((".", "/", "~")) or name.endswith(SUFFIXES):
        raise DataError(f"{source}: there is no such file")
    from datasets import load_dataset

    # datasets before version 4 would ask on the terminal whether to run code of the data set
    no_code = {"trust_remote_code": False} if "trust_remote_code" in signature(load_dataset).parameters else {}
    named = [configuration] if configuration else []
    try:
        rows = load_dataset(name, *named, split=split or "train", **no_code)
    except Exception as error:  # datasets raises many unrelated types if it cannot load a data set
        raise DataError(f"{source}: no such file, and no such hub data set: {_reason(error)}") from error
    for number, row in enumerate(rows, 1):
        yield Row(f"{source}:row {number}", row)


def _reason(error: Exception) -> str:
    """The error message on one line, without its Python example. It may list configurations or splits."""
    lines = [line.strip() for line in str(error).partition("Example of usage")[0].splitlines() if line.strip()]
    text = " ".join(lines)[:_REASON_SHOWN] or type(error).__name__
    return f"{text} (name one as OWNER/NAME:CONFIG@SPLIT)" if "config" in text.lower() else text


def split_by_prompt(pairs: Iterable[Pair], held_out_share: float) -> tuple[list[Pair], list[Pair]]:
    """``(training, held out)``. The digest of the prompt decides, so all pairs of a prompt are on the same side."""
    sides: tuple[list[Pair], list[Pair]] = ([], [])
    for pair in pairs:
        digest = hashlib.sha256(pair.prompt_key.encode()).digest()
        sides[int.from_bytes(digest[:8], "big") / 2**64 < held_out_share].append(pair)
    return sides
