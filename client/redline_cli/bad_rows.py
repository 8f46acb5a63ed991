"""The option --on-bad-row, and the report of skipped rows on standard error."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from redline.files.atomic import check_file_writable, is_special
from redline.preference_data.row_report import RowReport
from redline.text.printable import visible


class BadRowPolicy(StrEnum):
    """What a command does with a row that cannot be used."""

    ERROR = "error"
    SKIP = "skip"


OnBadRow = Annotated[
    BadRowPolicy,
    typer.Option(
        "--on-bad-row",
        help="error: refuse all rows if one is bad; skip: leave bad rows out and write why (OUT-skipped.jsonl).",
    ),
]


def row_report(policy: BadRowPolicy, out: Path | None, *, is_folder: bool = False) -> RowReport:
    """The row report of a command that writes ``out``: on standard error, with skipped rows in a file next to ``out``.

    Raises:
        OSError: the file of skipped rows cannot be written.
    """
    file = None
    if policy is BadRowPolicy.SKIP and out is not None and not is_special(out):
        file = out.with_name(f"{out.name if is_folder else out.stem}-skipped.jsonl")
        check_file_writable(file)
    return RowReport(skips=policy is BadRowPolicy.SKIP, file=file, show=_show)


def _show(line: str) -> None:
    print(visible(line), file=sys.stderr, flush=True)
