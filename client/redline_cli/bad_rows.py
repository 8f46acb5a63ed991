"""What commands do with rows that cannot be used, and how they report what they left out."""

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
    """What is done with a row that cannot be used."""

    ERROR = "error"
    SKIP = "skip"


OnBadRow = Annotated[
    BadRowPolicy,
    typer.Option(
        "--on-bad-row", help="Refuse all rows if one is bad, or skip bad rows and write why (OUT-skipped.jsonl)."
    ),
]


def row_report(policy: BadRowPolicy, out: Path | None, *, is_folder: bool = False) -> RowReport:
    """The report of a command that writes ``out``: on standard error, with skipped rows in a file beside ``out``.

    Raises:
        OSError: that file cannot be written.
    """
    file = None
    if policy is BadRowPolicy.SKIP and out is not None and not is_special(out):
        file = out.with_name(f"{out.name if is_folder else out.stem}-skipped.jsonl")
        check_file_writable(file)
    return RowReport(skips=policy is BadRowPolicy.SKIP, file=file, show=_show)


def _show(line: str) -> None:
    print(visible(line), file=sys.stderr, flush=True)
