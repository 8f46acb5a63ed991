"""Negative log-likelihoods and logits of targets that keep the logits of only one chunk of rows in memory.

Plain autograd keeps ``(N, V)`` log-probabilities for the backward pass, 200 kB per target token with a vocabulary of
49,152. Here the logits of a chunk are freed before those of the next chunk are computed. If the weight of each token in
the loss is known in advance, the gradient of a chunk is computed together with its loss, so that nothing is computed
twice (as in liger-kernel's fused linear cross-entropy, arXiv 2410.10989). Otherwise the backward pass computes the
logits again. Values and gradients equal those of plain autograd.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from redline_model.encoding.items import EncodedItem
from redline_model.inference.lm_head import Projection
from redline_model.inference.target_logits import TargetForward


def target_nll(forward: TargetForward, items: Sequence[EncodedItem]) -> Tensor:
    """``-log pi(target token)`` in nats, ``(N,)`` float32, in the order of the items' targets.

    Gradients are supported; the backward pass computes the logits of each chunk again.
    """
    return _by_chunk(_nll, forward, items)


def target_logits(forward: TargetForward, items: Sequence[EncodedItem]) -> Tensor:
    """The logits of the target tokens themselves, before any softmax, ``(N,)`` float32, in the items' order.

    Gradients are supported; the backward pass computes the logits of each chunk again.
    """
    return _by_chunk(_taken, forward, items)


def weighted_nll(forward: TargetForward, items: Sequence[EncodedItem], weights: Tensor) -> Tensor:
    """``sum_n w_n (-log pi(target token n))``, a scalar in nats. Nothing is computed twice.

    Args:
        weights: ``(N,)``, one constant per target token in the order of the items' targets.
    """
    if not torch.is_grad_enabled():
        return (target_nll(forward, items) * weights).sum()
    projection = forward.projection
    total = torch.zeros((), device=weights.device)
    start = 0
    for rows, ids in forward.hidden_states(items):
        part = weights[start : start + len(ids)]
        start += len(ids)
        if not bool(part.all()):  # rows without a weight need no logits
            counted = part.nonzero().squeeze(-1)
            rows, ids, part = rows[counted], ids[counted], part[counted]
        total = total + _WeightedNLL.apply(projection, rows, ids, part, *projection.parameters())  # type: ignore[no-untyped-call]
    return total


def _nll(projection: Projection, rows: Tensor, ids: Tensor) -> Tensor:
    return F.cross_entropy(projection.project(rows).float(), ids, reduction="none")


def _taken(projection: Projection, rows: Tensor, ids: Tensor) -> Tensor:
    return projection.project(rows).gather(-1, ids.unsqueeze(-1)).squeeze(-1).float()


def _by_chunk(
    function: Callable[[Projection, Tensor, Tensor], Tensor], forward: TargetForward, items: Sequence[EncodedItem]
) -> Tensor:
    """``function`` of the projection, rows ``(n, width)`` and ids ``(n,)`` of each chunk, its logits not kept."""
    projection = forward.projection
    parts = []
    for rows, ids in forward.hidden_states(items):
        for part in projection.row_chunks(len(rows)):
            arguments = (projection, rows[part], ids[part])
            has_gradient = torch.is_grad_enabled()
            parts.append(
                checkpoint(function, *arguments, use_reentrant=False) if has_gradient else function(*arguments)
            )
    return torch.cat(parts)


class _WeightedNLL(torch.autograd.Function):
    """The weighted sum. The forward pass computes the gradients of rows and of the projection, chunk by chunk."""

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
                if accumulated is None:
                    parameter_gradients[n] = gradient
                elif gradient is not None:
                    accumulated.add_(gradient)
        # not saved with save_for_backward, because they are scaled in place: a head's gradient is as large as the head
        ctx.gradients = ([] if row_gradients is None else [row_gradients]) + parameter_gradients
        return total

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        """The stored gradients times the gradient of the sum. It can be called once."""
        if ctx.gradients is None:
            raise RuntimeError("backward() of this loss was called before; it can be called only once")
        gradients, ctx.gradients = iter(ctx.gradients), None
        scaled = []
        for needs in ctx.needs_input_grad:
            gradient = next(gradients) if needs else None
            scaled.append(None if gradient is None else gradient.mul_(scale))
        return tuple(scaled)
