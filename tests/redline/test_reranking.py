"""Best-of-n: the highest score wins, the first of equals; a failure is raised and never a number."""

from __future__ import annotations

import asyncio

import pytest

from redline import NO_RETRY, AsyncRewardClient, ItemsFailedError, RewardClient, abest_of, best_of
from redline.testing import FakeService

SERVICE = FakeService(lambda word: float(word.count("!")), end_reward=0.5)


def client() -> RewardClient:
    return RewardClient("http://fake", transport=SERVICE.transport, retry=NO_RETRY)


def test_the_highest_score_wins() -> None:
    with client() as asked:
        best = best_of(asked, "How?", ["no", "yes!!", "maybe!"])
    assert (best.index, best.response) == (1, "yes!!")
    assert best.scores == (0.5, 2.5, 1.5)


def test_the_first_of_equals_wins() -> None:
    with client() as asked:
        assert best_of(asked, "How?", ["a", "b!", "c!", "d!"]).index == 1


def test_unfinished_responses_are_scored_as_such() -> None:
    with client() as asked:
        assert best_of(asked, "How?", ["a", "b"], finished=[False, True]).scores == (0.0, 0.5)
        assert best_of(asked, "How?", ["a", "b"], finished=False).scores == (0.0, 0.0)


def test_a_response_that_cannot_be_scored_is_an_error() -> None:
    with client() as asked, pytest.raises(ItemsFailedError, match="item 1"):
        best_of(asked, "How?", ["a!", "", "c"])


def test_nothing_to_choose_from_is_an_error() -> None:
    with client() as asked:
        with pytest.raises(ValueError, match="no responses"):
            best_of(asked, "How?", [])
        with pytest.raises(ValueError, match="finished"):
            best_of(asked, "How?", ["a", "b"], finished=[True])


def test_the_asynchronous_client_chooses_alike() -> None:
    async def run() -> int:
        async with AsyncRewardClient("http://fake", transport=SERVICE.transport, retry=NO_RETRY) as asked:
            return (await abest_of(asked, [{"role": "user", "content": "How?"}], ["a", "b!"])).index

    assert asyncio.run(run()) == 1
