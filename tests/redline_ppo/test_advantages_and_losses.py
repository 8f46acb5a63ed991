"""Advantages and losses equal values that were computed by hand."""

from __future__ import annotations

import math

import pytest
import torch

from redline.ppo.advantages import LeaveOneOut, gae, group_relative, kl_penalized_rewards, whiten
from redline.ppo.losses import adapted_kl_coefficient, explained_variance, policy_loss, value_loss
from redline.ppo.report import fit_line
from redline.token_advantages import leave_one_out_advantages

MASK = torch.tensor([[True, True, True], [True, True, False]])


def test_gae_by_hand() -> None:
    rewards = torch.tensor([[1.0, 0.0, 2.0], [0.5, -1.0, 0.0]])
    values = torch.tensor([[0.5, 0.25, 1.0], [0.0, 1.0, 9.0]])
    discount, lam = 0.9, 0.8
    delta = [1.0 + 0.9 * 0.25 - 0.5, 0.0 + 0.9 * 1.0 - 0.25, 2.0 - 1.0]
    last = delta[2]
    middle = delta[1] + 0.72 * last
    first = delta[0] + 0.72 * middle
    short = [0.5 + 0.9 * 1.0 - 0.0 + 0.72 * (-1.0 - 1.0), -1.0 - 1.0, 0.0]
    advantages, returns = gae(rewards, values, MASK, discount, lam)
    assert advantages.tolist() == [pytest.approx([first, middle, last]), pytest.approx(short, abs=1e-6)]
    assert returns is not None
    assert returns[0].tolist() == pytest.approx([first + 0.5, middle + 0.25, last + 1.0])
    assert float(returns[1, 2]) == 0.0, "padding must stay 0"


def test_with_lambda_one_and_no_values_the_advantage_is_the_return() -> None:
    rewards = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 0.0]])
    advantages, _ = gae(rewards, torch.zeros(2, 3), MASK, 1.0, 1.0)
    assert advantages.tolist() == [[7.0, 6.0, 4.0], [24.0, 16.0, 0.0]]


def test_group_relative_compares_within_a_prompt_only() -> None:
    rewards = torch.tensor([[1.0, 0.0], [3.0, 0.0], [100.0, 0.0], [50.0, 50.0]])
    mask = torch.tensor([[True, True], [True, False], [True, True], [True, True]])
    advantages, returns = group_relative(rewards, mask, torch.tensor([0, 0, 1, 2]))
    root = math.sqrt(0.5)
    assert returns is None
    assert advantages.tolist() == [
        pytest.approx([-root, -root], abs=1e-5),
        pytest.approx([root, 0.0], abs=1e-5),
        [0, 0],
        [0, 0],
    ]


@pytest.mark.parametrize("discount", [1.0, 0.9])
def test_leave_one_out_is_the_estimator_of_the_integrations(discount: float) -> None:
    rewards, mask = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 0.0]]), MASK
    advantages, returns = LeaveOneOut(discount)(rewards, torch.randn(2, 3), mask, torch.tensor([5, 5]))
    assert returns is None
    assert torch.equal(advantages, leave_one_out_advantages(rewards, mask, ["a", "a"], gamma=discount))
    assert len(set(advantages[0].tolist())) == 3, "each token has its own"


def test_whitened_advantages_have_mean_0_and_variance_1_over_real_tokens() -> None:
    values = torch.randn(2, 3) * 5 + 3
    white = whiten(values, MASK)
    assert float(white[MASK].mean()) == pytest.approx(0.0, abs=1e-5)
    assert float(white[MASK].var(correction=0)) == pytest.approx(1.0, abs=1e-4)
    assert float(white[1, 2]) == 0.0


def test_the_kl_penalty_is_subtracted_per_token() -> None:
    rewards, logprobs, reference = (
        torch.tensor([[1.0, 1.0]]),
        torch.tensor([[-1.0, -2.0]]),
        torch.tensor([[-2.0, -1.5]]),
    )
    mask = torch.tensor([[True, True]])
    assert kl_penalized_rewards(rewards, logprobs, reference, 0.1, mask).tolist() == [pytest.approx([0.9, 1.05])]


def test_the_surrogate_by_hand() -> None:
    ratio = torch.tensor([[1.5, 0.5, 1.1], [0.5, 1.5, 9.0]])
    advantages = torch.tensor([[1.0, 1.0, 1.0], [-1.0, -1.0, 1.0]])
    loss, clipped, kl = policy_loss(ratio.log(), torch.zeros(2, 3), advantages, MASK, 0.2)
    # clipped if the ratio is above 1.2 at A > 0, or below 0.8 at A < 0
    assert float(loss) == pytest.approx(-1.2 - 0.5 - 1.1 + 0.8 + 1.5)
    assert int(clipped) == 2
    expected = sum(r - 1 - math.log(r) for r in (1.5, 0.5, 1.1, 0.5, 1.5))
    assert float(kl) == pytest.approx(expected, abs=1e-5)


def test_an_unchanged_policy_has_ratio_1_and_kl_0() -> None:
    logprobs = torch.randn(2, 3)
    advantages = torch.randn(2, 3)
    loss, clipped, kl = policy_loss(logprobs, logprobs, advantages, MASK, 0.2)
    assert float(loss) == pytest.approx(-float(advantages[MASK].sum()), abs=1e-6)
    assert int(clipped) == 0
    assert float(kl) == 0.0


def test_the_value_loss_is_the_larger_of_clipped_and_plain() -> None:
    values, old, returns = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 2.0]])
    mask = torch.tensor([[True, True]])
    # first: plain error 0, clipped (0.2 - 1)^2; second: both (0 - 2)^2
    assert float(value_loss(values, old, returns, mask, 0.2)) == pytest.approx(0.5 * (0.64 + 4.0))


def test_explained_variance() -> None:
    returns = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 99.0]])
    assert explained_variance(returns, returns, MASK) == 1.0
    assert explained_variance(torch.zeros(2, 3), returns, MASK) == pytest.approx(0.0)
    assert explained_variance(returns, torch.ones(2, 3), MASK) == 0.0


@pytest.mark.parametrize(("kl", "direction"), [(12.0, 1), (6.0, 0), (1.0, -1)])
def test_the_kl_coefficient_adapts_towards_its_target(kl: float, direction: int) -> None:
    changed = adapted_kl_coefficient(0.1, kl, 6.0, 64, 1000)
    assert (changed > 0.1) - (changed < 0.1) == direction
    assert abs(changed / 0.1 - 1) <= 0.2 * 64 / 1000 + 1e-9


def test_a_line_is_fitted() -> None:
    line = fit_line([0.0, 1.0, 2.0], [1.0, 3.0, 5.0])
    assert line is not None
    assert line == pytest.approx((2.0, 1.0, 1.0))
    assert fit_line([1.0, 1.0], [0.0, 5.0]) is None
