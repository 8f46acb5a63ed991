"""Value functions: a small network on the policy's detached hidden states, or a linear head that also trains it.

Explained variance of the lambda-returns before each step's updates (lambda 0.95, 64 responses of at most 16 tokens a
step, 4 updates a step), after 12 and after 25 steps, for three kinds of returns: 1 or -1 by the prompt; the number of
rewarded tokens to come; the number of tokens to come.

                                                         prompt       rewarded tokens  tokens
    SmolLM2-135M, linear head, rate 1e-4                 0.51, 0.67   0.05, -0.02      0.05, 0.02
    SmolLM2-135M, linear head, rate 1e-3                 0.82, 0.81   0.34, 0.38       0.30, 0.44
    SmolLM2-135M, this network, rate 3e-3                0.92, 0.96   0.57, 0.65       0.88, 0.96
    untrained tiny policy, linear head, rate 1e-3        0.07, 0.12   0.03, 0.02       0.02, 0.04
    untrained tiny policy, this network, rate 3e-3       0.85, 0.89   0.20, 0.19       0.77, 0.91

The tokens that an untrained policy will write cannot be predicted, so its rewarded tokens stay hard to predict.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

_UNITS = 256
_REFERENCE_WIDTH = 200  # width of the features with which the learning rate was chosen
_TIME_FEATURES = 2


class ValueNetwork(nn.Module):
    """One hidden layer of tanh units from ``value_features`` to a value that is 0 at first, in float32.

    Wide features are scaled down and their weights scaled up. A step of Adam changes each weight by about its learning
    rate, so the change of a unit's input grows with the width. Without the scaling, a rate that suits narrow features
    would saturate all units on wide features within a few steps (rule for hidden layers of arXiv 2203.03466). Initial
    weights are the same in every run.

    Args:
        width: of the features.
    """

    def __init__(self, width: int, device: torch.device) -> None:
        super().__init__()
        self.up = nn.Linear(width, _UNITS, dtype=torch.float32)
        self.out = nn.Linear(_UNITS, 1, dtype=torch.float32)
        generator = torch.Generator().manual_seed(0)
        self._scale = min(1.0, _REFERENCE_WIDTH / width)
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
    """A linear head on the policy's last hidden states, 0 at first, in float32."""
    head = nn.Linear(width, 1, device=device, dtype=torch.float32)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def features_width(embedding_width: int, state_width: int) -> int:
    """The width of ``value_features``."""
    return embedding_width + 2 * state_width + _TIME_FEATURES


def value_features(embeddings: Tensor, states: Tensor, mask: Tensor, columns: Tensor, longest: int) -> Tensor:
    """Inputs of the value function before each response token, without gradients to the policy.

    These are the last hidden state of the preceding token, the means of embeddings and of last hidden states up to that
    token, each with root mean square 1, and two functions of the number of response tokens so far. The means are there
    because the hidden state of a small or untrained policy contains little about the preceding text.

    Args:
        embeddings: (B, L, E), first hidden states of the sequences.
        states: (B, L, H), last hidden states.
        mask: (B, L), 1 at real tokens.
        columns: (B, T), index of the token before each response token.
        longest: token limit of a response.

    Returns:
        (B, T, E + 2 H + 2) in float32.
    """
    real = mask.unsqueeze(-1).to(torch.float32)
    count = real.cumsum(1).clamp_min(1)
    last = _unit(states.detach().float())
    embedding_mean = _unit((_unit(embeddings.detach().float()) * real).cumsum(1) / count)
    state_mean = _unit((last * real).cumsum(1) / count)
    position = torch.arange(columns.shape[1], device=states.device, dtype=torch.float32)
    time = torch.stack([position / longest, torch.log1p(position) / math.log1p(longest)], -1)
    time = time.expand(len(columns), -1, -1)
    parts = (last, embedding_mean, state_mean)
    chosen = [part.gather(1, columns.unsqueeze(-1).expand(-1, -1, part.shape[-1])) for part in parts]
    return torch.cat([*chosen, time], -1)


def _unit(vectors: Tensor) -> Tensor:
    return vectors * torch.rsqrt(vectors.square().mean(-1, keepdim=True) + 1e-6)
