"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from redline.wire import EditsBy

# of the commands that evaluate bundles
EVALUATION_BATCH_TOKENS = 2048

Url = Annotated[str, typer.Option("--url", envvar="REDLINE_URL", help="URL of the service.")]
Key = Annotated[str | None, typer.Option("--key", envvar="REDLINE_KEY", help="The service's API key.")]
Seed = Annotated[int, typer.Option("--seed", help="Random seed.")]
OutFile = Annotated[
    Path | None, typer.Option("--out", help="File to write, .jsonl or .parquet (default: standard output).")
]
OutFolder = Annotated[Path, typer.Option("--out", help="Folder to write.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Use only the first N rows.")]
MaxBatchTokens = Annotated[
    int, typer.Option("--max-batch-tokens", min=1, help="Maximum number of tokens in a forward pass.")
]
Edits = Annotated[
    EditsBy | None,
    typer.Option(
        "--edits",
        help="Edits of a correction: words (one edit per changed word), or groups (edits with few words between them "
        "are joined). Default: words in files, groups in a terminal.",
    ),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, ...")]
