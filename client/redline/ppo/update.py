"""The last part of a step: epochs of clipped updates on its rollouts."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from redline.ppo.config import PPOConfig
from redline.ppo.losses import policy_loss, value_loss
from redline.ppo.non_finite import check_number
from redline.ppo.protocols import Policy, Rollout, TokenOutputs


class UpdateInputs(NamedTuple):
    """What an update needs beside the rollouts, each (B, T): ``mask`` is True on tokens that are learned from.

    ``old``: outputs before the step. ``returns``: targets of the value function, in the units of the rewards; None
    where there is none. ``value_scale``: what the value function's outputs are in units of.
    """

    mask: Tensor
    old: TokenOutputs
    advantages: Tensor
    returns: Tensor | None
    value_scale: float


def make_optimizer(policy: Policy, config: PPOConfig) -> torch.optim.Optimizer:
    """AdamW over the policy's parameters; a value function of its own is a second group, with its own rate."""
    critic = value_parameters(policy)
    known = {id(parameter) for parameter in critic}
    groups: list[dict[str, object]] = [
        {"params": [p for p in policy.parameters() if id(p) not in known], "lr": config.learning_rate}
    ]
    if critic:
        groups.append({"params": critic, "lr": config.critic_learning_rate})
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0)


def value_parameters(policy: Policy) -> list[torch.nn.Parameter]:
    """Those of a value function apart from the policy's layers; policies that do not tell have none."""
    told = getattr(policy, "value_parameters", None)
    return [] if told is None else list(told())


def update(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    rollouts: Sequence[Rollout],
    learning: UpdateInputs,
    config: PPOConfig,
    seed: str,
) -> dict[str, float]:
    """All epochs; returns the means of their metrics. Gradients of each group of ``optimizer`` are clipped apart.

    Raises:
        NonFiniteError: a loss or the norm of a gradient is not finite; the update that it belongs to is not made.
    """
    sums = dict.fromkeys(("policy_loss", "value_loss", "clip_fraction", "update_kl", "grad_norm"), 0.0)
    updates = 0
    for epoch in range(config.epochs):
        order = list(range(len(rollouts)))
        random.Random(f"{seed}/{epoch}").shuffle(order)
        for start in range(0, len(order), config.minibatch):
            chosen = order[start : start + config.minibatch]
            tokens = learning.mask[chosen].sum()
            if not int(tokens):
                continue
            size = config.microbatch or len(chosen)
            for first in range(0, len(chosen), size):
                _accumulate(policy, rollouts, learning, config, chosen[first : first + size], tokens, sums)
            norms = [
                torch.nn.utils.clip_grad_norm_(group["params"], config.max_grad_norm)
                for group in optimizer.param_groups
            ]
            for norm in norms:
                check_number("norm of a gradient", norm)
            sums["grad_norm"] += float(norms[0])
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            updates += 1
    return {name: value / max(1, updates) for name, value in sums.items()}


def _accumulate(
    policy: Policy,
    rollouts: Sequence[Rollout],
    learning: UpdateInputs,
    config: PPOConfig,
    rows: Sequence[int],
    tokens: Tensor,
    sums: dict[str, float],
) -> None:
    """Gradients of one microbatch; ``tokens``: of its whole minibatch."""
    part = [rollouts[i] for i in rows]
    has_entropy = config.entropy_coefficient > 0
    now = policy.outputs(part, entropy_gradient=True) if has_entropy else policy.outputs(part)
    width = now.logprobs.shape[1]
    real = learning.mask[rows, :width]
    old, scale = learning.old, learning.value_scale
    surrogate = policy_loss(
        now.logprobs, old.logprobs[rows, :width], learning.advantages[rows, :width], real, config.clip
    )
    loss = surrogate.loss
    if has_entropy:
        loss = loss - config.entropy_coefficient * torch.where(real, now.entropy, 0.0).sum()
    if learning.returns is not None:
        error = value_loss(
            now.values,
            old.values[rows, :width],
            learning.returns[rows, :width] / scale,
            real,
            config.value_clip,
        )
        loss = loss + config.value_coefficient * error
        sums["value_loss"] += float(error.detach() / tokens)
    check_number("loss", loss.detach())
    torch.autograd.backward(loss / tokens)
    sums["policy_loss"] += float(surrogate.loss.detach() / tokens)
    sums["clip_fraction"] += float(surrogate.clipped / tokens)
    sums["update_kl"] += float(surrogate.kl / tokens)
