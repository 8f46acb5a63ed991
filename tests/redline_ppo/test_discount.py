"""The default discount: 1 for one reward per response, smaller for token rewards, and one value for a whole run."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from redline.ppo import FunctionRewards, PPOConfig, PPOLoop, Rollout
from redline.ppo.advantages import TOKEN_DISCOUNT, default_discount
from tests.redline_ppo.tiny import PROMPTS, tiny_policy

MASK = torch.tensor([[True, True, True], [True, True, False]])


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [
        ([[0.0, 0.0, -2.0], [0.0, 3.0, 0.0]], 1.0),
        ([[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]], 1.0),
        ([[0.0, 0.0, -2.0], [0.0, 3.0, 9.0]], 1.0),  # 9 is in padding
        ([[0.0, 0.0, -2.0], [-0.1, 3.0, 0.0]], TOKEN_DISCOUNT),
    ],
)
def test_the_default_depends_on_where_rewards_are(rewards: list[list[float]], expected: float) -> None:
    assert default_discount(torch.tensor(rewards), MASK) == expected


def on_every_token(rollout: Rollout) -> list[float]:
    return [-1.0] * len(rollout.response_ids)


def build_loop(reward: Any, **settings: Any) -> PPOLoop:
    config = PPOConfig(steps=2, rollouts=4, sample_batch=4, minibatch=4, **settings)
    return PPOLoop(tiny_policy(max_new_tokens=6), FunctionRewards(reward), PROMPTS, config)


@pytest.mark.parametrize(("reward", "expected"), [(on_every_token, TOKEN_DISCOUNT), (lambda rollout: 2.0, 1.0)])
def test_the_loop_reports_and_keeps_the_discount_of_its_first_step(reward: Any, expected: float) -> None:
    loop = build_loop(reward)
    assert loop.discount is None
    assert loop.step()["discount"] == expected
    resumed = build_loop(reward)
    resumed.load_state(loop.state())
    assert resumed.discount == expected


def test_a_discount_that_is_set_is_used_as_it_is() -> None:
    assert build_loop(on_every_token, discount=0.9).step()["discount"] == 0.9
