"""A request too large for the service's deadline is sent again in halves, until it fits."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

from redline import NO_RETRY, AsyncRewardClient, RewardClient, ScoreItem, ServiceError
from redline.testing import FakeService
from redline.wire import ErrorBody, ErrorCode, ErrorResponse


class SlowService:
    """Times out on more than ``max_items`` items."""

    def __init__(self, max_items: int) -> None:
        self._fake = FakeService(lambda word: float(len(word)))
        self._max_items = max_items
        self.sizes: list[int] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.sizes.append(len(json.loads(request.content)["items"]))
        if self.sizes[-1] > self._max_items:
            body = ErrorResponse(error=ErrorBody.of(ErrorCode.TIMED_OUT, "not scored within 85 s"))
            return httpx.Response(503, json=body.model_dump())
        return self._fake.transport.handler(request)  # type: ignore[return-value]


ITEMS = [ScoreItem(id=str(n), prompt="p", response="x" * n) for n in range(1, 11)]


@pytest.mark.parametrize("is_async", [False, True])
def test_halves_are_sent_until_they_fit_and_order_is_kept(is_async: bool) -> None:
    service = SlowService(max_items=3)
    transport = httpx.MockTransport(service)
    if is_async:
        result = asyncio.run(AsyncRewardClient(transport=transport, retry=NO_RETRY).score(ITEMS))
    else:
        result = RewardClient(transport=transport, retry=NO_RETRY).score(ITEMS)
    assert [item.score for item in result.scored()] == [float(n) for n in range(1, 11)]
    assert service.sizes == [10, 5, 2, 3, 5, 2, 3]


def test_a_single_item_that_times_out_is_an_error() -> None:
    with pytest.raises(ServiceError, match="85 s"):
        RewardClient(transport=httpx.MockTransport(SlowService(max_items=0)), retry=NO_RETRY).score(ITEMS)
