"""``redline correct``: the model's own rewrite of the responses in a file, or of one response."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from redline.client import RewardClient
from redline.errors import CommandError
from redline.http.exchange import DEFAULT_URL
from redline.preference_data.checked_rows import CheckedRows
from redline.wire import ItemError, ResponseItem
from redline.wire.correction import MAX_ROUNDS, CorrectOptions, ItemCorrection
from redline_cli.bad_rows import BadRowPolicy, OnBadRow, row_report
from redline_cli.options import Edits, Key, Limit, OutFile, Url
from redline_cli.output import Output
from redline_cli.redlining import render_correction
from redline_cli.request_rows import fail_if_any, failure_messages, request_results, row_item, skipped_row
from redline_cli.terminal import is_terminal

# a rewrite takes many forward passes: small requests end before the timeout and move the progress bar
_BLOCK = 64
_ITEMS_PER_REQUEST = 16


def correct(
    file: Annotated[
        Path | None,
        typer.Argument(
            help="JSONL or JSON (plain or gzip): rows with a prompt (in any format that train reads) and a response."
        ),
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="The prompt of a single response.")] = None,
    response: Annotated[str | None, typer.Option(help="A single response to correct.")] = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
    out: OutFile = None,
    limit: Limit = None,
    on_bad_row: OnBadRow = BadRowPolicy.ERROR,
    max_rounds: Annotated[
        int,
        typer.Option(
            min=1, max=MAX_ROUNDS, help="Rewrite repeatedly until the text stays the same, at most this many times."
        ),
    ] = 1,
    score_after: Annotated[bool, typer.Option(help="Also score every correction.")] = False,
    edits: Edits = None,
    truncate: Annotated[bool, typer.Option(help="Cut prompts that are too long, oldest part first.")] = False,
) -> None:
    """Rewrite responses. JSONL in, JSONL or Parquet out; a single response in a terminal is shown with coloured edits.

    With --out, run the same command again to resume a stopped run.
    """
    options = CorrectOptions(
        max_rounds=max_rounds,
        score_after=score_after,
        on_too_long="truncate" if truncate else "error",
        edits=edits,
    )
    is_single = prompt is not None or response is not None
    if (file is not None) == is_single:
        raise CommandError("give either a FILE, or --prompt with --response")
    with RewardClient(url, key=key, items_per_request=_ITEMS_PER_REQUEST) as client:
        if file is not None:
            with row_report(on_bad_row, out) as report:
                rows = CheckedRows(file, row_item(ResponseItem, report), limit, report=report, stand_in=skipped_row(1))
            run_identity = {"rows": rows.sha256, "model": client.model().digest, "options": options.model_dump()}

            def send(items: list[ResponseItem]) -> Sequence[ItemCorrection | ItemError]:
                return client.correct(items, options=options).items

            with Output(out, run_identity) as output:
                for results in request_results("correct", rows, send, block=_BLOCK, done=output.done):
                    output.write(results.location, _json(results.items[0]), failure_messages(results))
            fail_if_any(output.failures, rows.good, "not corrected")
        elif prompt is not None and response is not None:
            result = client.correct_one(prompt, response, options=options)
            if out is not None or not is_terminal():
                with Output(out, {}) as output:
                    output.write("the response", _json(result), [])
            if is_terminal():
                Console().print(render_correction(response, result, edits))
        else:
            raise CommandError("--prompt needs --response, and --response needs --prompt")


def _json(answer: ItemCorrection | ItemError) -> dict[str, Any]:
    return answer.model_dump(mode="json", exclude_none=True)
