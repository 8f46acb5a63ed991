"""One optimiser step. It raises before the update if the loss or the gradient is not finite."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from redline.files.atomic import write_text
from redline.preference_data.rows import Pair
from redline_model.bundle.load_options import prefers_bfloat16
from redline_model.errors import RedlineModelError
from redline_trainer.config import TrainConfig
from redline_trainer.encode_pairs import EncodedPair
from redline_trainer.objectives.base import Objective


class DivergedError(RedlineModelError):
    """The loss or the gradient of a step is NaN or infinite."""


class StepReport(NamedTuple):
    """Figures of one optimiser step.

    ``step``, ``steps``: number of this step, from 1, and of all steps.
    ``loss``: in nats.
    ``learning_rate``, ``grad_norm``: of the step.
    ``tokens``: of the training sequences, without padding.
    ``seconds``: duration.
    """

    step: int
    steps: int
    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    seconds: float


def write_failed_step(out: Path, step: int, pairs: Sequence[Pair]) -> Path:
    """Write the pairs of a step that failed to a file next to ``out``, one row per pair, and return the file.

    Raises:
        OSError: the file cannot be written.
    """
    file = out.with_name(f"{out.name}.refused-step-{step}.jsonl")
    rows = [
        {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected, "where": pair.where} for pair in pairs
    ]
    write_text(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return file


def run_optimizer_step(
    step: int,
    learning_rate: float,
    config: TrainConfig,
    objective: Objective[Any],
    batch: Sequence[EncodedPair],
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[torch.nn.Parameter],
    *,
    steps: int = 0,
) -> StepReport:
    """One optimiser step on ``batch``, in forward passes of at most ``config.max_batch_tokens`` tokens.

    Args:
        step: counts from 0. Like ``steps``, the number of all steps, it is used for the report only.
        parameters: the trained weights.

    Raises:
        DivergedError: the loss or the gradient is not finite. The weights have not changed.
    """
    start_s = time.perf_counter()
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    examples = [example for pair in batch for example in objective.examples(pair)]
    size = sum(map(objective.size, examples))
    device = parameters[0].device
    has_bf16 = config.precision == "bfloat16" or (config.precision == "auto" and prefers_bfloat16(device))
    total = torch.zeros((), device=device)
    for microbatch in objective.batches(examples, config.max_batch_tokens):
        with torch.autocast(device.type, torch.bfloat16, enabled=has_bf16):
            loss = objective.loss([examples[i] for i in microbatch]) / size
        torch.autograd.backward(loss)
        total += loss.detach()
    grad_norm = torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
    if not bool(torch.isfinite(total) & torch.isfinite(grad_norm)):
        optimizer.zero_grad(set_to_none=True)
        raise DivergedError(
            f"step {step + 1} was not applied: its loss is {float(total):.4g} and the norm of its gradient is "
            f"{float(grad_norm):.4g}"
        )
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    tokens = sum(map(objective.tokens, examples))
    return StepReport(
        step + 1, steps, float(total), learning_rate, float(grad_norm), tokens, time.perf_counter() - start_s
    )
