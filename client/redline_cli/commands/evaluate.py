"""``redline evaluate``: accuracy, calibration and error localisation of a reward model, or a table of precisions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from redline.files.atomic import check_file_writable, write_text
from redline_cli.bad_rows import BadRowPolicy, OnBadRow, row_report
from redline_cli.options import EVALUATION_BATCH_TOKENS, Device, Limit, MaxBatchTokens
from redline_cli.terminal import notice, prepare_torch, print_line, require_modules

if TYPE_CHECKING:
    from redline_trainer.evaluation.precision import PrecisionTable
    from redline_trainer.evaluation.report import QualityReport


def evaluate(
    bundle: Annotated[str, typer.Argument(help="Bundle or Hugging Face reward model: folder, or hub id.")],
    pairs: Annotated[
        list[str], typer.Option("--pairs", help="JSONL or JSON file (plain or gzip), or hub id; repeatable.")
    ],
    precision: Annotated[
        list[str] | None,
        typer.Option(
            "--precision",
            help="Compare float32, bfloat16, float16, int8 or nf4 instead; repeatable, the first is the reference.",
        ),
    ] = None,
    limit: Limit = None,
    on_bad_row: OnBadRow = BadRowPolicy.ERROR,
    max_batch_tokens: MaxBatchTokens = EVALUATION_BATCH_TOKENS,
    out: Annotated[Path | None, typer.Option(help="Also write the results to this JSON file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a reliability plot to this PNG file.")] = None,
    device: Device = "auto",
) -> None:
    """Evaluate a bundle on preference pairs: accuracy, length bias, calibration, error spans; or compare precisions."""
    require_modules("train", "torch", "transformers", "peft", "datasets", "safetensors")
    prepare_torch()
    from redline_model.bundle.bundle import Bundle
    from redline_model.bundle.load_options import LoadOptions
    from redline_model.errors import DataError
    from redline_trainer.evaluation.precision import compare_precisions
    from redline_trainer.evaluation.report import plot_reliability, quality_report
    from redline_trainer.load_pairs import load_pairs

    if plot is not None and precision:
        raise DataError("--plot cannot be combined with --precision")
    if plot is not None and plot.suffix != ".png":
        raise DataError(f"--plot writes a PNG; {plot} does not end in .png")
    for path in (out, plot):
        if path is not None:
            check_file_writable(path)
    with row_report(on_bad_row, out) as rows:
        loaded = load_pairs(pairs, rows)[0][:limit]
        if not loaded:
            raise DataError("--pairs has no pairs to evaluate on")
        if not precision:
            scorer = Bundle.load(bundle, LoadOptions(device=device)).scorer
            report = quality_report(scorer, loaded, max_batch_tokens=max_batch_tokens, report=rows)
            _write(out, report.model_dump_json(indent=2, exclude={"spans": {"__all__": {"auc_resamples"}}}))
            if plot is not None:
                plot_reliability({bundle: report}, plot)
            print_line(_summary(report))
            return
        table = None
        for table in compare_precisions(
            bundle, loaded, precision, device=device, max_batch_tokens=max_batch_tokens, report=rows
        ):
            row = table.rows[-1]
            notice(f"{row.precision}: {row.accuracy.mean:.1%} of pairs right, {row.judged_tokens_per_s:.0f} tokens/s")
        assert table is not None
        _write(out, table.model_dump_json(indent=2))
        print_line(_precision_table(table))


def _write(out: Path | None, text: str) -> None:
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, text + "\n")


def _summary(report: QualityReport) -> str:
    accuracy, calibrated = report.accuracy, report.accuracy_calibrated
    lines = [
        f"{report.reading} ranks {accuracy.mean:.1%} of {accuracy.pairs} pairs right "
        f"[{accuracy.low:.1%}, {accuracy.high:.1%}] "
        f"({accuracy.prompts} prompts); the longer side is chosen in {report.longer_wins:.1%}",
        f"correlation of score and length {report.length_correlation:+.3f}; without the trend in length "
        f"{report.length_correlation_calibrated:+.3f}, and {calibrated.mean:.1%} right "
        f"[{calibrated.low:.1%}, {calibrated.high:.1%}]",
        f"expected calibration error {report.expected_calibration_error:.3f} "
        f"(temperature fitted on {'other prompts' if accuracy.prompts > 1 else 'the same pairs: there is one prompt'})",
    ]
    for name, spans in report.spans.items():
        lines.append(
            f"negative rewards on the {spans.marked_share:.1%} of {spans.tokens} tokens that humans marked, by {name}: "
            f"AUC {spans.auc:.3f} [{spans.auc_low:.3f}, {spans.auc_high:.3f}], "
            f"average precision {spans.average_precision:.3f}{_within(report, name)}"
        )
    lines += _probe_lines(report)
    if report.skipped_pairs:
        lines.append(f"skipped {report.skipped_pairs} pairs that are too long")
    return "\n".join(lines)


def _within(report: QualityReport, name: str) -> str:
    found = report.within.get(name)
    return "" if found is None else f"; within responses {found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"


def _probe_lines(report: QualityReport) -> list[str]:
    lines: list[str] = []
    if report.source_dependence is not None:
        probe = report.source_dependence
        contexts = {"own response": probe.own, "another response": probe.mismatched, "no response": probe.none}
        figures = [
            f"{name} {found.accuracy.mean:.1%}" + ("" if found.auc is None else f" (AUC {found.auc.mean:.3f})")
            for name, found in contexts.items()
            if found is not None
        ]
        lines.append(
            f"pairs right by log-probability, with this in the context: {', '.join(figures)}; "
            f"token correlation of own and another {probe.correlation:+.3f}"
        )
    if report.truncation is not None:
        score, rewards = report.truncation.score, report.truncation.rewards
        lines.append(
            f"whole responses outscore their own beginnings in {score.mean:.1%} by score and {rewards.mean:.1%} "
            "by the sum of token rewards"
        )
    return lines


def _precision_table(table: PrecisionTable) -> str:
    rendered = Table(
        title=f"{table.bundle} on {table.pairs} pairs, {table.reading}, {table.device}", title_justify="left"
    )
    columns = (
        "precision",
        "pairs right",
        "same argmax",
        "same paper rewards",
        "score correlation",
        "score shift",
        "scored tokens/s",
        "weights MiB",
    )
    for column in columns:
        rendered.add_column(column, justify="left" if column == "precision" else "right")
    for row in table.rows:
        rendered.add_row(
            row.precision,
            f"{row.accuracy.mean:.1%} [{row.accuracy.low:.1%}, {row.accuracy.high:.1%}]",
            "-" if row.argmax_agreement is None else f"{row.argmax_agreement:.1%}",
            "-" if row.same_paper_rewards is None else f"{row.same_paper_rewards:.1%}",
            f"{row.score_correlation:.4f}",
            f"{row.score_shift:+.3f} ({row.score_shift / (row.score_spread or 1.0):+.2f} sd)",
            f"{row.judged_tokens_per_s:.0f}",
            f"{row.weights_mb:.0f}",
        )
    plain = Console(width=150, no_color=True, markup=False, emoji=False)
    with plain.capture() as captured:
        plain.print(rendered)
    text = captured.get().rstrip()
    if table.skipped_pairs:
        text += f"\nskipped {table.skipped_pairs} pairs that are too long"
    return text
