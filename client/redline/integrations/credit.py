"""Token rewards -> token advantages for loops without a critic. Torch alone."""

from __future__ import annotations

import torch
from torch import Tensor


def rewards_to_go(rewards: Tensor, mask: Tensor, gamma: float = 1.0) -> Tensor:
    """``G_t = sum_{k >= t} gamma^(k - t) r_k`` over the tokens of ``mask``; other tokens take no time.

    Args:
        rewards: (B, T). mask: (B, T), True where the policy wrote.

    Returns:
        (B, T), 0 behind the last token of the mask.
    """
    own = rewards * mask
    if gamma == 1.0:
        return own.flip(1).cumsum(1).flip(1)
    told = torch.zeros_like(own)
    following = torch.zeros_like(own[:, 0])
    for t in range(own.shape[1] - 1, -1, -1):
        following = torch.where(mask[:, t].bool(), own[:, t] + gamma * following, following)
        told[:, t] = following
    return told


def leave_one_out_advantages(
    rewards: Tensor, mask: Tensor, group: int, *, gamma: float = 1.0, scale: bool = True
) -> Tensor:
    """``A_{i,t} = G_{i,t} - mean_{j != i} G_{j,t}``: RLOO, token by token.

    The baseline of response i at position t is what the other responses to its prompt still had to come there, 0 where
    they had ended: it does not depend on response i, so the gradient stays unbiased (RLOO, arXiv 2402.14740), and a
    response is not paid for going on where others had nothing more to lose..

    Args:
        rewards, mask: (B, T) as in ``rewards_to_go``; B is a multiple of ``group``, responses to one prompt in a row.
        scale: divide by the standard deviation of the responses' sums in their group, as GRPO does (arXiv 2402.03300).

    Returns:
        (B, T), 0 outside the mask.

    Raises:
        ValueError: groups of one, or B is no multiple of ``group``.
    """
    if group < 2 or rewards.shape[0] % group:
        raise ValueError(f"{rewards.shape[0]} responses are no groups of {group}; a group needs at least 2")
    to_go = rewards_to_go(rewards, mask, gamma).view(-1, group, rewards.shape[1])
    others = (to_go.sum(1, keepdim=True) - to_go) / (group - 1)
    advantages = to_go - others
    if scale:
        sums = (rewards * mask).sum(1).view(-1, group)
        advantages = advantages / (sums.std(1)[:, None, None] + 1e-4)
    return advantages.reshape(rewards.shape) * mask
