"""The interfaces of the PPO loop. Any object with these methods can be passed to it.

Tensors: B rollouts, T response tokens (right-padded to the longest). In every mask True marks a real token.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor

from redline.messages import Message as Message
from redline.messages import Prompt as Prompt
from redline.spans import Span


@dataclass(frozen=True)
class Rollout:
    """One sampled response.

    ``prompt``: text or messages.
    ``prompt_ids``: the prompt's tokens, as the policy reads them.
    ``response_ids``: the response's tokens. The last one is an end token if and only if ``is_finished``.
    ``text``: the decoded response, without the end token.
    ``spans``: one span of ``text`` per response token; that of the end token is empty.
    ``is_finished``: False if the response was cut at the token limit.
    ``group``: equal for the responses to one prompt in one step.
    """

    prompt: Prompt
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    text: str
    spans: tuple[Span, ...]
    is_finished: bool
    group: int = 0


class Scored(NamedTuple):
    """The rewards of one rollout.

    ``score``: the scalar to report.
    ``rewards``: one number per response token.
    """

    score: float
    rewards: list[float]


class _Scores(NamedTuple):
    items: list[Scored]
    digests: tuple[str, ...]


class Scores(_Scores):
    """The result of a reward source.

    Args:
        items: one ``Scored`` per rollout, in order.
        digests: digests of the reward model's weights, in order of use: one, or several if the model was replaced
            while it scored. Empty if the source has no digest.
        digest: deprecated, removed in 0.2: ``digests`` joined with "+", or None.
    """

    __slots__ = ()

    def __new__(
        cls,
        items: list[Scored],
        digests: Sequence[str] | str | None = (),
        *,
        digest: str | None = None,
    ) -> Self:
        """See the class. ``digests`` as one string or None is deprecated like ``digest``."""
        if digest is not None or digests is None or isinstance(digests, str):
            message = "Scores: digest is replaced by digests, a tuple; the old name is removed in 0.2"
            warnings.warn(message, DeprecationWarning, stacklevel=2)
            joined = digest if digest is not None else digests
            digests = joined.split("+") if isinstance(joined, str) else ()
        return super().__new__(cls, items, tuple(digests))

    @property
    def digest(self) -> str | None:
        """Deprecated: ``digests`` joined with "+", None if there is none."""
        message = "Scores: digest is replaced by digests, a tuple; the old name is removed in 0.2"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return "+".join(self.digests) or None


class RewardSource(Protocol):
    """Scores rollouts. It is called from another thread while the next rollouts are sampled."""

    def score(self, rollouts: Sequence[Rollout]) -> Scores:
        """Score every rollout. Raises RedlineError if the source cannot score them."""
        ...


class TokenOutputs(NamedTuple):
    """Outputs of policy and value function for every response token, each ``(B, T)``.

    ``logprobs``: log-probability of the token, in nats.
    ``entropy``: of the distribution of the token, in nats.
    ``values``: value before the token, in units that the loop chooses (``PPOConfig.value_scale``).
    """

    logprobs: Tensor
    entropy: Tensor
    values: Tensor


class Policy(Protocol):
    """A language model that is trained with PPO, its value function, and its frozen reference."""

    device: torch.device

    def sample(self, prompts: Sequence[Prompt], groups: Sequence[int]) -> list[Rollout]:
        """Sample one response per prompt with torch's global generator. ``groups``: ``Rollout.group`` of each."""
        ...

    def outputs(self, rollouts: Sequence[Rollout], *, entropy_gradient: bool = False) -> TokenOutputs:
        """Outputs for the response tokens, with gradients. Entropies have gradients only if ``entropy_gradient``."""
        ...

    def reference_logprobs(self, rollouts: Sequence[Rollout]) -> Tensor:
        """Log-probabilities of the response tokens under the frozen reference, ``(B, T)``, without gradients."""
        ...

    def parameters(self) -> list[torch.nn.Parameter]:
        """All trained parameters, including those of the value function."""
        ...

    def value_parameters(self) -> list[torch.nn.Parameter]:
        """Parameters of a value function whose gradients do not reach the policy. The method is optional."""
        ...

    def state(self) -> dict[str, Any]:
        """The trained state, for ``load_state``."""
        ...

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore a ``state`` that ``state()`` returned."""
        ...

    def save(self, folder: Path) -> None:
        """Save the policy as a folder that transformers can load."""
        ...


class Advantages(NamedTuple):
    """Output of an advantage estimator.

    ``advantages``: (B, T).
    ``returns``: (B, T), targets of the value function; None if the estimator does not use one.
    """

    advantages: Tensor
    returns: Tensor | None


class AdvantageEstimator(Protocol):
    """Computes advantages from token rewards."""

    def __call__(self, rewards: Tensor, values: Tensor, mask: Tensor, groups: Tensor) -> Advantages:
        """``rewards``, ``values``, ``mask``: (B, T). ``groups``: (B,). Inputs and outputs are 0 in padding."""
        ...


# Called after every step with its metrics, its rollouts and their scores.
Callback = Callable[[dict[str, float], Sequence[Rollout], Scores], None]
