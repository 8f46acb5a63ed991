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
    """``A_{i,t} = G_{i,t} - mean_{j != i} G_{j,min(t, T_j)}``: RLOO, token by token.

    The baseline of response i at its token t is what the other responses to its prompt still had to come at theirs; of
    one that had ended by then, what its last token was given. It does not depend on response i, so the gradient stays
    unbiased (RLOO, arXiv 2402.14740). Where only last tokens have rewards it is RLOO. Carrying it over to tokens is
    ours.

    Args:
        rewards, mask: (B, T) as in ``rewards_to_go``; responses may stand left or right in their rows.
        groups: B marks; responses to one prompt have the same. One alone has no others and gets zeros. A row without a
            token in the mask (a sample that failed, say) is no response: it is in no baseline.
        scale: divide by the root mean square of a group's advantages over its tokens. GRPO's deviation of the sums
            (arXiv 2402.03300) may vanish where those of token rewards do not.

    Returns:
        (B, T), 0 outside the mask.
    """
    to_go = rewards_to_go(rewards, mask, gamma)
    is_own = mask.bool()
    # every response moved to the left of its row, so that equal columns are equal positions; its last value goes on
    at = torch.arange(rewards.shape[1], device=rewards.device)
    begins = is_own.int().argmax(1, keepdim=True)
    last = torch.where(is_own, at, 0).amax(1, keepdim=True)
    left = to_go.gather(1, torch.minimum(at + begins, last))
    members: dict[Hashable, list[int]] = {}
    for row, (group, has_tokens) in enumerate(zip(groups, is_own.any(1).tolist(), strict=True)):
        if has_tokens:
            members.setdefault(group, []).append(row)
    baselines = left.clone()
    for rows in members.values():
        if len(rows) > 1:
            baselines[rows] = (left[rows].sum(0, keepdim=True) - left[rows]) / (len(rows) - 1)
    back = (at - begins).clamp(min=0)
    advantages = (left - baselines).gather(1, back) * is_own
    if scale:
        for rows in members.values():
            count = is_own[rows].sum().clamp(min=1)
            advantages[rows] /= (advantages[rows].square().sum() / count).sqrt() + 1e-4
    return advantages
