"""A stand-in for a Redline service, for tests of code that calls one: no server, no model, no network.

    from redline import RewardClient
    from redline.testing import FakeService

    client = RewardClient(transport=FakeService(lambda word: float("sorry" not in word)).transport)

Its rewards are a visible function of the text: one token a word (white space before it included), and the end token.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import httpx

from redline.alignment import align_rewards, check_offsets
from redline.wire import (
    READY_PATH,
    SCORE_PATH,
    AppliedOptions,
    ErrorBody,
    ErrorCode,
    ErrorResponse,
    ItemError,
    ItemResult,
    ItemScore,
    ModelRef,
    ScoreItem,
    ScoreRequest,
    ScoreResponse,
    Usage,
)


class FakeService:
    """Answers ``/v1/score`` and ``/readyz`` as a service would.

    Args:
        reward: of each word of a response.
        end_reward: of ending there.
        digest: what it calls its weights; set it anew to play a swapped model.
    """

    def __init__(self, reward: Callable[[str], float], *, end_reward: float = 0.0, digest: str = "sha256:fake") -> None:
        self._reward = reward
        self._end_reward = end_reward
        self.digest = digest
        self.requests: list[ScoreRequest] = []

    @property
    def transport(self) -> httpx.MockTransport:
        """For ``RewardClient(transport=...)`` and ``AsyncRewardClient(transport=...)`` alike."""
        return httpx.MockTransport(self._answer)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == READY_PATH:
            return httpx.Response(200, json={"status": "ready"})
        if request.url.path != SCORE_PATH:
            body = ErrorResponse(error=ErrorBody.of(ErrorCode.NOT_FOUND, "the fake only scores"))
            return httpx.Response(404, json=body.model_dump())
        asked = ScoreRequest.model_validate(json.loads(request.content))
        self.requests.append(asked)
        items = [self._judge(item) for item in asked.items]
        answer = ScoreResponse(
            model=ModelRef(name=asked.model, digest=self.digest, kind="seq2seq"),
            options=AppliedOptions(mode=asked.options.mode, aggregate="sum", calibrated=False),
            items=items,
            usage=Usage(scored_tokens=sum(len(i.rewards) for i in items if isinstance(i, ItemScore)), batch_tokens=0),
        )
        return httpx.Response(200, json=answer.model_dump(mode="json", exclude_none=True))

    def _judge(self, item: ScoreItem) -> ItemResult:
        text = item.response or ""
        if not text and not item.token_offsets:
            return ItemError(id=item.id, error=ErrorBody.of(ErrorCode.EMPTY_RESPONSE, "the response is empty"))
        spans = [match.span() for match in re.finditer(r"\s*\S+", text)]
        rewards = [self._reward(text[start:end].strip()) for start, end in spans]
        if item.finished:
            spans.append((len(text), len(text)))
            rewards.append(self._end_reward)
        if item.token_offsets is not None:
            problem = check_offsets(item.token_offsets, text) if text else None
            if problem is not None:
                return ItemError(id=item.id, error=ErrorBody.of(ErrorCode.BAD_OFFSETS, problem))
            rewards, spans = align_rewards(rewards, spans, item.token_offsets), list(item.token_offsets)
        return ItemScore(id=item.id, score=sum(rewards), rewards=rewards, offsets=spans)
