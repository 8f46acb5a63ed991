"""``redline train``: train a reward model on preference pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from redline.files.atomic import check_file_writable
from redline.files.locks import sole_writer
from redline.files.metrics_log import MetricsLog
from redline_cli.bad_rows import BadRowPolicy, OnBadRow, row_report
from redline_cli.defaults import config_defaults
from redline_cli.options import Device, OutFolder, Seed
from redline_cli.terminal import notice, prepare_torch, print_line, progress_bar, require_modules
from redline_trainer.config import TrainConfig

DEFAULT = config_defaults(TrainConfig)


def train(
    pairs: Annotated[
        list[str], typer.Option("--pairs", help="JSONL or JSON file (plain or gzip), or hub id; repeatable.")
    ],
    base: Annotated[str, typer.Option(help="Language model to start from: folder or hub id.")],
    out: OutFolder,
    kind: Annotated[str, typer.Option(help="seq2seq, sft, scalar (Bradley-Terry), red, dpo or qrm.")] = DEFAULT.kind,
    held_out: Annotated[
        list[str] | None, typer.Option("--eval", help="Held-out pairs; default: a share of --pairs.")
    ] = None,
    held_out_share: Annotated[
        float, typer.Option(help="Share of prompts held out if --eval is not given.")
    ] = DEFAULT.held_out_share,
    method: Annotated[str, typer.Option(help="full, lora or qlora (4-bit base).")] = DEFAULT.method,
    epochs: Annotated[float, typer.Option(help="Epochs over the pairs.")] = DEFAULT.epochs,
    max_steps: Annotated[int | None, typer.Option(help="Optimiser steps; overrides --epochs.")] = DEFAULT.max_steps,
    pairs_per_step: Annotated[int, typer.Option(help="Pairs per optimiser step.")] = DEFAULT.pairs_per_step,
    max_batch_tokens: Annotated[int, typer.Option(help="Maximum tokens in a forward pass.")] = DEFAULT.max_batch_tokens,
    max_tokens: Annotated[
        int | None, typer.Option(help="Maximum tokens per sequence; default: the limit of the base model.")
    ] = DEFAULT.max_tokens,
    on_too_long: Annotated[
        str, typer.Option(help="Pairs that are too long: error, truncate (the prompt) or skip.")
    ] = DEFAULT.on_too_long,
    on_bad_row: OnBadRow = BadRowPolicy.ERROR,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            help="Peak; default 2e-5 (seq2seq, sft), 1e-5 (scalar, red, qrm), 1e-6 or more by size (dpo); "
            "adapters: ten times."
        ),
    ] = DEFAULT.learning_rate,
    correction_weight: Annotated[
        float, typer.Option(help="Weight of the correction mapping (seq2seq).")
    ] = DEFAULT.correction_weight,
    identity_weight: Annotated[
        float, typer.Option(help="Weight of the identity mapping, w_id (seq2seq).")
    ] = DEFAULT.identity_weight,
    sft_weight: Annotated[
        float,
        typer.Option(help="Weight of writing the chosen response without a response in the context (seq2seq)."),
    ] = DEFAULT.sft_weight,
    edit_weight: Annotated[
        float, typer.Option(help="Weight of tokens that the source does not have; copies have 1 (seq2seq).")
    ] = DEFAULT.edit_weight,
    omission: Annotated[
        bool,
        typer.Option("--omission/--no-omission", help="Use shortened chosen responses as sources, too (seq2seq)."),
    ] = DEFAULT.omission,
    mismatch: Annotated[
        bool,
        typer.Option(
            "--mismatch/--no-mismatch",
            help="Use responses to other prompts as sources (seq2seq) or as rejected sides (scalar, red, qrm).",
        ),
    ] = DEFAULT.mismatch,
    beta: Annotated[float, typer.Option(help="Reward per nat of log-ratio (dpo).")] = DEFAULT.beta,
    odin: Annotated[
        bool,
        typer.Option(
            "--odin", help="Train a separate length head (ODIN) so that the score does not follow length (scalar, red)."
        ),
    ] = DEFAULT.odin,
    odin_length_weight: Annotated[
        float, typer.Option(help="Weight of ODIN's length loss.")
    ] = DEFAULT.odin_length_weight,
    odin_orthogonality_weight: Annotated[
        float, typer.Option(help="Weight of ODIN's orthogonality loss.")
    ] = DEFAULT.odin_orthogonality_weight,
    smoothing_rate: Annotated[
        float, typer.Option(help="How far labels move towards the model's prediction at each visit (scalar, red).")
    ] = DEFAULT.smoothing_rate,
    lora_rank: Annotated[int, typer.Option(help="Rank of the adapters.")] = DEFAULT.lora_rank,
    lora_dropout: Annotated[float, typer.Option(help="Dropout in the adapters.")] = DEFAULT.lora_dropout,
    dropout: Annotated[
        str, typer.Option(help="Dropout in the base model: off, or base (as in its configuration).")
    ] = DEFAULT.dropout,
    gradient_checkpointing: Annotated[
        bool, typer.Option(help="Recompute activations in the backward pass to save memory.")
    ] = DEFAULT.gradient_checkpointing,
    precision: Annotated[
        str,
        typer.Option(help="Precision of matrix products: auto (bfloat16 if it is much faster), float32 or bfloat16."),
    ] = DEFAULT.precision,
    instruction: Annotated[
        str | None, typer.Option(help="Instruction that asks the model for its rewrite.")
    ] = DEFAULT.instruction,
    mode: Annotated[str, typer.Option(help="Default extraction mode of the bundle.")] = DEFAULT.mode,
    score_mode: Annotated[
        str | None, typer.Option(help="Extraction mode of the score; default: the same as --mode.")
    ] = DEFAULT.score_mode,
    aggregate: Annotated[
        str | None,
        typer.Option(
            help="Default aggregate of the bundle: sum, mean or last; default mean (seq2seq, sft, qrm) or sum."
        ),
    ] = DEFAULT.aggregate,
    checkpoint_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = DEFAULT.checkpoint_every,
    logs: Annotated[
        Path | None, typer.Option(help="Folder for metrics.jsonl and TensorBoard; default OUT-logs.")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing folder at --out.")] = False,
    device: Device = DEFAULT.device,
    seed: Seed = DEFAULT.seed,
) -> None:
    """Train a reward model on preference pairs. Run the same command again to resume a stopped run."""
    require_modules("train", "torch", "transformers", "peft", "datasets", "safetensors")
    prepare_torch()
    from redline_model.bundle.files import check_free
    from redline_model.bundle.load_options import LoadOptions
    from redline_model.errors import DataError
    from redline_trainer.load_pairs import load_pairs
    from redline_trainer.optimizer_step import StepReport
    from redline_trainer.train import resumable_step
    from redline_trainer.train import train as fit

    settings: dict[str, Any] = {
        "kind": kind,
        "method": method,
        "mode": mode,
        "score_mode": score_mode,
        "aggregate": aggregate,
        "on_too_long": on_too_long,
        "precision": precision,
        "dropout": dropout,
    }
    config = TrainConfig(
        base=base,
        out=out,
        epochs=epochs,
        max_steps=max_steps,
        pairs_per_step=pairs_per_step,
        max_batch_tokens=max_batch_tokens,
        max_tokens=max_tokens,
        learning_rate=learning_rate,
        correction_weight=correction_weight,
        identity_weight=identity_weight,
        sft_weight=sft_weight,
        edit_weight=edit_weight,
        omission=omission,
        mismatch=mismatch,
        beta=beta,
        odin=odin,
        odin_length_weight=odin_length_weight,
        odin_orthogonality_weight=odin_orthogonality_weight,
        smoothing_rate=smoothing_rate,
        lora_rank=lora_rank,
        lora_dropout=lora_dropout,
        gradient_checkpointing=gradient_checkpointing,
        instruction=instruction,
        held_out_share=held_out_share,
        checkpoint_every=checkpoint_every,
        device=device,
        seed=seed,
        **settings,
    )
    check_free(out, overwrite=overwrite)
    folder = logs or out.with_name(f"{out.name}-logs")
    check_file_writable(folder / "metrics.jsonl")
    with (
        sole_writer(out),
        sole_writer(folder, is_kept=True),
        row_report(on_bad_row, out, is_folder=True) as report,
        progress_bar(f"train {kind}", 1) as bar,
    ):
        loaded, problems = [], []
        for sources in (pairs, held_out or []):
            try:
                loaded.append(load_pairs(sources, report))
            except DataError as error:
                problems.append(str(error))
        if problems:
            raise DataError("\n".join(problems))
        (training, data), (held_out_pairs, _) = loaded
        resumed_at = resumable_step(out)
        if resumed_at:
            notice(f"resuming at step {resumed_at}")
        log: MetricsLog | None = None

        def show(report: StepReport) -> None:
            nonlocal log
            # not before the first step: a command that fails must not touch the logs of a finished run
            if log is None:
                log = MetricsLog(folder, resumed_at=resumed_at)
                cpu_precision = LoadOptions(device=device).cpu_precision
                if cpu_precision is not None and precision == "auto":
                    notice(str(cpu_precision))
            log.write(report._asdict() | {"tokens_per_s": report.tokens / report.seconds})
            bar.resize(report.steps)
            bar.update(report.step, f"loss {report.loss:.3f}  {report.tokens / report.seconds:,.0f} tokens/s")

        try:
            result = fit(
                config,
                training,
                held_out=held_out_pairs if held_out else None,
                data=data,
                observers=[show],
                overwrite=overwrite,
                row_report=report,
            )
        finally:
            if log is not None:
                log.close()
    if result.skipped_pairs:
        print_line(f"skipped {result.skipped_pairs} pairs that are too long (--on-too-long skip)")
    if result.evaluation is not None:
        for name, interval in list(result.evaluation.accuracy.items())[:1]:
            print_line(
                f"held out: {name} ranks {interval.mean:.1%} of {interval.pairs} pairs right "
                f"[{interval.low:.1%}, {interval.high:.1%}] ({interval.prompts} prompts)"
            )
        if result.evaluation.correction_loss is not None:
            print_line(
                f"held out: correction {result.evaluation.correction_loss:.4f} and identity "
                f"{result.evaluation.identity_loss:.4f} nats per token, "
                f"exact copies {result.evaluation.identity_copy_rate:.1%}"
            )
    print_line(f"wrote {result.out} (bundle, {result.training_pairs} pairs) and {folder} (logs)")
