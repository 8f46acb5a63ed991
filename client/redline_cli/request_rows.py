"""From rows of a file to items of a request, and from answers to rows of another; a block at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from itertools import islice
from typing import Any, Generic, NamedTuple, TypeVar

from pydantic import BaseModel

from redline.errors import CommandError
from redline.files.row_files import BadRowError, Problems
from redline.http.daemon_pool import DaemonThreadPool
from redline.http.exchange import as_items
from redline.preference_data.checked_rows import CheckedRows
from redline.preference_data.row_report import RowReport
from redline.preference_data.rows import parse_asked
from redline.preference_data.turns import single_reply
from redline.text.printable import one_line
from redline.wire import ErrorBody, ErrorCode, ItemError, ResponseItem
from redline_cli.terminal import progress_bar

Item = TypeVar("Item", bound=ResponseItem)
Answer = TypeVar("Answer", bound=BaseModel)


def item_of(fields: dict[str, Any], kind: type[Item]) -> Item:
    """An item of ``kind``. Raises BadRowError."""
    fields = {**fields, "id": id_of(fields.get("id"))}
    try:
        return as_items([fields], kind)[0]
    except Exception as error:
        raise BadRowError(str(error).removeprefix("item 0: ")) from error


def id_of(value: Any) -> Any:
    """An id as the wire has it: a whole number is text there."""
    return str(value) if type(value) is int else value


class Asked(NamedTuple, Generic[Item]):
    """What a row asks: one item, or several that belong together. ``id`` is the row's own, None if it has none.

    A row that was skipped asks nothing; ``errors`` are what stands in the place of its answers.
    """

    id: Any
    items: list[Item]
    errors: tuple[ItemError, ...] = ()


class Answers(NamedTuple, Generic[Answer]):
    """What came of one row: ``items`` are the answers, or the errors of a row that was skipped."""

    where: str
    id: Any
    items: list[Answer]
    is_skipped: bool


def row_item(kind: type[Item], report: RowReport | None = None) -> Callable[[str, dict[str, Any]], Asked[Item]]:
    """The parser of a row that is one item: the fields that ``kind`` knows, and a prompt in any form that train reads.

    It raises BadRowError.

    Args:
        report: counts the other columns. If it skips bad rows, a row with an empty response is one; otherwise the
            service says so.
    """
    known = set(kind.model_fields)

    def parse(where: str, row: dict[str, Any]) -> Asked[Item]:
        fields = {name: value for name, value in row.items() if name in known and value is not None}
        if not fields.get("tools"):
            fields.pop("tools", None)
        if "response" in fields:
            fields["response"] = single_reply(row["response"], "response")
            if report is not None:
                refuse_empty(report, fields["response"])
        ignored: list[str] = []
        if "prompt_ids" in fields:
            ignored = [name for name, value in row.items() if name not in known and value is not None]
        else:
            prompt, tools = parse_asked(row, fields.get("response"), known=known, ignore=ignored.extend)
            fields |= {"prompt": prompt, "tools": tools}
        item = item_of(fields, kind)
        if report is not None:
            report.ignore(ignored)
        return Asked(row.get("id"), [item])

    return parse


def refuse_empty(report: RowReport, response: str) -> None:
    """Raise BadRowError for an empty response where bad rows are skipped, as train does."""
    if report.skips and not response.strip():
        raise BadRowError("'response' is empty")


def skipped_row(count: int) -> Callable[[str, Any, str], Asked[Any]]:
    """What stands in the place of a bad row that is skipped: ``count`` errors, and the row's id if it has one."""

    def stand_in(where: str, value: Any, reason: str) -> Asked[Any]:
        name = value.get("id") if isinstance(value, dict) else None
        name = name if isinstance(name, (str, int, float)) else None
        error = ItemError(
            id=None if name is None or count > 1 else str(name), error=ErrorBody.of(ErrorCode.INVALID_REQUEST, reason)
        )
        return Asked(name, [], (error,) * count)

    return stand_in


def answered(
    what: str,
    rows: CheckedRows[Asked[Item]],
    ask: Callable[[list[Item]], Sequence[Answer]],
    *,
    block: int,
    done: int = 0,
) -> Iterator[Answers[Any]]:
    """The answers to every row but the first ``done``, in order, with a progress bar.

    Rows are asked for ``block`` at a time, and one block ahead, so that the service does not wait for the disk. No more
    than two blocks are held.
    """
    left = islice(iter(rows), done, None)
    ahead: deque[tuple[list[tuple[str, Asked[Item]]], Future[Sequence[Answer]]]] = deque()
    with progress_bar(what, rows.count) as bar, DaemonThreadPool(2) as pool:
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
                items = list(asked.errors or islice(answers, len(asked.items)))
                yield Answers(where, asked.id, items, bool(asked.errors))
            bar.update(done, "")


def fail_if_any(failures: Problems, total: int, what: str) -> None:
    """Raise CommandError where there are failures; ``what`` as in "2 of 9 not scored"."""
    if failures.count:
        more = f" (and {failures.count - 1} more)" if failures.count > 1 else ""
        raise CommandError(f"{failures.count} of {total} {what}: {failures.first[0]}{more}")


def failures_of(answers: Answers[Any]) -> list[str]:
    """Why answers to a row are none, of those; rows that were skipped on request are no failures."""
    return [] if answers.is_skipped else [one_line(a.error.message) for a in answers.items if isinstance(a, ItemError)]
