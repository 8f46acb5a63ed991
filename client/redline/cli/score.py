"""``redline score``: a file of items, a file of pairs, or one response."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from redline.cli.options import Key, OutFile, Url
from redline.cli.redlining import render
from redline.cli.rows import fail_if_any, field_of, in_blocks, item_of, items_of, text_of, write_answers, writer
from redline.client import RewardClient
from redline.errors import CommandError
from redline.exchange import DEFAULT_URL
from redline.jsonl import Row, read_rows
from redline.wire import ItemError, ItemResult, ScoreItem, ScoreOptions

_BLOCK = 256
_FAILED = "not scored"


def score(
    file: Annotated[Path | None, typer.Argument(help="JSONL (plain or gzip): rows with prompt and response.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Score one response: its prompt.")] = None,
    response: Annotated[str | None, typer.Option(help="Score one response: the response.")] = None,
    pairs: Annotated[Path | None, typer.Option(help="JSONL of preference pairs: score both sides.")] = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
    out: OutFile = None,
    limit: Annotated[int | None, typer.Option(help="Only the first rows of the file.")] = None,
    mode: Annotated[str | None, typer.Option(help="Extraction mode; default: the bundle's.")] = None,
    aggregate: Annotated[str | None, typer.Option(help="sum, mean or last; default: the bundle's.")] = None,
    calibrated: Annotated[bool, typer.Option(help="Scores as log-odds of preference.")] = False,
    correction: Annotated[bool, typer.Option(help="Ask for the model's rewrite and the edits.")] = False,
    truncate: Annotated[bool, typer.Option(help="Cut prompts that are too long, oldest part first.")] = False,
) -> None:
    """Score responses. JSONL in, JSONL out; one response in a terminal is shown in colour."""
    options = ScoreOptions(
        mode=mode,
        aggregate=aggregate,
        calibrated=calibrated,
        correction=correction,
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
            _score_pairs(client, read_rows(pairs, limit), options, out)
        elif file is not None:
            _score_rows(client, read_rows(file, limit), options, out)


def _scored(client: RewardClient, items: list[ScoreItem], options: ScoreOptions) -> Iterator[ItemResult]:
    return in_blocks("score", items, _BLOCK, lambda block: client.score(block, options=options).items)


def _score_rows(client: RewardClient, rows: list[Row], options: ScoreOptions, out: Path | None) -> None:
    write_answers(out, rows, _scored(client, items_of(rows, ScoreItem), options), _FAILED)


def _score_pairs(client: RewardClient, rows: list[Row], options: ScoreOptions, out: Path | None) -> None:
    items = [
        item_of(where, {"prompt": field_of(where, row, "prompt"), "response": text_of(where, row, side)}, ScoreItem)
        for where, row in rows
        for side in ("chosen", "rejected")
    ]
    told: list[tuple[str, ItemResult]] = []
    wins, judged = 0.0, 0
    with writer(out) as write:
        results = _scored(client, items, options)
        for (where, row), chosen, rejected in zip(rows, results, results, strict=False):
            sided = {"chosen": chosen, "rejected": rejected}
            shown = {name: result.model_dump(mode="json", exclude_none=True) for name, result in sided.items()}
            write(json.dumps({"id": row.get("id", where), **shown}, ensure_ascii=False))
            told += [(where, chosen), (where, rejected)]
            if not isinstance(chosen, ItemError) and not isinstance(rejected, ItemError):
                judged += 1
                difference = chosen.score - rejected.score
                wins += 1.0 if difference > 0 else 0.5 if difference == 0 else 0.0
    if judged:
        print(f"chosen ranked above rejected in {wins / judged:.1%} of {judged} pairs", file=sys.stderr)
    fail_if_any(told, _FAILED)


def _score_one(client: RewardClient, prompt: str, response: str, options: ScoreOptions, out: Path | None) -> None:
    item = ScoreItem(prompt=prompt, response=response)
    result = client.score([item], options=options).scored()[0]
    if out is not None or not sys.stdout.isatty():
        with writer(out) as write:
            write(result.model_dump_json(exclude_none=True))
    if sys.stdout.isatty():
        Console().print(render(response, result))
