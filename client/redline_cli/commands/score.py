"""``redline score``: a file of items, a file of pairs, or one response."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import NoneType
from typing import Annotated, Any

import typer
from rich.console import Console

from redline.client import RewardClient
from redline.errors import CommandError
from redline.http.exchange import DEFAULT_URL
from redline.preference_data.checked_rows import CheckedRows
from redline.preference_data.row_report import RowReport
from redline.preference_data.rows import BadRowError, parse_row
from redline.wire import ItemResult, ScoreItem, ScoreOptions
from redline_cli.bad_rows import BadRowPolicy, OnBadRow, row_report
from redline_cli.options import Edits, Key, Limit, OutFile, Url
from redline_cli.output import Output
from redline_cli.redlining import render
from redline_cli.request_rows import (
    RequestRow,
    RowResults,
    fail_if_any,
    failure_messages,
    make_item,
    refuse_empty,
    request_results,
    row_item,
    skipped_row,
)
from redline_cli.terminal import is_terminal

_BLOCK = 512
_FAILED = "not scored"
Rows = CheckedRows[RequestRow[ScoreItem]]


def score(
    file: Annotated[
        Path | None,
        typer.Argument(
            help="JSONL or JSON (plain or gzip): rows with a prompt (in any format that train reads) and a response."
        ),
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="The prompt of a single response.")] = None,
    response: Annotated[str | None, typer.Option(help="A single response to score.")] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(help="Score both sides of preference pairs, in any format that train reads."),
    ] = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
    out: OutFile = None,
    limit: Limit = None,
    on_bad_row: OnBadRow = BadRowPolicy.ERROR,
    mode: Annotated[str | None, typer.Option(help="Extraction mode; default: the bundle's.")] = None,
    score_mode: Annotated[
        str | None, typer.Option(help="Mode of the score; default: --mode if given, else the bundle's.")
    ] = None,
    aggregate: Annotated[str | None, typer.Option(help="sum, mean or last; default: the bundle's.")] = None,
    calibrated: Annotated[bool, typer.Option(help="Return scores as log-odds of preference.")] = False,
    correction: Annotated[bool, typer.Option(help="Also return the model's rewrite and its edits.")] = False,
    edits: Edits = None,
    truncate: Annotated[bool, typer.Option(help="Cut prompts that are too long, oldest part first.")] = False,
) -> None:
    """Score responses. JSONL in, JSONL or Parquet out; a single response in a terminal is shown in colour.

    With --out, run the same command again to resume a stopped run.
    """
    options = ScoreOptions(
        mode=mode,
        score_mode=score_mode,
        aggregate=aggregate,
        calibrated=calibrated,
        correction=correction,
        edits=edits,
        on_too_long="truncate" if truncate else "error",
    )
    chosen = [file is not None, prompt is not None or response is not None, pairs is not None]
    if sum(chosen) != 1:
        raise CommandError("give one of: a FILE, --pairs FILE, or --prompt with --response")
    with RewardClient(url, key=key) as client:
        if prompt is not None or response is not None:
            if prompt is None or response is None:
                raise CommandError("--prompt needs --response, and --response needs --prompt")
            _score_one(client, prompt, response, options, out)
        elif pairs is not None:
            with row_report(on_bad_row, out) as report:
                rows = CheckedRows(pairs, _pair_items(report), limit, report=report, stand_in=skipped_row(2))
            _score_pairs(client, rows, options, out)
        elif file is not None:
            with row_report(on_bad_row, out) as report:
                rows = CheckedRows(file, row_item(ScoreItem, report), limit, report=report, stand_in=skipped_row(1))
            with Output(out, _run_identity(client, rows, options)) as output:
                for results in _scored(client, rows, options, output.done):
                    output.write(results.location, _json(results.items[0]), failure_messages(results))
            fail_if_any(output.failures, rows.good, _FAILED)


def _json(result: ItemResult) -> dict[str, Any]:
    return result.model_dump(mode="json", exclude_none=True)


def _run_identity(client: RewardClient, rows: Rows, options: ScoreOptions) -> dict[str, Any]:
    """What distinguishes the results of one run from those of another."""
    return {"rows": rows.sha256, "model": client.model().digest, "options": options.model_dump(exclude_none=True)}


def _scored(client: RewardClient, rows: Rows, options: ScoreOptions, done: int) -> Iterator[RowResults[ItemResult]]:
    digests: set[str] = set()

    def send(items: list[ScoreItem]) -> Sequence[ItemResult]:
        result = client.score(items, options=options)
        digests.update(result.digests)
        if len(digests) > 1:
            raise CommandError(
                "the service changed its model during the run: the output would mix scores of two models"
            )
        return result.items

    return request_results("score", rows, send, block=_BLOCK, done=done)


def _pair_items(report: RowReport) -> Callable[[str, dict[str, Any]], RequestRow[ScoreItem]]:
    def parse(location: str, row: dict[str, Any]) -> RequestRow[ScoreItem]:
        ignored: list[str] = []
        row_id = row.get("id")
        if not isinstance(row_id, (str, int, float, NoneType)):
            raise BadRowError("'id' must be text or a number")
        pair = parse_row({**row, "id": None}, location, teaches=False, ignore=ignored.extend)
        for text in (pair.chosen, pair.rejected):
            refuse_empty(report, text)
        report.ignore(ignored)
        # sent only if present: a service without support for tools refuses the field
        tools = {} if pair.tools is None else {"tools": pair.tools}
        sides = [{"prompt": pair.prompt, "response": text, **tools} for text in (pair.chosen, pair.rejected)]
        return RequestRow(row_id, [make_item(side, ScoreItem) for side in sides])

    return parse


def _score_pairs(client: RewardClient, rows: Rows, options: ScoreOptions, out: Path | None) -> None:
    wins: list[float] = []

    def count_win(row: dict[str, Any]) -> None:
        chosen, rejected = (row[side].get("score") for side in ("chosen", "rejected"))
        if chosen is not None and rejected is not None:
            wins.append(1.0 if chosen > rejected else 0.5 if chosen == rejected else 0.0)

    with Output(out, _run_identity(client, rows, options)) as output:
        for row in output.rows():
            count_win(row)
        for results in _scored(client, rows, options, output.done):
            chosen, rejected = map(_json, results.items)
            row = {"id": results.location if results.id is None else results.id, "chosen": chosen, "rejected": rejected}
            count_win(row)
            output.write(results.location, row, failure_messages(results))
    if wins:
        print(f"chosen ranked above rejected in {sum(wins) / len(wins):.1%} of {len(wins)} pairs", file=sys.stderr)
    fail_if_any(output.failures, rows.good * 2, _FAILED)


def _score_one(client: RewardClient, prompt: str, response: str, options: ScoreOptions, out: Path | None) -> None:
    item = ScoreItem(prompt=prompt, response=response)
    result = client.score([item], options=options).scored()[0]
    if out is not None or not is_terminal():
        with Output(out, {}) as output:
            output.write("the response", _json(result), [])
    if is_terminal():
        Console().print(render(response, result, options.edits))
