"""The options that mean the same in every command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from redline.wire import EditsBy

# of the commands that measure bundles
EVALUATION_BATCH_TOKENS = 2048

Url = Annotated[str, typer.Option("--url", envvar="REDLINE_URL", help="Where the service is.")]
Key = Annotated[str | None, typer.Option("--key", envvar="REDLINE_KEY", help="The service's API key.")]
Seed = Annotated[int, typer.Option("--seed", help="Decides every draw.")]
OutFile = Annotated[
    Path | None, typer.Option("--out", help="File to write, .jsonl or .parquet (default: standard output).")
]
OutFolder = Annotated[Path, typer.Option("--out", help="Folder to write.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Only the first so many rows.")]
MaxBatchTokens = Annotated[int, typer.Option("--max-batch-tokens", min=1, help="Tokens of one forward pass.")]
Edits = Annotated[
    EditsBy | None,
    typer.Option(
        "--edits",
        help="Edits of a correction by single words, or groups: edits with little kept text between them are one "
        "replacement. Default: words in files, groups in a terminal.",
    ),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, ...")]
