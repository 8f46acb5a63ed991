"""Negative log-likelihoods of targets, with memory for the logits of one chunk of rows and not of them all.

Plain autograd keeps ``(N, V)`` of log-probabilities for the backward pass, 200 kB a target token at a vocabulary of
49,152. Here a chunk's logits are gone before those of the next one are made. Where the weight of each token in the
loss is known beforehand, the gradient of a chunk is taken with its loss, so that nothing is computed twice (the idea
of liger-kernel's fused linear cross-entropy, arXiv 2410.10989); else the chunk's logits are computed again in the
backward pass. Values and gradients are those of plain autograd.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from redline_model.encoding.encoder import EncodedItem
from redline_model.inference.lm_head import Projection
from redline_model.inference.target_logits import TargetForward


def target_nll(forward: TargetForward, items: Sequence[EncodedItem]) -> Tensor:
    """``-log pi(target token)`` in nats, ``(N,)`` float32, in the order of the items' targets.

    With gradients where they are enabled; the backward pass computes each chunk's logits again.
    """
    projection = forward.projection
    parts = [
        _recomputed_nll(projection, rows[part], ids[part])
        for rows, ids in forward.hidden_states(items)
        for part in projection.row_chunks(len(rows))
    ]
    return torch.cat(parts)


def weighted_nll(forward: TargetForward, items: Sequence[EncodedItem], weights: Tensor) -> Tensor:
    """``sum_n w_n (-log pi(target token n))``, a scalar in nats, nothing computed twice.

    Args:
        weights: ``(N,)``, of every target token in the order of the items' targets; constants.
    """
    if not torch.is_grad_enabled():
        return (target_nll(forward, items) * weights).sum()
    projection = forward.projection
    total = torch.zeros((), device=weights.device)
    start = 0
    for rows, ids in forward.hidden_states(items):
        part = weights[start : start + len(ids)]
        total = total + _WeightedNLL.apply(projection, rows, ids, part, *projection.parameters())  # type: ignore[no-untyped-call]
        start += len(ids)
    return total


def _nll(projection: Projection, rows: Tensor, ids: Tensor) -> Tensor:
    return F.cross_entropy(projection.project(rows).float(), ids, reduction="none")


def _recomputed_nll(projection: Projection, rows: Tensor, ids: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return _nll(projection, rows, ids)
    recomputed: Tensor = checkpoint(_nll, projection, rows, ids, use_reentrant=False)
    return recomputed


class _WeightedNLL(torch.autograd.Function):
    """The sum, and its gradients by the rows and by the projection's weights, taken chunk by chunk on the way."""

    @staticmethod
    def forward(
        ctx: Any, projection: Projection, rows: Tensor, ids: Tensor, weights: Tensor, *parameters: Tensor
    ) -> Tensor:
        """See the class."""
        _, rows_need_gradient, *_ = ctx.needs_input_grad
        learned = [p for p, needs in zip(parameters, ctx.needs_input_grad[4:], strict=True) if needs]
        total = torch.zeros((), device=rows.device)
        row_gradients = torch.empty_like(rows) if rows_need_gradient else None
        parameter_gradients: list[Tensor | None] = [None] * len(learned)
        for part in projection.row_chunks(len(rows)):
            with torch.set_grad_enabled(rows_need_gradient or bool(learned)):
                chunk = rows[part].detach().requires_grad_(rows_need_gradient)
                loss = (_nll(projection, chunk, ids[part]) * weights[part]).sum()
            total += loss.detach()
            inputs = [chunk, *learned] if rows_need_gradient else learned
            gradients = list(torch.autograd.grad(loss, inputs, allow_unused=True)) if inputs else []
            if row_gradients is not None:
                row_gradients[part] = gradients.pop(0)
            for n, gradient in enumerate(gradients):
                accumulated = parameter_gradients[n]
                parameter_gradients[n] = gradient if accumulated is None else accumulated if gradient is None else accumulated.add_(gradient)
        # not among autograd's saved tensors: they are scaled in place, for a head's gradient is as large as the head
        ctx.gradients = ([] if row_gradients is None else [row_gradients]) + parameter_gradients
        return total

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients kept, times that of the sum; once."""
        if ctx.gradients is None:
            raise RuntimeError("the gradients of this loss were taken already")
        gradients, ctx.gradients = iter(ctx.gradients), None
        scaled = []
        for needs in ctx.needs_input_grad:
            gradient = next(gradients) if needs else None
            scaled.append(None if gradient is None else gradient.mul_(scale))
        return tuple(scaled)
