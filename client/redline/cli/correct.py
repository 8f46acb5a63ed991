"""``redline correct``: the model's own rewrite of the responses in a file, or of one response."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from redline.cli.options import Key, OutFile, Url
from redline.cli.redlining import render_correction
from redline.cli.rows import in_blocks, items_of, write_answers, writer
from redline.client import RewardClient
from redline.errors import CommandError
from redline.exchange import DEFAULT_URL
from redline.jsonl import read_rows
from redline.wire import ResponseItem
from redline.wire.correction import MAX_ROUNDS, CorrectOptions

# a rewrite costs many passes: small requests are answered in time and move the bar
_BLOCK = 64
_ITEMS_PER_REQUEST = 16


def correct(
    file: Annotated[Path | None, typer.Argument(help="JSONL (plain or gzip): rows with prompt and response.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Correct one response: its prompt.")] = None,
    response: Annotated[str | None, typer.Option(help="Correct one response: the response.")] = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
    out: OutFile = None,
    limit: Annotated[int | None, typer.Option(help="Only the first rows of the file.")] = None,
    max_rounds: Annotated[
        int, typer.Option(min=1, max=MAX_ROUNDS, help="Rewrite the rewrite until it stays the same, so often at most.")
    ] = 1,
    score_after: Annotated[bool, typer.Option(help="Score every correction, too.")] = False,
    truncate: Annotated[bool, typer.Option(help="Cut prompts that are too long, oldest part first.")] = False,
) -> None:
    """Rewrite responses. JSONL in, JSONL out; one response in a terminal is shown with its edits in colour."""
    options = CorrectOptions(
        max_rounds=max_rounds, score_after=score_after, on_too_long="truncate" if truncate else "error"
    )
    is_one = prompt is not None or response is not None
    if (file is not None) == is_one:
        raise CommandError("give either a FILE, or --prompt with --response")
    with RewardClient(url, key=key, items_per_request=_ITEMS_PER_REQUEST) as client:
        if file is not None:
            rows = read_rows(file, limit)
            items = items_of(rows, ResponseItem)
            answers = in_blocks("correct", items, _BLOCK, lambda block: client.correct(block, options=options).items)
            write_answers(out, rows, answers, "not corrected")
        elif prompt is not None and response is not None:
            result = client.correct_one(prompt, response, options=options)
            if out is not None or not sys.stdout.isatty():
                with writer(out) as write:
                    write(result.model_dump_json(exclude_none=True))
            if sys.stdout.isatty():
                Console().print(render_correction(response, result))
        else:
            raise CommandError("--prompt and --response go together")
