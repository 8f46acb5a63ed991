"""RemoteRewards sends the policy's tokens and returns one reward per token."""

from __future__ import annotations

import pytest

from redline import NO_RETRY, ItemsFailedError, RewardClient
from redline.ppo import RemoteRewards, Rollout
from redline.testing import FakeService


def rollout(text: str, spans: list[tuple[int, int]], is_finished: bool = True) -> Rollout:
    return Rollout("How?", (1,), tuple(range(len(spans))), text, tuple(spans), is_finished)


def remote(service: FakeService) -> RemoteRewards:
    return RemoteRewards(RewardClient(transport=service.transport, retry=NO_RETRY))


def test_each_token_of_the_policy_has_a_reward() -> None:
    service = FakeService(lambda word: {"Hold": 1.0, "it": -2.0}.get(word, 0.0), end_reward=0.5)
    # "Hold" is two tokens of the policy, " it" one, then the end
    scores = remote(service).score([rollout("Hold it", [(0, 2), (2, 4), (4, 7), (7, 7)])])
    assert scores.items[0].rewards == pytest.approx([0.5, 0.5, -2.0, 0.5])
    assert scores.items[0].score == pytest.approx(-0.5)
    assert scores.digests == ("sha256:fake",)


def test_a_cut_response_is_sent_as_unfinished() -> None:
    service = FakeService(lambda word: 1.0, end_reward=100.0)
    scores = remote(service).score([rollout("Hold", [(0, 4)], is_finished=False)])
    assert scores.items[0].rewards == [1.0]
    assert service.requests[0].items[0].finished is False


def test_a_response_of_only_an_end_token_is_scored() -> None:
    scores = remote(FakeService(lambda word: 1.0, end_reward=-3.0)).score([rollout("", [(0, 0)])])
    assert scores.items[0].rewards == [-3.0]


def test_an_item_that_cannot_be_scored_is_an_error() -> None:
    with pytest.raises(ItemsFailedError, match="bad_offsets"):
        remote(FakeService(lambda word: 1.0)).score([rollout("Hold it", [(0, 2)])])
