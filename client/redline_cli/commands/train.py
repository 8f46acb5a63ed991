"""``redline train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from redline.files.atomic import check_file_writable
from redline.files.locks import sole_writer
from redline.files.metrics_log import MetricsLog
from redline_cli.bad_rows import BadRowPolicy, OnBadRow, row_report
from redline_cli.defaults import defaults_of
from redline_cli.options import Device, OutFolder, Seed
from redline_cli.terminal import need, notice, prepare_torch, progress_bar, say
from redline_trainer.config import TrainConfig

DEFAULT = defaults_of(TrainConfig)


def train(
    pairs: Annotated[
        list[str], typer.Option("--pairs", help="JSONL or JSON file (plain or gzip), or hub id; repeatable.")
    ],
    base: Annotated[str, typer.Option(help="Language model to start from: folder or hub id.")],
    out: OutFolder,
    kind: Annotated[str, typer.Option(help="seq2seq, scalar (Bradley-Terry), red or dpo.")] = DEFAULT.kind,
    held_out: Annotated[
        list[str] | None, typer.Option("--eval", help="Held-out pairs; default: a share of --pairs.")
    ] = None,
    held_out_share: Annotated[
        float, typer.Option(help="Share of prompts held out where --eval is not given.")
    ] = DEFAULT.held_out_share,
    method: Annotated[str, typer.Option(help="full, lora or qlora (4-bit base).")] = DEFAULT.method,
    epochs: Annotated[float, typer.Option(help="Passes over the pairs.")] = DEFAULT.epochs,
    max_steps: Annotated[int | None, typer.Option(help="Optimiser steps; wins over --epochs.")] = DEFAULT.max_steps,
    pairs_per_step: Annotated[int, typer.Option(help="Batch size of an optimiser step.")] = DEFAULT.pairs_per_step,
    max_batch_tokens: Annotated[int, typer.Option(help="Tokens of one forward pass.")] = DEFAULT.max_batch_tokens,
    max_tokens: Annotated[
        int | None, typer.Option(help="Longest sequence; default: what the base reads.")
    ] = DEFAULT.max_tokens,
    on_too_long: Annotated[
        str, typer.Option(help="Pairs that are too long: error, truncate (the prompt) or skip.")
    ] = DEFAULT.on_too_long,
    on_bad_row: OnBadRow = BadRowPolicy.ERROR,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            help="Peak; default 2e-5 (seq2seq), 1e-5 (scalar, red), 1e-6 or more by size (dpo); adapters: ten times."
        ),
    ] = DEFAULT.learning_rate,
    correction_weight: Annotated[
        float, typer.Option(help="Weight of the correction mapping (seq2seq).")
    ] = DEFAULT.correction_weight,
    identity_weight: Annotated[
        float, typer.Option(help="Weight of the identity mapping, w_id (seq2seq).")
    ] = DEFAULT.identity_weight,
    mismatch: Annotated[
        bool | None,
        typer.Option(
            "--mismatch/--no-mismatch",
            help="Responses of other prompts as sources (seq2seq: the default) or as losing sides (scalar, red).",
        ),
    ] = DEFAULT.mismatch,
    beta: Annotated[float, typer.Option(help="Reward for a nat of log-ratio (dpo).")] = DEFAULT.beta,
    odin: Annotated[bool, typer.Option("--odin", help="Take length out of the score (scalar, red).")] = DEFAULT.odin,
    odin_length_weight: Annotated[
        float, typer.Option(help="Weight of ODIN's length loss.")
    ] = DEFAULT.odin_length_weight,
    odin_orthogonality_weight: Annotated[
        float, typer.Option(help="Weight of ODIN's orthogonality loss.")
    ] = DEFAULT.odin_orthogonality_weight,
    smoothing_rate: Annotated[
        float, typer.Option(help="How far labels move to the model's prediction at a visit (scalar, red).")
    ] = DEFAULT.smoothing_rate,
    lora_rank: Annotated[int, typer.Option(help="Rank of the adapters.")] = DEFAULT.lora_rank,
    lora_dropout: Annotated[float, typer.Option(help="Dropout inside the adapters.")] = DEFAULT.lora_dropout,
    dropout: Annotated[
        str, typer.Option(help="Dropout inside the base: off, or base (as its configuration says).")
    ] = DEFAULT.dropout,
    gradient_checkpointing: Annotated[
        bool, typer.Option(help="Trade time for memory.")
    ] = DEFAULT.gradient_checkpointing,
    precision: Annotated[
        str, typer.Option(help="Of the arithmetic: auto (bfloat16 where it is much faster), float32 or bfloat16.")
    ] = DEFAULT.precision,
    instruction: Annotated[
        str | None, typer.Option(help="How the model is asked for its rewrite.")
    ] = DEFAULT.instruction,
    mode: Annotated[str, typer.Option(help="Default extraction mode of the bundle.")] = DEFAULT.mode,
    aggregate: Annotated[
        str, typer.Option(help="Default aggregate of the bundle: sum, mean or last.")
    ] = DEFAULT.aggregate,
    checkpoint_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = DEFAULT.checkpoint_every,
    logs: Annotated[
        Path | None, typer.Option(help="Folder for metrics.jsonl and TensorBoard; default OUT-logs.")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace what stands at --out.")] = False,
    device: Device = DEFAULT.device,
    seed: Seed = DEFAULT.seed,
) -> None:
    """Fit a reward model on preference pairs. Killed and started again, it goes on where it was."""
    need("train", "torch", "transformers", "peft", "datasets", "safetensors")
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
        (training, data), (measuring, _) = loaded
        resumed_at = resumable_step(out)
        if resumed_at:
            notice(f"resuming at step {resumed_at}")
        log: MetricsLog | None = None

        def show(report: StepReport) -> None:
            nonlocal log
            # not before the first step: a command that fails must not touch the logs of a finished run
            if log is None:
                log = MetricsLog(folder, resumed_at=resumed_at)
                measured = LoadOptions(device=device).cpu_precision
                if measured is not None and precision == "auto":
                    notice(str(measured))
            log.write(report._asdict() | {"tokens_per_s": report.tokens / report.seconds})
            bar.resize(report.steps)
            bar.update(report.step, f"loss {report.loss:.3f}  {report.tokens / report.seconds:,.0f} tokens/s")

        try:
            result = fit(
                config,
                training,
                held_out=measuring if held_out else None,
                data=data,
                observers=[show],
                overwrite=overwrite,
                row_report=report,
            )
        finally:
            if log is not None:
                log.close()
    if result.skipped_pairs:
        say(f"left out {result.skipped_pairs} pairs that are too long, as asked")
    if result.evaluation is not None:
        for name, interval in list(result.evaluation.accuracy.items())[:1]:
            say(
                f"held out: {name} ranks {interval.mean:.1%} of {interval.pairs} pairs right "
                f"[{interval.low:.1%}, {interval.high:.1%}] ({interval.prompts} prompts)"
            )
        if result.evaluation.correction_loss is not None:
            say(
                f"held out: correction {result.evaluation.correction_loss:.4f} and identity "
                f"{result.evaluation.identity_loss:.4f} nats a token, "
                f"exact copies {result.evaluation.identity_copy_rate:.1%}"
            )
    say(f"wrote {result.out} (bundle, {result.training_pairs} pairs) and {folder} (logs)")
