"""``redline evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from redline.cli.options import Device
from redline.cli.terminal import console, need, prepare_torch

if TYPE_CHECKING:
    from redline_trainer.precision import PrecisionTable


def evaluate(
    bundle: Annotated[str, typer.Argument(help="Bundle folder, or hub id.")],
    pairs: Annotated[list[str], typer.Option("--pairs", help="JSONL file (plain or gzip), or hub id; repeatable.")],
    precision: Annotated[
        list[str] | None,
        typer.Option(
            "--precision", help="float32, bfloat16, float16, int8 or nf4; repeatable, the first is the measure."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first so many pairs.")] = None,
    max_batch_tokens: Annotated[int, typer.Option(help="Tokens of one forward pass.")] = 2048,
    out: Annotated[Path | None, typer.Option(help="Write the figures here as JSON, too.")] = None,
    device: Device = "auto",
) -> None:
    """Measure a bundle on preference pairs, in one precision or in several side by side."""
    need("train", "torch", "transformers", "peft", "datasets", "safetensors")
    prepare_torch()
    from redline_model.errors import DataError
    from redline_trainer.data import load_pairs
    from redline_trainer.precision import compare_precisions

    loaded = load_pairs(pairs)[0][:limit]
    if not loaded:
        raise DataError("there are no pairs to measure on")
    table = None
    for table in compare_precisions(
        bundle, loaded, precision or ["float32"], device=device, max_batch_tokens=max_batch_tokens
    ):
        row = table.rows[-1]
        console.print(
            f"{row.precision}: {row.accuracy.mean:.1%} of pairs right, {row.judged_tokens_per_s:.0f} tokens/s"
        )
    assert table is not None
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(table.model_dump_json(indent=2) + "\n", encoding="utf-8")
    print(_rendered(table))


def _rendered(table: PrecisionTable) -> str:
    shown = Table(title=f"{table.bundle} on {table.pairs} pairs, {table.reading}, {table.device}", title_justify="left")
    columns = (
        "precision",
        "pairs right",
        "same argmax",
        "same paper rewards",
        "score correlation",
        "score shift",
        "judged tokens/s",
        "weights MiB",
    )
    for column in columns:
        shown.add_column(column, justify="left" if column == "precision" else "right")
    for row in table.rows:
        shown.add_row(
            row.precision,
            f"{row.accuracy.mean:.1%} [{row.accuracy.low:.1%}, {row.accuracy.high:.1%}]",
            "-" if row.argmax_agreement is None else f"{row.argmax_agreement:.1%}",
            "-" if row.same_paper_rewards is None else f"{row.same_paper_rewards:.1%}",
            f"{row.score_correlation:.4f}",
            f"{row.score_shift:+.3f} ({row.score_shift / (row.score_spread or 1.0):+.2f} sd)",
            f"{row.judged_tokens_per_s:.0f}",
            f"{row.weights_mb:.0f}",
        )
    plain = Console(width=150, no_color=True)
    with plain.capture() as captured:
        plain.print(shown)
    text = captured.get().rstrip()
    if table.skipped_pairs:
        text += f"\nleft out {table.skipped_pairs} pairs that are too long"
    return text
