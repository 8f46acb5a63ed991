"""Rewards to go and leave-one-out token advantages (credit assignment without a value function). Needs only torch.

Used by ``redline.ppo`` and by the integrations. Pure functions on ``(B, T)`` tensors.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor


def rewards_to_go(rewards: Tensor, mask: Tensor, gamma: float = 1.0) -> Tensor:
    """``G_t = sum_{k >= t} gamma^(k - t) r_k`` over the tokens of ``mask``; other tokens are not time steps.

    Args:
        rewards: (B, T). mask: (B, T), True on tokens that the policy sampled.

    Returns:
        (B, T), 0 after the last token of the mask.
    """
    masked = rewards * mask
    is_response = mask.bool()
    following = torch.zeros_like(masked[:, 0])
    columns: list[Tensor] = []
    for t in range(masked.shape[1] - 1, -1, -1):
        following = torch.where(is_response[:, t], masked[:, t] + gamma * following, following)
        columns.append(following)
    return torch.stack(columns[::-1], dim=1)


def leave_one_out_advantages(
    rewards: Tensor, mask: Tensor, groups: Sequence[Hashable], *, gamma: float = 1.0, scale: bool = True
) -> Tensor:
    """``A_{i,t} = G_{i,t} - mean_{j != i} G_{j,min(t, T_j)}``: RLOO, token by token.

    The baseline of response i at its token t is the mean of the rewards to go of the other responses to its prompt at
    their token t, or at their last token if they are shorter. It does not depend on response i, so the gradient stays
    unbiased (RLOO, arXiv 2402.14740). If only last tokens have rewards this is RLOO. The per-token form is Redline's
    own.

    Args:
        rewards, mask: (B, T) as in ``rewards_to_go``; responses may be padded on the left or on the right.
        groups: B values, equal for responses to one prompt. A group of one gets zeros. A row without a token in the
            mask (such as a failed sample) is ignored.
        scale: divide by the root mean square of a group's advantages over its tokens. GRPO's standard deviation of sums
            (arXiv 2402.03300) can be 0 when token rewards differ.

    Returns:
        (B, T), 0 outside the mask.
    """
    to_go = rewards_to_go(rewards, mask, gamma)
    is_response = mask.bool()
    # every response is moved to the left of its row, so that equal columns are equal positions, and its last value is
    # repeated after its end
    at = torch.arange(rewards.shape[1], device=rewards.device)
    begins = is_response.int().argmax(1, keepdim=True)
    last = torch.where(is_response, at, 0).amax(1, keepdim=True)
    left = to_go.gather(1, torch.minimum(at + begins, last))
    members: dict[Hashable, list[int]] = {}
    for row, (group, has_tokens) in enumerate(zip(groups, is_response.any(1).tolist(), strict=True)):
        if has_tokens:
            members.setdefault(group, []).append(row)
    baselines = left.clone()
    for rows in members.values():
        if len(rows) > 1:
            baselines[rows] = (left[rows].sum(0, keepdim=True) - left[rows]) / (len(rows) - 1)
    back = (at - begins).clamp(min=0)
    advantages = (left - baselines).gather(1, back) * is_response
    if scale:
        for rows in members.values():
            count = is_response[rows].sum().clamp(min=1)
            advantages[rows] /= (advantages[rows].square().sum() / count).sqrt() + 1e-4
    return advantages
