"""Rows of a JSONL file, plain or gzipped, each with its place."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from redline.errors import CommandError

Row = tuple[str, dict[str, Any]]
_SHOWN = 10


def read_rows(path: Path, limit: int | None = None) -> list[Row]:
    """``(file:line, row)`` of every row, blank lines left out, at most ``limit``.

    Raises:
        CommandError: it cannot be read, holds nothing, or holds lines that are no objects (all of them told).
    """
    opener = gzip.open if path.name.endswith(".gz") else open
    rows: list[Row] = []
    problems: list[str] = []
    try:
        with opener(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if limit is not None and len(rows) >= limit:
                    break
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                    if "\\u" in line:
                        json.dumps(row, ensure_ascii=False).encode()  # half a surrogate pair is no text
                except (ValueError, RecursionError) as error:
                    problems.append(f"{path}:{number}: not JSON: {error}")
                    continue
                if isinstance(row, dict):
                    rows.append((f"{path}:{number}", row))
                else:
                    problems.append(f"{path}:{number}: a row must be an object")
    except (OSError, UnicodeDecodeError, EOFError, zlib.error) as error:
        raise CommandError(f"{path}: cannot be read: {error}") from error
    refuse_if_any(problems)
    if not rows:
        raise CommandError(f"{path}: holds no rows")
    return rows


def refuse_if_any(problems: Sequence[str]) -> None:
    """Raise CommandError with all problems, the first ten in full."""
    if problems:
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise CommandError("; ".join(problems[:_SHOWN]) + more)
