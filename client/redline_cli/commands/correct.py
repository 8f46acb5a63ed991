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
from redline_cli.request_rows import answered, fail_if_any, failures_of, row_item, skipped_row
from redline_cli.terminal import is_terminal

# a rewrite costs many passes: small requests are answered in time and move the bar
_BLOCK = 64
_ITEMS_PER_REQUEST = 16


def correct(
    file: Annotated[
        Path | None, typer.Argument(help="JSONL or JSON (plain or gzip): a prompt, as train reads it, and a response.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="Correct one response: its prompt.")] = None,
    response: Annotated[str | None, typer.Option(help="Correct one response: the response.")] = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
    out: OutFile = None,
    limit: Limit = None,
    on_bad_row: OnBadRow = BadRowPolicy.ERROR,
    max_rounds: Annotated[
        int, typer.Option(min=1, max=MAX_ROUNDS, help="Rewrite the rewrite until it stays the same, so often at most.")
    ] = 1,
    score_after: Annotated[bool, typer.Option(help="Score every correction, too.")] = False,
    edits: Edits = None,
    truncate: Annotated[bool, typer.Option(help="Cut prompts that are too long, oldest part first.")] = False,
) -> None:
    """Rewrite responses. JSONL in, JSONL or Parquet out; one response in a terminal is shown with its edits in colour.

    With --out, a run that was stopped goes on where it was when the same command is given again.
    """
    options = CorrectOptions(
        max_rounds=max_rounds,
        score_after=score_after,
        on_too_long="truncate" if truncate else "error",
        edits=edits,
    )
    is_one = prompt is not None or response is not None
    if (file is not None) == is_one:
        raise CommandError("give either a FILE, or --prompt with --response")
    with RewardClient(url, key=key, items_per_request=_ITEMS_PER_REQUEST) as client:
        if file is not None:
            with row_report(on_bad_row, out) as report:
                rows = CheckedRows(file, row_item(ResponseItem, report), limit, report=report, stand_in=skipped_row(1))
            question = {"rows": rows.sha256, "model": client.model().digest, "options": options.model_dump()}

            def ask(items: list[ResponseItem]) -> Sequence[ItemCorrection | ItemError]:
                return client.correct(items, options=options).items

            with Output(out, question) as output:
                for answers in answered("correct", rows, ask, block=_BLOCK, done=output.done):
                    output.write(answers.where, _json(answers.items[0]), failures_of(answers))
            fail_if_any(output.failures, rows.good, "not corrected")
        elif prompt is not None and response is not None:
            result = client.correct_one(prompt, response, options=options)
            if out is not None or not is_terminal():
                with Output(out, {}) as output:
                    output.write("the response", _json(result), [])
            if is_terminal():
                Console().print(render_correction(response, result, edits))
        else:
            raise CommandError("--prompt and --response go together")


def _json(answer: ItemCorrection | ItemError) -> dict[str, Any]:
    return answer.model_dump(mode="json", exclude_none=True)
