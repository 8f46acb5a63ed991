"""From rows of a file to items of a request, and from answers to rows of another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from redline.cli.terminal import progress_bar
from redline.errors import CommandError
from redline.exchange import as_items
from redline.jsonl import Row
from redline.wire import ItemError, ResponseItem

Item = TypeVar("Item", bound=ResponseItem)
Answer = TypeVar("Answer", bound=BaseModel)


def field_of(where: str, row: dict[str, Any], name: str) -> Any:
    """A field that must be there. Raises CommandError."""
    if row.get(name) is None:
        raise CommandError(f"{where}: {name!r} is missing")
    return row[name]


def text_of(where: str, row: dict[str, Any], name: str) -> Any:
    """A reply as text, also where it is kept as one assistant turn. Raises CommandError."""
    value = field_of(where, row, name)
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
        return value[0].get("content")
    return value


def item_of(where: str, fields: dict[str, Any], kind: type[Item]) -> Item:
    """An item of ``kind``. Raises CommandError."""
    if isinstance(fields.get("id"), int):
        fields = {**fields, "id": str(fields["id"])}
    try:
        return as_items([fields], kind)[0]
    except Exception as error:
        raise CommandError(f"{where}: {str(error).removeprefix('item 0: ')}") from error


def items_of(rows: list[Row], kind: type[Item]) -> list[Item]:
    """An item a row, made of the fields that ``kind`` knows. Raises CommandError."""
    known = set(kind.model_fields)
    return [
        item_of(
            where, {k: v for k, v in row.items() if k in known} | {"response": text_of(where, row, "response")}, kind
        )
        for where, row in rows
    ]


def in_blocks(
    what: str, items: list[Item], size: int, ask: Callable[[list[Item]], Sequence[Answer]]
) -> Iterator[Answer]:
    """The answers to ``items``, asked for ``size`` at a time, with a progress bar."""
    with progress_bar(what, len(items)) as bar:
        for start in range(0, len(items), size):
            answers = ask(items[start : start + size])
            bar.update(min(start + size, len(items)), "")
            yield from answers


@contextmanager
def writer(out: Path | None) -> Iterator[Callable[[str], None]]:
    """Writes rows as they come; the file is opened before anything is asked, and keeps what was answered."""
    if out is None:
        yield lambda row: print(row, flush=True)
        return
    count = 0
    with out.open("w", encoding="utf-8") as file:

        def write(row: str) -> None:
            nonlocal count
            count += 1
            file.write(row + "\n")
            file.flush()

        try:
            yield write
        finally:
            print(f"wrote {out}: {count} rows")


def write_answers(out: Path | None, rows: list[Row], answers: Iterator[Answer], failed: str) -> None:
    """A line an answer, as they come. Raises CommandError telling what ``failed``, where some did."""
    told: list[tuple[str, Answer]] = []
    with writer(out) as write:
        for (where, _), answer in zip(rows, answers, strict=True):
            write(answer.model_dump_json(exclude_none=True))
            told.append((where, answer))
    fail_if_any(told, failed)


def fail_if_any(told: Sequence[tuple[str, BaseModel]], what: str) -> None:
    """Raise CommandError where there are errors among the answers; ``what`` as in "2 of 9 not scored"."""
    failed = [(where, answer.error.message) for where, answer in told if isinstance(answer, ItemError)]
    if failed:
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        raise CommandError(f"{len(failed)} of {len(told)} {what}: {failed[0][0]}: {failed[0][1]}{more}")
