"""Trains a reward model on preference pairs and writes its bundle. Start reading at ``train``."""

from __future__ import annotations

import logging
import math
import random
import shutil
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch

from redline.preference_data.row_report import RowReport
from redline.preference_data.rows import Pair
from redline_model.bundle.bundle import save_bundle
from redline_model.bundle.files import check_free
from redline_model.bundle.load_options import LoadOptions
from redline_model.bundle.loading import load_config, load_tokenizer, token_limit
from redline_model.bundle.make_encoder import make_encoder
from redline_model.bundle.manifest import DataSource, Manifest
from redline_model.errors import DataError
from redline_model.kinds import kind_spec, make_scorer
from redline_model.options import Extraction
from redline_trainer.adapters import merge_adapters, trainable_model, unwrapped
from redline_trainer.checkpoint import resume, run_identity, save_checkpoint, saved_step
from redline_trainer.config import TrainConfig
from redline_trainer.encode_pairs import encode_all
from redline_trainer.evaluation.accuracy import Evaluation, evaluate
from redline_trainer.load_pairs import split_by_prompt
from redline_trainer.mismatched_responses import with_mismatched_responses, with_shortened_responses
from redline_trainer.objectives.factory import (
    bundle_parts,
    default_learning_rate,
    frozen_reference,
    make_objective,
    scorer_options,
    template_for,
)
from redline_trainer.optimizer_step import DivergedError, StepReport, run_optimizer_step, write_failed_step


class TrainResult(NamedTuple):
    """The folder of the bundle, its manifest, its evaluation, and numbers of pairs."""

    out: Path
    manifest: Manifest
    evaluation: Evaluation | None
    training_pairs: int
    held_out_pairs: int
    skipped_pairs: int


logger = logging.getLogger(__name__)
Observer = Callable[[StepReport], None]


def checkpoint_path(out: Path) -> Path:
    """File of the checkpoint of the run that writes ``out``. It is removed when the run is complete."""
    return out.parent / f".{out.name}.checkpoint" / "state.pt"


def resumable_step(out: Path) -> int:
    """Number of steps done by an unfinished run that writes ``out``; 0 if there is none."""
    return saved_step(checkpoint_path(out))


def learning_rate_at(step: int, steps: int, peak: float, warmup_share: float) -> float:
    """The learning rate of a step: linear warm-up, then linear decay to a tenth. ``step`` counts from 0."""
    warmup = max(1, round(warmup_share * steps))
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (1 - 0.9 * (step - warmup) / max(1, steps - warmup))


@lru_cache(maxsize=2)
def _epoch_order(epoch: int, pairs: int, seed: int) -> tuple[int, ...]:
    order = list(range(pairs))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return tuple(order)


def step_indices(step: int, pairs: int, per_step: int, seed: int) -> list[int]:
    """Indices of the pairs of a step. They depend on the arguments only, so resuming needs no iterator state."""
    start = step * per_step
    indices: list[int] = []
    while len(indices) < per_step:
        epoch, offset = divmod(start + len(indices), pairs)
        order = _epoch_order(epoch, pairs, seed)
        indices += order[offset : offset + per_step - len(indices)]
    return indices


