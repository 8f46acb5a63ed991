"""Value functions: a small network that reads the policy's states without moving them, or a linear head on the policy.

Explained variance of the lambda-returns before each step's updates (lambda 0.95, 64 responses of at most 16 tokens a
step, 4 updates a step), after 12 and after 25 steps, for three kinds of returns: 1 or -1 by the prompt; the number of
rewarded tokens to come; the number of tokens to come.

                                                         prompt       rewarded tokens  tokens
    SmolLM2-135M, linear head, rate 1e-4                 0.51, 0.67   0.05, -0.02      0.05, 0.02
    SmolLM2-135M, linear head, rate 1e-3                 0.82, 0.81   0.34, 0.38       0.30, 0.44
    SmolLM2-135M, this network, rate 3e-3                0.92, 0.96   0.57, 0.65       0.88, 0.96
    untrained tiny policy, linear head, rate 1e-3        0.07, 0.12   0.03, 0.02       0.02, 0.04
    untrained tiny policy, this network, rate 3e-3       0.85, 0.89   0.20, 0.19       0.77, 0.91

Which tokens an untrained policy will write, nothing foretells.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

_INNER = 256
_NARROW = 200  # features of the models that the learning rate was chosen with
_TIME = 2


class ValueNetwork(nn.Module):
    """One layer of tanh units between ``value_features`` and a value that starts at 0; in float32.

    Wide features are made small and their weights large: a step of Adam changes each weight by its learning rate, so
    that what it changes a unit's input by grows with the width, and at a rate that suits narrow features wide ones
    saturate all units within a few steps (the rule for hidden layers of arXiv 2203.03466).

    Args:
        width: of the features. Initial weights are the same in every run.
    """

    def __init__(self, width: int, device: torch.device) -> None:
        super().__init__()
        self.up = nn.Linear(width, _INNER, dtype=torch.float32)
        self.out = nn.Linear(_INNER, 1, dtype=torch.float32)
        generator = torch.Generator().manual_seed(0)
        self._scale = min(1.0, _NARROW / width)
        bound = 1 / (self._scale * math.sqrt(width))
        nn.init.uniform_(self.up.weight, -bound, bound, generator=generator)
        for zero in (self.up.bias, self.out.weight, self.out.bias):
            nn.init.zeros_(zero)
        self.to(device)

    def forward(self, features: Tensor) -> Tensor:
        """``(B, T, width)`` to ``(B, T, 1)``."""
        value: Tensor = self.out(torch.tanh(self.up(self._scale * features)))
        return value


def linear_head(width: int, device: torch.device) -> nn.Linear:
    """A head on the policy's last states, 0 at first, in float32."""
    head = nn.Linear(width, 1, device=device, dtype=torch.float32)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def features_width(embedding_width: int, state_width: int) -> int:
    """The width of ``value_features``."""
    return embedding_width + 2 * state_width + _TIME


def value_features(embeddings: Tensor, states: Tensor, mask: Tensor, columns: Tensor, longest: int) -> Tensor:
    """What a value function may know before each response token, without gradients to the policy.

    The state there, the means of embeddings and of states up to there (a bag of what was said: a small or untrained
    policy's own state holds little of it), each with root mean square 1, and how many tokens of the response there are.

    Args:
        embeddings: (B, L, E), first hidden states of the sequences. states: (B, L, H), last ones.
        mask: (B, L), 1 at real tokens.
        columns: (B, T), where the token before each response token stands.
        longest: tokens of the longest response that may come.

    Returns:
        (B, T, E + 2 H + 2) in float32.
    """
    real = mask.unsqueeze(-1).to(torch.float32)
    count = real.cumsum(1).clamp_min(1)
    last = _unit(states.detach().float())
    said = _unit((_unit(embeddings.detach().float()) * real).cumsum(1) / count)
    thought = _unit((last * real).cumsum(1) / count)
    t = torch.arange(columns.shape[1], device=states.device, dtype=torch.float32)
    time = torch.stack([t / longest, torch.log1p(t) / math.log1p(longest)], -1).expand(len(columns), -1, -1)
    chosen = [part.gather(1, columns.unsqueeze(-1).expand(-1, -1, part.shape[-1])) for part in (last, said, thought)]
    return torch.cat([*chosen, time], -1)


def _unit(vectors: Tensor) -> Tensor:
    return vectors * torch.rsqrt(vectors.square().mean(-1, keepdim=True) + 1e-6)
