"""From rows of a file to items of a request, and from answers to rows of another; a block at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from itertools import islice
from typing import Any, Generic, NamedTuple, TypeVar

from pydantic import BaseModel

from redline.background import DaemonPool
from redline.cli.terminal import progress_bar
from redline.errors import CommandError
from redline.exchange import as_items
from redline.jsonl import CheckedRows
from redline.row_files import Problems
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


class Asked(NamedTuple, Generic[Item]):
    """What a row asks: one item, or several that belong together. ``id`` is the row's own, None if it has none."""

    id: Any
    items: list[Item]


def row_item(kind: type[Item]) -> Callable[[str, dict[str, Any]], Asked[Item]]:
    """The parser of a row that is one item, made of the fields that ``kind`` knows. It raises CommandError."""
    known = set(kind.model_fields)

    def parse(where: str, row: dict[str, Any]) -> Asked[Item]:
        fields = {name: value for name, value in row.items() if name in known}
        return Asked(row.get("id"), [item_of(where, fields | {"response": text_of(where, row, "response")}, kind)])

    return parse


def answered(
    what: str,
    rows: CheckedRows[Asked[Item]],
    ask: Callable[[list[Item]], Sequence[Answer]],
    *,
    block: int,
    done: int = 0,
) -> Iterator[tuple[str, Any, list[Answer]]]:
    """``(where, id, answers)`` of every row but the first ``done``, in order, with a progress bar.

    Rows are asked for ``block`` at a time, and one block ahead, so that the service does not wait for the disk. No more
    than two blocks are held.
    """
    left = islice(iter(rows), done, None)
    ahead: deque[tuple[list[tuple[str, Asked[Item]]], Future[Sequence[Answer]]]] = deque()
    with progress_bar(what, rows.count) as bar, DaemonPool(2) as pool:
        while True:
            while len(ahead) < 2 and (part := list(islice(left, block))):
                ahead.append((part, pool.submit(ask, [item for _, asked in part for item in asked.items])))
            if not ahead:
                if done < rows.count:
                    raise CommandError(f"{rows.path}: has fewer rows than at the start; it was changed meanwhile")
                return
            part, future = ahead.popleft()
            answers = iter(future.result())
            for where, asked in part:
                done += 1
                yield where, asked.id, list(islice(answers, len(asked.items)))
            bar.update(done, "")


def fail_if_any(failures: Problems, total: int, what: str) -> None:
    """Raise CommandError where there are failures; ``what`` as in "2 of 9 not scored"."""
    if failures.count:
        more = f" (and {failures.count - 1} more)" if failures.count > 1 else ""
        raise CommandError(f"{failures.count} of {total} {what}: {failures.first[0]}{more}")


def failures_of(answers: Sequence[BaseModel]) -> list[str]:
    """Why answers are none, of those."""
    return [answer.error.message for answer in answers if isinstance(answer, ItemError)]
