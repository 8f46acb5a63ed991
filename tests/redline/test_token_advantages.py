"""Leave-one-out baselines by hand, a failed sample among them."""

from __future__ import annotations

import pytest
import torch

from redline.token_advantages import leave_one_out_advantages

REWARDS = torch.tensor([[1.0, 2.0], [0.0, 4.0], [3.0, 0.0], [9.0, 9.0]])
MASK = torch.tensor([[True, True], [True, True], [True, False], [False, False]])


def test_the_baseline_is_the_mean_reward_to_go_of_the_others() -> None:
    # to go: [3, 2], [4, 4], [3, then 3 as its last]; the fourth failed
    advantages = leave_one_out_advantages(REWARDS[:3], MASK[:3], [0, 0, 0], scale=False)
    assert advantages.tolist() == [pytest.approx([3 - 3.5, 2 - 3.5]), pytest.approx([4 - 3.0, 4 - 2.5]), [-0.5, 0.0]]


@pytest.mark.parametrize("scale", [False, True])
def test_a_failed_sample_is_in_no_baseline(scale: bool) -> None:
    without = leave_one_out_advantages(REWARDS[:3], MASK[:3], [0, 0, 0], scale=scale)
    advantages = leave_one_out_advantages(REWARDS, MASK, [0, 0, 0, 0], scale=scale)
    assert torch.equal(advantages[:3], without)
    assert advantages[3].tolist() == [0.0, 0.0]


def test_a_response_whose_group_failed_has_no_advantage() -> None:
    advantages = leave_one_out_advantages(REWARDS[[0, 3]], MASK[[0, 3]], [0, 0])
    assert advantages.tolist() == [[0.0, 0.0], [0.0, 0.0]]
