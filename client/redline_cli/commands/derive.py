"""``redline derive``: bundles made without training, of other bundles or of a language model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from redline.errors import CommandError
from redline.files.locks import sole_writer
from redline_cli.bad_rows import BadRowPolicy, OnBadRow, row_report
from redline_cli.options import EVALUATION_BATCH_TOKENS, Device, Limit, MaxBatchTokens, OutFolder
from redline_cli.terminal import prepare_torch, print_line, require_modules

if TYPE_CHECKING:
    from redline.preference_data.row_report import RowReport
    from redline_model.bundle.derive import EvaluateScorer
    from redline_model.bundle.manifest import Manifest

app = typer.Typer(help="Make a bundle without training, from other models.", no_args_is_help=True)

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing folder at --out.")]
Pairs = Annotated[
    list[str] | None, typer.Option("--pairs", help="Pairs for calibrating the scores; default: no calibration.")
]


@app.command("red", short_help="Token rewards from a scalar model (RED).")
def red(
    bundle: Annotated[str, typer.Argument(help="A scalar bundle: folder or hub id.")],
    out: OutFolder,
    pairs: Pairs = None,
    on_bad_row: OnBadRow = BadRowPolicy.ERROR,
    max_batch_tokens: MaxBatchTokens = EVALUATION_BATCH_TOKENS,
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Token rewards from a scalar model evaluated at every token: r_t = R(x, y_<=t) - R(x, y_<t) (arXiv 2411.08302)."""
    _prepare()
    from redline_model.bundle.derive import derive_red
    from redline_model.bundle.load_options import LoadOptions

    with sole_writer(out), row_report(on_bad_row, out, is_folder=True) as report:
        manifest = derive_red(
            bundle,
            out,
            load_options=LoadOptions(device=device),
            evaluate=_make_evaluate(pairs, max_batch_tokens, report),
            overwrite=overwrite,
        )
    _report(manifest, out)


@app.command("sft", short_help="Token rewards from a language model as it is.")
def sft(
    model: Annotated[str, typer.Argument(help="A causal language model: folder or hub id.")],
    out: OutFolder,
    max_tokens: Annotated[int | None, typer.Option(help="Maximum tokens per sequence; default: the model's.")] = None,
    mode: Annotated[str, typer.Option(help="Default extraction mode of the bundle.")] = "logprob",
    aggregate: Annotated[str, typer.Option(help="Default aggregate of the bundle: sum, mean or last.")] = "mean",
    pairs: Pairs = None,
    on_bad_row: OnBadRow = BadRowPolicy.ERROR,
    max_batch_tokens: MaxBatchTokens = EVALUATION_BATCH_TOKENS,
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Token rewards from the probabilities of any causal language model, without the response in its context."""
    _prepare()
    from redline_model.bundle.derive import derive_sft
    from redline_model.bundle.load_options import LoadOptions
    from redline_model.options import Extraction

    settings: Any = {"mode": mode, "aggregate": aggregate}
    with sole_writer(out), row_report(on_bad_row, out, is_folder=True) as report:
        manifest = derive_sft(
            model,
            out,
            max_tokens=max_tokens,
            extraction=Extraction(**settings),
            load_options=LoadOptions(device=device),
            evaluate=_make_evaluate(pairs, max_batch_tokens, report),
            overwrite=overwrite,
        )
    _report(manifest, out)


@app.command("ensemble", short_help="Combine several bundles into an ensemble.")
def ensemble(
    bundles: Annotated[list[str], typer.Argument(help="Two bundles or more: folders or hub ids.")],
    out: OutFolder,
    combine: Annotated[str, typer.Option(help="mean, min or mean_minus_variance.")] = "mean",
    variance_weight: Annotated[float, typer.Option(help="Lambda of mean_minus_variance.")] = 1.0,
    pairs: Pairs = None,
    on_bad_row: OnBadRow = BadRowPolicy.ERROR,
    max_batch_tokens: MaxBatchTokens = EVALUATION_BATCH_TOKENS,
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Combine several bundles into an ensemble (arXiv 2401.16635)."""
    _prepare()
    from redline_model.bundle.derive import derive_ensemble
    from redline_model.bundle.load_options import LoadOptions

    method: Any = combine
    with sole_writer(out), row_report(on_bad_row, out, is_folder=True) as report:
        manifest = derive_ensemble(
            bundles,
            out,
            combine=method,
            variance_weight=variance_weight,
            load_options=LoadOptions(device=device),
            evaluate=_make_evaluate(pairs, max_batch_tokens, report),
            overwrite=overwrite,
        )
    _report(manifest, out)


@app.command("length-calibrated", short_help="Remove the length trend from scores.")
def length_calibrated(
    bundle: Annotated[str, typer.Argument(help="Any bundle: folder or hub id.")],
    pairs: Annotated[
        list[str],
        typer.Option("--pairs", help="JSONL or JSON file (plain or gzip), or hub id; repeatable. Both sides are used."),
    ],
    out: OutFolder,
    fraction: Annotated[float, typer.Option(help="Share of the responses in each local regression.")] = 0.3,
    limit: Limit = None,
    on_bad_row: OnBadRow = BadRowPolicy.ERROR,
    max_batch_tokens: MaxBatchTokens = EVALUATION_BATCH_TOKENS,
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Remove the length trend from a bundle's scores: r - LOWESS(r | length) (arXiv 2409.17407)."""
    _prepare()
    from redline_model.bundle.load_options import LoadOptions
    from redline_trainer.evaluation.length_calibration import derive_length_calibrated
    from redline_trainer.load_pairs import load_pairs

    with sole_writer(out), row_report(on_bad_row, out, is_folder=True) as report:
        loaded, data = load_pairs(pairs, report)
        manifest = derive_length_calibrated(
            bundle,
            out,
            loaded[:limit],
            fraction=fraction,
            data=data,
            load_options=LoadOptions(device=device),
            max_batch_tokens=max_batch_tokens,
            overwrite=overwrite,
            report=report,
        )
    _report(manifest, out)


def _prepare() -> None:
    require_modules("train", "torch", "transformers", "peft", "datasets", "safetensors")
    prepare_torch()


def _make_evaluate(pairs: list[str] | None, max_batch_tokens: int, report: RowReport) -> EvaluateScorer | None:
    if not pairs:
        return None
    from redline_trainer.evaluation.length_calibration import evaluate_on
    from redline_trainer.load_pairs import load_pairs

    loaded, data = load_pairs(pairs, report)
    if not loaded:
        raise CommandError("--pairs has no pairs to calibrate on")
    return evaluate_on(loaded, data, max_batch_tokens, report)


def _report(manifest: Manifest, out: Path) -> None:
    for name, interval in list(manifest.metrics.get("accuracy", {}).items())[:1]:
        print_line(f"{name} ranks {interval['mean']:.1%} of {interval['pairs']} pairs right")
    print_line(f"wrote {out} ({manifest.kind} bundle, {manifest.digest()[:19]})")
