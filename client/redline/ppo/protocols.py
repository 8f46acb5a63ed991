"""The interfaces of the loop: any object with these methods can be passed to it.

Tensors: B rollouts, T response tokens (right-padded to the longest). In every mask True marks a real token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from redline.messages import Message as Message
from redline.messages import Prompt as Prompt
from redline.spans import Span


@dataclass(frozen=True)
class Rollout:
    """One sampled response. ``response_ids`` end with an end token iff ``is_finished``.

    ``text`` is what those ids say, the end token left out; ``spans`` has a span of ``text`` for every id, the
    end token's being empty. ``group``: rollouts of one prompt in one step share it.
    """

    prompt: Prompt
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    text: str
    spans: tuple[Span, ...]
    is_finished: bool
    group: int = 0


class Scored(NamedTuple):
    """``rewards`` has one number for every response id; ``score`` is the scalar to report."""

    score: float
    rewards: list[float]


class Scores(NamedTuple):
    """One ``Scored`` per rollout, and the digest of the weights that gave them (None if there are none to name)."""

    items: list[Scored]
    digest: str | None


class RewardSource(Protocol):
    """Scores rollouts. Called from another thread while the next rollouts are sampled."""

    def score(self, rollouts: Sequence[Rollout]) -> Scores:
        """One ``Scored`` per rollout, in order; raises RedlineError when it gives up."""
        ...


class TokenOutputs(NamedTuple):
    """Of every response token, each ``(B, T)``: log-probability (nats), entropy (nats), value before it.

    Values are in units that the loop chooses (``PPOConfig.value_scale``).
    """

    logprobs: Tensor
    entropy: Tensor
    values: Tensor


class Policy(Protocol):
    """A language model that samples and learns, its value function, and its frozen starting point."""

    device: torch.device

    def sample(self, prompts: Sequence[Prompt], groups: Sequence[int]) -> list[Rollout]:
        """One response per prompt, drawn with torch's global generator."""
        ...

    def outputs(self, rollouts: Sequence[Rollout], *, entropy_gradient: bool = False) -> TokenOutputs:
        """What the policy assigns to its responses now, with gradients; entropies' only if ``entropy_gradient``."""
        ...

    def reference_logprobs(self, rollouts: Sequence[Rollout]) -> Tensor:
        """Log-probabilities ``(B, T)`` under the frozen reference, without gradients."""
        ...

    def parameters(self) -> list[torch.nn.Parameter]:
        """What learns, value head included."""
        ...

    def value_parameters(self) -> list[torch.nn.Parameter]:
        """Those of a value function whose gradients never reach the policy; may be left out, or none."""
        ...

    def state(self) -> dict[str, Any]:
        """All that ``load_state`` needs to put the policy back."""
        ...

    def load_state(self, state: dict[str, Any]) -> None:
        """Undo everything since ``state``."""
        ...

    def save(self, folder: Path) -> None:
        """Write the policy as an ordinary transformers folder."""
        ...


class Advantages(NamedTuple):
    """``advantages`` ``(B, T)``; ``returns`` ``(B, T)`` for the value function, None where there is none."""

    advantages: Tensor
    returns: Tensor | None


class AdvantageEstimator(Protocol):
    """How token rewards become advantages."""

    def __call__(self, rewards: Tensor, values: Tensor, mask: Tensor, groups: Tensor) -> Advantages:
        """``rewards``, ``values``, ``mask`` are ``(B, T)``, ``groups`` ``(B,)``; padding is 0 in and out."""
        ...


# Called after every step with its metrics, its rollouts and their scores.
Callback = Callable[[dict[str, float], Sequence[Rollout], Scores], None]