def train(
    config: TrainConfig,
    pairs: Sequence[Pair],
    *,
    held_out: Sequence[Pair] | None = None,
    data: Sequence[DataSource] = (),
    observers: Sequence[Observer] = (),
    overwrite: bool = False,
    row_report: RowReport | None = None,
) -> TrainResult:
    """Train a reward model on ``pairs`` and write its bundle. An unfinished run with the same settings is resumed.

    Args:
        held_out: pairs for evaluation and calibration; None holds out ``config.held_out_share`` of the prompts.
        data: sources of the pairs, for the manifest.
        observers: called after every optimiser step.
        row_report: collects pairs that cannot be used if it skips bad rows. It is finished before the first step.

    Raises:
        DataError: some pairs cannot be used. The message lists them; nothing was trained.
        BundleError: the base cannot be loaded, or the output exists and ``overwrite`` is not set.
        ResumeError: there is a checkpoint for ``config.out`` with other settings.
        DivergedError: the loss or the gradient of a step is not finite. The message names the file with its pairs.
    """
    # 1. check all inputs before the expensive part
    check_free(config.out, overwrite=overwrite)
    load_options = LoadOptions(device=config.device)
    if load_options.torch_device().type == "cpu":  # on a CPU only the arithmetic may be bfloat16, by autocast
        cpu_precision = load_options.cpu_precision
        logger.info("%s", cpu_precision if config.precision == "auto" else f"the CPU computes in {config.precision}")
        load_options = load_options.model_copy(update={"dtype": "float32"})
    base_config, tokenizer = load_config(config.base), load_tokenizer(config.base)
    limit = token_limit(base_config, config.max_tokens)
    template = template_for(config, tokenizer)
    encoder = make_encoder(config.kind, base_config, tokenizer, template, limit)
    if held_out is None:
        pairs, held_out = split_by_prompt(pairs, config.held_out_share)
    (training, skipped), (held_out_encoded, skipped_held_out) = encode_all(
        encoder, (pairs, held_out), config.on_too_long, row_report
    )
    if not training:
        raise DataError(
            "\n  ".join(["no pairs are left to train on", *(row_report.skipped.shown if row_report else [])])
        )
    if row_report is not None:
        row_report.finish()
    if config.omission:
        training = with_shortened_responses(training, config.seed)
    mismatch_metrics: dict[str, int] = {}
    if config.mismatch:
        training = with_mismatched_responses(training, encoder, config.seed)
        mismatch_metrics["mismatched_pairs"] = sum(pair.mismatched is not None for pair in training)
        if mismatch_metrics["mismatched_pairs"] < len(training):
            logger.warning(
                "only %d of %d pairs have a mismatched response: %s",
                mismatch_metrics["mismatched_pairs"],
                len(training),
                "the responses to other prompts are too long"
                if len({pair.prompt_key for pair in training}) > 1
                else "all pairs have the same prompt",
            )

    # 2. the model and its optimiser, new or from the checkpoint
    torch.manual_seed(config.seed)
    random.seed(config.seed)
    model = trainable_model(config, load_options)
    peak = config.learning_rate or default_learning_rate(config, unwrapped(model).num_parameters())
    # with adapters the reference is the model without them; it is loaded only when the bundle is saved
    reference = frozen_reference(config, load_options) if config.method == "full" else None
    objective = make_objective(config, model, len(pairs), reference)
    parameters = [p for p in model.parameters() if p.requires_grad] + objective.parameters()
    optimizer = torch.optim.AdamW(parameters, lr=peak, betas=(0.9, 0.95), weight_decay=config.weight_decay)
    steps = config.max_steps or max(1, math.ceil(config.epochs * len(training) / config.pairs_per_step))
    state = checkpoint_path(config.out)
    identity = run_identity(config, training)
    done = resume(state, identity, model, optimizer, objective)  # last, because it restores the random generators

    # 3. the steps
    for step in range(done, steps):
        indices = step_indices(step, len(training), config.pairs_per_step, config.seed)
        rate = learning_rate_at(step, steps, peak, config.warmup_share)
        batch = [training[i] for i in indices]
        try:
            report = run_optimizer_step(step, rate, config, objective, batch, optimizer, parameters, steps=steps)
        except DivergedError as error:
            file = write_failed_step(config.out, step + 1, [pairs[pair.number] for pair in batch])
            raise DivergedError(f"{error}. Its {len(batch)} pairs are in {file}") from error
        for observe in observers:
            observe(report)
        if (step + 1) % config.checkpoint_every == 0 and step + 1 < steps:
            save_checkpoint(state, identity, step + 1, model, optimizer, objective)

    # 4. evaluate the model as it will be served, then save it
    final = merge_adapters(model, config, load_options)
    extraction = Extraction(
        mode=config.mode,
        aggregate=config.aggregate or kind_spec(config.kind).aggregate,
        score_mode=config.score_mode,
        has_sft=config.kind == "seq2seq" and config.sft_weight > 0,
    )
    reference = reference or frozen_reference(config, load_options)
    scorer = make_scorer(config.kind, final, encoder, extraction, **scorer_options(config, reference))
    evaluated = evaluate(scorer, held_out_encoded, config.max_batch_tokens, config.seed) if held_out_encoded else None
    manifest = Manifest(
        kind=config.kind,
        base_model=config.base,
        max_tokens=limit,
        template=template,
        extraction=extraction,
        beta=config.beta if config.kind == "dpo" else None,
        calibration=evaluated.calibration if evaluated else {},
        data=list(data),
        metrics=(evaluated.evaluation.model_dump(exclude_none=True) if evaluated else {}) | mismatch_metrics,
        training={
            **config.model_dump(mode="json", exclude={"out"}),
            "aggregate": extraction.aggregate,
            "learning_rate": peak,
            "steps": steps,
            "pairs": len(training),
        },
    )
    parts = bundle_parts(reference)
    written = save_bundle(config.out, manifest, final, tokenizer, submodels=parts, overwrite=overwrite)
    shutil.rmtree(state.parent, ignore_errors=True)
    evaluation = evaluated.evaluation if evaluated else None
    return TrainResult(
        config.out, written, evaluation, len(training), len(held_out_encoded), skipped + skipped_held_out
    )
