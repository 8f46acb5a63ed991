"""Best-of-n: the highest score wins, the first of equals; a failure is raised and never a number."""

from __future__ import annotations

import asyncio

import pytest

from redline import NO_RETRY, AsyncRewardClient, ItemsFailedError, RewardClient, abest_of, best_of
from redline.testing import FakeService

SERVICE = FakeService(lambda word: float(word.count("!")), end_reward=0.5)


def make_client() -> RewardClient:
    return RewardClient("http://fake", transport=SERVICE.transport, retry=NO_RETRY)


def test_the_highest_score_wins() -> None:
    with make_client() as reward_client:
        best = best_of(reward_client, "How?", ["no", "yes!!", "maybe!"])
    assert (best.index, best.response) == (1, "yes!!")
    assert best.scores == (0.5, 2.5, 1.5)


def test_the_first_of_equal_scores_wins() -> None:
    with make_client() as reward_client:
        assert best_of(reward_client, "How?", ["a", "b!", "c!", "d!"]).index == 1


def test_unfinished_responses_are_scored_as_such() -> None:
    with make_client() as reward_client:
        assert best_of(reward_client, "How?", ["a", "b"], finished=[False, True]).scores == (0.0, 0.5)
        assert best_of(reward_client, "How?", ["a", "b"], finished=False).scores == (0.0, 0.0)


def test_a_response_that_cannot_be_scored_is_an_error() -> None:
    with make_client() as reward_client, pytest.raises(ItemsFailedError, match="item 1"):
        best_of(reward_client, "How?", ["a!", "", "c"])


def test_no_responses_is_an_error() -> None:
    with make_client() as reward_client:
        with pytest.raises(ValueError, match="no responses"):
            best_of(reward_client, "How?", [])
        with pytest.raises(ValueError, match="finished"):
            best_of(reward_client, "How?", ["a", "b"], finished=[True])


def test_the_asynchronous_function_chooses_the_same_response() -> None:
    async def run() -> int:
        async with AsyncRewardClient("http://fake", transport=SERVICE.transport, retry=NO_RETRY) as reward_client:
            return (await abest_of(reward_client, [{"role": "user", "content": "How?"}], ["a", "b!"])).index

    assert asyncio.run(run()) == 1
