"""Turns the rows of a file into request items, sends them in blocks, and returns the results in order."""

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
from redline.preference_data.rows import parse_prompt_and_tools
from redline.preference_data.turns import single_reply
from redline.text.printable import one_line
from redline.wire import ErrorBody, ErrorCode, ItemError, ResponseItem, ScoreItem
from redline_cli.terminal import progress_bar

Item = TypeVar("Item", bound=ResponseItem)
Answer = TypeVar("Answer", bound=BaseModel)


def make_item(fields: dict[str, Any], kind: type[Item]) -> Item:
    """Build an item of ``kind``. Raises BadRowError."""
    fields = {**fields, "id": wire_id(fields.get("id"))}
    try:
        return as_items([fields], kind)[0]
    except Exception as error:
        raise BadRowError(str(error).removeprefix("item 0: ")) from error


def wire_id(value: Any) -> Any:
    """An id as the HTTP API has it: integers become text."""
    return str(value) if type(value) is int else value


class RequestRow(NamedTuple, Generic[Item]):
    """The items of one row, one or several that belong together. ``id``: the row's id, None if it has none.

    A skipped row has no items; ``errors`` replace its results.
    """

    id: Any
    items: list[Item]
    errors: tuple[ItemError, ...] = ()


class RowResults(NamedTuple, Generic[Answer]):
    """The results of one row: ``items`` are the service's answers, or the errors of a skipped row."""

    location: str
    id: Any
    items: list[Answer]
    is_skipped: bool


def row_item(kind: type[Item], report: RowReport | None = None) -> Callable[[str, dict[str, Any]], RequestRow[Item]]:
    """A parser of rows with one item: the fields of ``kind``, and a prompt in any format that train reads.

    The parser raises BadRowError.

    Args:
        report: counts the other columns. If it skips bad rows, a row with an empty response is skipped; otherwise it
            is sent and the service returns its error.
    """
    known = set(kind.model_fields)

    def parse(location: str, row: dict[str, Any]) -> RequestRow[Item]:
        fields = {name: value for name, value in row.items() if name in known and value is not None}
        if not fields.get("tools"):
            fields.pop("tools", None)
        if "response" in fields:
            fields["response"] = single_reply(row["response"], "response")
            if report is not None:
                refuse_empty(report, fields["response"])
        elif "response_ids" not in fields and {"chosen", "rejected"} <= row.keys():
            hint = " (score pairs with --pairs FILE)" if kind is ScoreItem else ""
            raise BadRowError(f"the row is a pair with 'chosen' and 'rejected', not one 'response'{hint}")
        ignored: list[str] = []
        if "prompt_ids" in fields:
            ignored = [name for name, value in row.items() if name not in known and value is not None]
        else:
            prompt, tools = parse_prompt_and_tools(row, fields.get("response"), known=known, ignore=ignored.extend)
            fields |= {"prompt": prompt, "tools": tools}
        item = make_item(fields, kind)
        if report is not None:
            report.ignore(ignored)
        return RequestRow(row.get("id"), [item])

    return parse


def refuse_empty(report: RowReport, response: str) -> None:
    """Raise BadRowError for an empty response if bad rows are skipped, as train does."""
    if report.skips and not response.strip():
        raise BadRowError("'response' is empty")


def skipped_row(count: int) -> Callable[[str, Any, str], RequestRow[Any]]:
    """Replaces a skipped row by ``count`` errors and the row's id, if it has one."""

    def stand_in(location: str, value: Any, reason: str) -> RequestRow[Any]:
        row_id = value.get("id") if isinstance(value, dict) else None
        row_id = row_id if isinstance(row_id, (str, int, float)) else None
        error = ItemError(
            id=None if row_id is None or count > 1 else str(row_id),
            error=ErrorBody.of(ErrorCode.INVALID_REQUEST, reason),
        )
        return RequestRow(row_id, [], (error,) * count)

    return stand_in


def request_results(
    label: str,
    rows: CheckedRows[RequestRow[Item]],
    send: Callable[[list[Item]], Sequence[Answer]],
    *,
    block: int,
    done: int = 0,
) -> Iterator[RowResults[Any]]:
    """Send the items of every row after the first ``done``; yields their results in order, with a progress bar.

    Rows are sent in blocks of ``block``, the next block while the last is awaited, so that the service does not wait
    for the disk. At most two blocks are in memory.
    """
    remaining = islice(iter(rows), done, None)
    ahead: deque[tuple[list[tuple[str, RequestRow[Item]]], Future[Sequence[Answer]]]] = deque()
    with progress_bar(label, rows.count) as bar, DaemonThreadPool(2) as pool:
        while True:
            while len(ahead) < 2 and (part := list(islice(remaining, block))):
                ahead.append((part, pool.submit(send, [item for _, row in part for item in row.items])))
            if not ahead:
                if done < rows.count:
                    raise CommandError(f"{rows.path}: the file changed while it was read; it has fewer rows now")
                return
            part, future = ahead.popleft()
            results = iter(future.result())
            for location, row in part:
                done += 1
                items = list(row.errors or islice(results, len(row.items)))
                yield RowResults(location, row.id, items, bool(row.errors))
            bar.update(done, "")


def fail_if_any(failures: Problems, total: int, outcome: str) -> None:
    """Raise CommandError if there are failures. ``outcome``: "not scored", as in "2 of 9 not scored"."""
    if failures.count:
        more = f" (and {failures.count - 1} more)" if failures.count > 1 else ""
        raise CommandError(f"{failures.count} of {total} {outcome}: {failures.first[0]}{more}")


def failure_messages(results: RowResults[Any]) -> list[str]:
    """Error messages of a row's failed items; a skipped row has none."""
    return [] if results.is_skipped else [one_line(a.error.message) for a in results.items if isinstance(a, ItemError)]
