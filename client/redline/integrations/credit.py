"""Token rewards -> token advantages for loops without a critic. Torch alone."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

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
    rewards: Tensor, mask: Tensor, groups: Sequence[Hashable], *, gamma: float = 1.0, scale: bool = True
) -> Tensor:
    """``A_{i,t} = G_{i,t} - mean_{j != i} G_{j,t}``: RLOO, token by token.

    The baseline of response i at its token t is what the other responses to its prompt still had to come at theirs, 0
    where they had ended. It does not depend on response i, so the gradient stays unbiased (RLOO, arXiv 2402.14740),
    and a response is not paid for going on where others had nothing left to lose. Carrying RLOO over to tokens is ours.

    Args:
        rewards, mask: (B, T) as in ``rewards_to_go``; responses may stand left or right in their rows.
        groups: B marks; responses to one prompt have the same.
        scale: divide by the standard deviation of the responses' sums in their group, as GRPO does (arXiv 2402.03300).

    Returns:
        (B, T), 0 outside the mask.

    Raises:
        ValueError: a group has a single response.
    """
    count, width = rewards.shape
    to_go = rewards_to_go(rewards, mask, gamma)
    # every response moved to the left of its row, so that equal columns are equal positions
    at = torch.arange(width, device=rewards.device)
    begins = torch.where(mask.bool().any(1), mask.int().argmax(1), torch.zeros_like(mask[:, 0], dtype=torch.long))
    source = at + begins[:, None]
    left = torch.where(source < width, to_go.gather(1, source.clamp(max=width - 1)), torch.zeros_like(to_go))
    sums = (rewards * mask).sum(1)
    advantages = torch.zeros_like(left)
    members: dict[Hashable, list[int]] = {}
    for row, group in zip(range(count), groups, strict=True):
        members.setdefault(group, []).append(row)
    for rows in members.values():
        if len(rows) < 2:
            raise ValueError("a group of one response has no others to be compared with")
        own = left[rows]
        others = (own.sum(0, keepdim=True) - own) / (len(rows) - 1)
        deviation = sums[rows].std() + 1e-4 if scale else 1.0
        advantages[rows] = (own - others) / deviation
    back = at - begins[:, None]
    return torch.where(back >= 0, advantages.gather(1, back.clamp(min=0)), torch.zeros_like(left)) * mask
