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
    Answers,
    Asked,
    answered,
    fail_if_any,
    failures_of,
    item_of,
    refuse_empty,
    row_item,
    skipped_row,
)
from redline_cli.terminal import is_terminal

_BLOCK = 512
_FAILED = "not scored"
Rows = CheckedRows[Asked[ScoreItem]]


def score(
    file: Annotated[
        Path | None, typer.Argument(help="JSONL or JSON (plain or gzip): a prompt, as train reads it, and a response.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="Score one response: its prompt.")] = None,
    response: Annotated[str | None, typer.Option(help="Score one response: the response.")] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(help="Preference pairs, in any file and form that train reads."),
    ] = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
    out: OutFile = None,
    limit: Limit = None,
    on_bad_row: OnBadRow = BadRowPolicy.ERROR,
    mode: Annotated[str | None, typer.Option(help="Extraction mode; default: the bundle's.")] = None,
    aggregate: Annotated[str | None, typer.Option(help="sum, mean or last; default: the bundle's.")] = None,
    calibrated: Annotated[bool, typer.Option(help="Scores as log-odds of preference.")] = False,
    correction: Annotated[bool, typer.Option(help="Ask for the model's rewrite and the edits.")] = False,
    edits: Edits = None,
    truncate: Annotated[bool, typer.Option(help="Cut prompts that are too long, oldest part first.")] = False,
) -> None:
    """Score responses. JSONL in, JSONL or Parquet out; one response in a terminal is shown in colour.

    With --out, a run that was stopped goes on where it was when the same command is given again.
    """
    options = ScoreOptions(
        mode=mode,
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
                raise CommandError("--prompt and --response go together")
            _score_one(client, prompt, response, options, out)
        elif pairs is not None:
            with row_report(on_bad_row, out) as report:
                rows = CheckedRows(pairs, _pair_items(report), limit, report=report, stand_in=skipped_row(2))
            _score_pairs(client, rows, options, out)
        elif file is not None:
            with row_report(on_bad_row, out) as report:
                rows = CheckedRows(file, row_item(ScoreItem, report), limit, report=report, stand_in=skipped_row(1))
            with Output(out, _question(client, rows, options)) as output:
                for answers in _scored(client, rows, options, output.done):
                    output.write(answers.where, _json(answers.items[0]), failures_of(answers))
            fail_if_any(output.failures, rows.good, _FAILED)


def _json(result: ItemResult) -> dict[str, Any]:
    return result.model_dump(mode="json", exclude_none=True)


def _question(client: RewardClient, rows: Rows, options: ScoreOptions) -> dict[str, Any]:
    """What tells one run's answers from another's."""
    return {"rows": rows.sha256, "model": client.model().digest, "options": options.model_dump(exclude_none=True)}


def _scored(client: RewardClient, rows: Rows, options: ScoreOptions, done: int) -> Iterator[Answers[ItemResult]]:
    digests: set[str] = set()

    def ask(items: list[ScoreItem]) -> Sequence[ItemResult]:
        result = client.score(items, options=options)
        digests.update(result.digests)
        if len(digests) > 1:
            raise CommandError("the service changed its model meanwhile: these would be scores of two models")
        return result.items

    return answered("score", rows, ask, block=_BLOCK, done=done)


def _pair_items(report: RowReport) -> Callable[[str, dict[str, Any]], Asked[ScoreItem]]:
    def parse(where: str, row: dict[str, Any]) -> Asked[ScoreItem]:
        ignored: list[str] = []
        name = row.get("id")
        if not isinstance(name, (str, int, float, NoneType)):
            raise BadRowError("'id' must be text or a number")
        pair = parse_row({**row, "id": None}, where, teaches=False, ignore=ignored.extend)
        for text in (pair.chosen, pair.rejected):
            refuse_empty(report, text)
        report.ignore(ignored)
        # a service that does not know tools refuses them
        tools = {} if pair.tools is None else {"tools": pair.tools}
        sides = [{"prompt": pair.prompt, "response": text, **tools} for text in (pair.chosen, pair.rejected)]
        return Asked(name, [item_of(side, ScoreItem) for side in sides])

    return parse


def _score_pairs(client: RewardClient, rows: Rows, options: ScoreOptions, out: Path | None) -> None:
    wins: list[float] = []

    def note(row: dict[str, Any]) -> None:
        chosen, rejected = (row[side].get("score") for side in ("chosen", "rejected"))
        if chosen is not None and rejected is not None:
            wins.append(1.0 if chosen > rejected else 0.5 if chosen == rejected else 0.0)

    with Output(out, _question(client, rows, options)) as output:
        for row in output.rows():
            note(row)
        for answers in _scored(client, rows, options, output.done):
            chosen, rejected = map(_json, answers.items)
            row = {"id": answers.where if answers.id is None else answers.id, "chosen": chosen, "rejected": rejected}
            note(row)
            output.write(answers.where, row, failures_of(answers))
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
