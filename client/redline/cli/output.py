"""Where answers go: standard output, or a file that is whole once it has its name and can be added to until then."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from redline.cli.terminal import need
from redline.errors import CommandError

_ROW_GROUP = 4096


def is_parquet(out: Path | None) -> bool:
    """Whether ``out`` asks for Parquet."""
    return out is not None and out.suffix == ".parquet"


class Output:
    """Rows as they come, to standard output or towards ``out``.

    Rows are kept in ``OUT.partial`` and are given their name, as JSONL or Parquet, when all are there. A run that was
    killed leaves that file: the same command goes on behind its last whole row. ``done``: rows that are there already.

    Args:
        asked: what the answers are answers to; a partial file of anything else is refused.

    Raises:
        CommandError: there is a partial file of something else, or another process writes it.
    """

    def __init__(self, out: Path | None, asked: Mapping[str, Any]) -> None:
        self.out = out
        self.done = 0
        self.failures: list[tuple[str, str]] = []
        if out is None:
            return
        if is_parquet(out):
            need("parquet", "pyarrow")
        self._partial = out.with_name(out.name + ".partial")
        head = json.dumps({"redline_partial": 1, **asked}, sort_keys=True, ensure_ascii=False)
        self._file = self._partial.open("a", encoding="utf-8")
        if not _locked(self._file):
            self._file.close()
            raise CommandError(f"another process is writing {self._partial}")
        try:
            self._resume(head)
        except CommandError:
            self._file.close()
            raise

    def _resume(self, head: str) -> None:
        """Count the whole rows, and cut off the one that was being written."""
        whole = 0
        with self._partial.open("rb") as lines:
            for number, line in enumerate(lines):
                if not line.endswith(b"\n"):
                    break
                if number == 0 and line.decode(errors="replace").rstrip("\n") != head:
                    raise CommandError(
                        f"{self._partial} holds answers to something else (another file, model or options); "
                        "finish that run or remove it"
                    )
                whole += len(line)
                if number:
                    self._note(json.loads(line))
                    self.done += 1
        self._file.truncate(whole)
        if whole == 0:
            self._file.write(head + "\n")
            self._file.flush()
        if self.done:
            print(f"{self._partial}: {self.done} rows are there, going on", file=sys.stderr)

    def _note(self, line: Mapping[str, Any]) -> None:
        self.failures += [(line["where"], why) for why in line["failed"]]

    def write(self, where: str, row: Mapping[str, Any], failed: list[str]) -> None:
        """One more row. ``where`` it came from, and why answers in it failed, if any did."""
        line = {"where": where, "failed": failed, "row": row}
        self._note(line)
        self.done += 1
        if self.out is None:
            print(json.dumps(row, ensure_ascii=False), flush=True)
        else:
            self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
            self._file.flush()

    def rows(self) -> Iterator[dict[str, Any]]:
        """Every row of the partial file; none where rows go to standard output."""
        if self.out is None:
            return
        with self._partial.open(encoding="utf-8") as lines:
            next(lines)
            for line in lines:
                yield json.loads(line)["row"]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.out is None:
            return
        self._file.close()
        if error is not None:
            if self.done:
                print(f"{self._partial} keeps {self.done} rows; the same command goes on", file=sys.stderr)
            else:
                self._partial.unlink()
            return
        finished = self.out.with_name(self.out.name + ".finished")
        if is_parquet(self.out):
            _write_parquet(finished, self.rows)
        else:
            with finished.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows())
        finished.replace(self.out)
        self._partial.unlink()
        print(f"wrote {self.out}: {self.done} rows")


def _locked(file: IO[str]) -> bool:
    """Whether the file is this process's alone from now on; always, where there are no locks."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _write_parquet(path: Path, rows: Callable[[], Iterator[dict[str, Any]]]) -> None:
    """Rows as Parquet, a row group at a time. The schema is that of all rows: some fields stand in few.

    Ids are text: a file may have numbers here and words there.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([])
    for group in _groups(rows()):
        names = dict.fromkeys(name for row in group for name in row)
        found = pa.table({name: [row.get(name) for row in group] for name in names}).schema
        schema = pa.unify_schemas([schema, found], promote_options="permissive")
    with pq.ParquetWriter(path, schema) as writer:
        for group in _groups(rows()):
            columns = {name: [row.get(name) for row in group] for name in schema.names}
            writer.write_table(pa.table(columns, schema=schema))


def _groups(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    group: list[dict[str, Any]] = []
    for row in rows:
        group.append({**row, "id": str(row["id"])} if row.get("id") is not None else row)
        if len(group) == _ROW_GROUP:
            yield group
            group = []
    if group:
        yield group
