"""Best-of-n sampling: keep the highest-scored of n responses to a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from redline.aclient import AsyncRewardClient
from redline.client import RewardClient
from redline.results import ScoreResult
from redline.wire import PromptInput, ScoreItem, ScoreOptions


@dataclass(frozen=True)
class BestOf:
    """The response with the highest score, the first one on ties; ``scores`` in the order of the responses."""

    index: int
    response: str
    scores: tuple[float, ...]


def best_of(
    client: RewardClient,
    prompt: PromptInput,
    responses: Sequence[str],
    *,
    model: str = "default",
    options: ScoreOptions | None = None,
    finished: bool | Sequence[bool] = True,
) -> BestOf:
    """The best of ``responses`` to ``prompt`` by the score of a reward service.

    Args:
        finished: whether the policy ended the responses with an end token; one value for all, or one per response.

    Raises:
        ValueError: there are no responses, or ``finished`` has another length.
        ItemsFailedError: a response could not be scored.
        ProtocolError, ServiceError, ConnectionFailedError: as ``RewardClient.score``.
    """
    return _best(responses, client.score(_items(prompt, responses, finished), model=model, options=options))


async def abest_of(
    client: AsyncRewardClient,
    prompt: PromptInput,
    responses: Sequence[str],
    *,
    model: str = "default",
    options: ScoreOptions | None = None,
    finished: bool | Sequence[bool] = True,
) -> BestOf:
    """``best_of`` for the asynchronous client."""
    return _best(responses, await client.score(_items(prompt, responses, finished), model=model, options=options))


def _items(
    prompt: PromptInput, responses: Sequence[str], finished: bool | Sequence[bool]
) -> list[ScoreItem | dict[str, Any]]:
    if not responses:
        raise ValueError("there are no responses to choose from")
    flags = [finished] * len(responses) if isinstance(finished, bool) else list(finished)
    if len(flags) != len(responses):
        raise ValueError(f"finished has {len(flags)} values for {len(responses)} responses")
    shared_prompt = prompt if isinstance(prompt, str) else list(prompt)
    return [
        {"prompt": shared_prompt, "response": response, "finished": flag}
        for response, flag in zip(responses, flags, strict=True)
    ]


def _best(responses: Sequence[str], result: ScoreResult) -> BestOf:
    scores = tuple(item.score for item in result.scored())
    index = max(range(len(scores)), key=lambda n: scores[n])  # the first one on ties
    return BestOf(index, responses[index], scores)
