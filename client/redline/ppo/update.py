"""Updates the policy and the value function on the rollouts of a step, with clipped losses."""

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
    """Inputs of an update that belong to the rollouts; tensors are (B, T).

    ``mask``: True on tokens that the update learns from.
    ``old``: outputs before the step.
    ``advantages``: of each token.
    ``returns``: targets of the value function, in the units of the rewards; None if there is no value loss.
    ``value_scale``: size of one unit of the value function's outputs, in the units of the rewards.
    """

    mask: Tensor
    old: TokenOutputs
    advantages: Tensor
    returns: Tensor | None
    value_scale: float


def make_optimizer(policy: Policy, config: PPOConfig) -> torch.optim.Optimizer:
    """AdamW over the policy's parameters. A separate value function is a second group with its own rate."""
    critic = value_parameters(policy)
    critic_ids = {id(parameter) for parameter in critic}
    groups: list[dict[str, object]] = [
        {"params": [p for p in policy.parameters() if id(p) not in critic_ids], "lr": config.learning_rate}
    ]
    if critic:
        groups.append({"params": critic, "lr": config.critic_learning_rate})
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0)


def value_parameters(policy: Policy) -> list[torch.nn.Parameter]:
    """Parameters of a value function that is separate from the policy; empty if the policy has no such method."""
    own_parameters = getattr(policy, "value_parameters", None)
    return [] if own_parameters is None else list(own_parameters())


def update(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    rollouts: Sequence[Rollout],
    inputs: UpdateInputs,
    config: PPOConfig,
    seed: str,
) -> dict[str, float]:
    """Run all epochs, and return the means of their metrics. Each group of ``optimizer`` has its gradients clipped.

    Raises:
        NonFiniteError: a loss or the norm of a gradient is not finite. That update is not made.
    """
    sums = dict.fromkeys(("policy_loss", "value_loss", "clip_fraction", "update_kl", "grad_norm"), 0.0)
    updates = 0
    for epoch in range(config.epochs):
        order = list(range(len(rollouts)))
        random.Random(f"{seed}/{epoch}").shuffle(order)
        for start in range(0, len(order), config.minibatch):
            chosen = order[start : start + config.minibatch]
            tokens = inputs.mask[chosen].sum()
            if not int(tokens):
                continue
            size = config.microbatch or len(chosen)
            for first in range(0, len(chosen), size):
                _accumulate(policy, rollouts, inputs, config, chosen[first : first + size], tokens, sums)
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
    inputs: UpdateInputs,
    config: PPOConfig,
    rows: Sequence[int],
    tokens: Tensor,
    sums: dict[str, float],
) -> None:
    """Add the gradients of one microbatch. ``tokens``: number of tokens of its minibatch."""
    part = [rollouts[i] for i in rows]
    has_entropy = config.entropy_coefficient > 0
    now = policy.outputs(part, entropy_gradient=True) if has_entropy else policy.outputs(part)
    width = now.logprobs.shape[1]
    real = inputs.mask[rows, :width]
    old, scale = inputs.old, inputs.value_scale
    surrogate = policy_loss(
        now.logprobs, old.logprobs[rows, :width], inputs.advantages[rows, :width], real, config.clip
    )
    loss = surrogate.loss
    if has_entropy:
        loss = loss - config.entropy_coefficient * torch.where(real, now.entropy, 0.0).sum()
    if inputs.returns is not None:
        error = value_loss(
            now.values,
            old.values[rows, :width],
            inputs.returns[rows, :width] / scale,
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
