"""Value functions on known returns, at the defaults; the policy is tiny and untrained, so its states know little."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from redline.ppo import FunctionRewards, PPOConfig, PPOLoop, Rollout
from redline.ppo.critic import ValueNetwork, features_width, value_features
from redline.ppo.update import make_optimizer
from tests.redline_ppo.tiny import tiny_policy

WORDS = ["router", "garden", "planet", "soup", "bicycle", "piano", "river", "castle"]
PROMPTS = [f"Why is my {word} {verb}?" for word in WORDS for verb in ("broken", "red", "slow", "small")]
GOOD = set(WORDS[::2])


def by_prompt(rollout: Rollout) -> float:
    """1 or -1, known before the first token."""
    return 1.0 if any(word in str(rollout.prompt) for word in GOOD) else -1.0


def by_position(rollout: Rollout) -> list[float]:
    """1 a token: the return is how many are left of those that fit (few responses end before)."""
    return [1.0] * len(rollout.response_ids)


def explained(reward: Callable[[Rollout], float | list[float]], scale: float, **options: str) -> float:
    """Explained variance after fewer than 50 updates at the default settings, as the mean of three steps."""

    def scaled(rollout: Rollout) -> float | list[float]:
        told = reward(rollout)
        return told * scale if isinstance(told, float) else [one * scale for one in told]

    config = PPOConfig(steps=12, sample_batch=64, cut_responses="keep", kl_coefficient=0.05 * scale)
    assert config.steps * config.epochs * config.rollouts // config.minibatch < 50
    torch.manual_seed(0)
    seen: list[float] = []
    loop = PPOLoop(
        tiny_policy(max_new_tokens=16, **options),
        FunctionRewards(scaled),
        PROMPTS,
        config,
        callbacks=[lambda metrics, rollouts, scores: seen.append(metrics["explained_variance"])],
    )
    loop.train()
    return sum(seen[-3:]) / 3


@pytest.mark.parametrize("scale", [1.0, 0.01, 100.0])
def test_within_50_updates_most_of_known_returns_is_explained(scale: float) -> None:
    assert explained(by_prompt, scale) > 0.5


def test_returns_that_the_position_tells_are_explained_too() -> None:
    assert explained(by_position, 1.0) > 0.5


def test_a_linear_head_at_the_policy_s_rate_explains_next_to_nothing() -> None:
    assert explained(by_prompt, 1.0, critic="linear") < 0.1


def test_the_network_does_not_move_the_policy_and_learns_at_its_own_rate() -> None:
    mine = tiny_policy()
    groups = make_optimizer(mine, PPOConfig()).param_groups
    assert [group["lr"] for group in groups] == [3e-6, 3e-3]
    assert {id(p) for p in groups[1]["params"]} == {id(p) for p in mine.value_head.parameters()}
    assert {id(p) for p in groups[0]["params"]} == {id(p) for p in mine.model.parameters()}
    values = mine.outputs(mine.sample(PROMPTS[:2], [0, 1])).values
    assert torch.equal(values, torch.zeros_like(values)), "it starts at 0"
    torch.autograd.backward(values.sum())
    assert all(parameter.grad is None for parameter in mine.model.parameters())
    assert mine.value_head.out.bias.grad is not None  # type: ignore[union-attr]


def test_a_linear_head_learns_with_the_policy() -> None:
    mine = tiny_policy(critic="linear")
    assert mine.value_parameters() == []
    groups = make_optimizer(mine, PPOConfig()).param_groups
    assert [group["lr"] for group in groups] == [3e-6]
    assert {id(p) for p in mine.value_head.parameters()} <= {id(p) for p in groups[0]["params"]}


def test_two_networks_are_equal_whatever_was_drawn_before() -> None:
    first = ValueNetwork(12, torch.device("cpu"))
    torch.rand(5)
    second = ValueNetwork(12, torch.device("cpu"))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("width", [100, 6000])
def test_wide_features_do_not_saturate_the_network(width: int) -> None:
    """Features of pretrained models have much in common; what differs must still be seen after some steps."""
    torch.manual_seed(0)
    hidden = torch.randn(512, 4)
    features = torch.randn(1, width) + 0.3 * hidden @ torch.randn(4, width)
    target = 3.0 + hidden[:, :1]
    network = ValueNetwork(width, torch.device("cpu"))
    optimizer = torch.optim.AdamW(network.parameters(), lr=PPOConfig().critic_learning_rate, betas=(0.9, 0.95))
    for _ in range(50):
        optimizer.zero_grad()
        torch.autograd.backward((network(features) - target).square().mean())
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    with torch.no_grad():
        assert (network(features) - target).var() < 0.5 * target.var()


def test_features_by_hand() -> None:
    """A padded row of two real tokens: unit vectors, their running means, and the time."""
    embeddings = torch.tensor([[[9.0, 9.0], [2.0, 0.0], [0.0, 3.0]]])
    states = torch.tensor([[[7.0], [-4.0], [5.0]]])
    mask = torch.tensor([[0, 1, 1]])
    told = value_features(embeddings, states, mask, torch.tensor([[1, 2]]), longest=4)
    root = math.sqrt(2)
    assert told.shape == (1, 2, features_width(2, 1))
    # state there; mean of embeddings (root mean square 1); mean of states; t / 4 and log(1 + t) / log 5
    assert told[0, 0].tolist() == pytest.approx([-1.0, root, 0.0, -1.0, 0.0, 0.0], abs=1e-5)
    assert told[0, 1].tolist() == pytest.approx([1.0, 1.0, 1.0, 0.0, 0.25, math.log(2) / math.log(5)], abs=1e-3)


def test_values_are_in_units_of_the_first_returns_that_vary() -> None:
    given = {"reward": 0.0}
    settings = {"rollouts": 8, "kl_coefficient": 0.0, "cut_responses": "keep"}
    loop = PPOLoop(
        tiny_policy(), FunctionRewards(lambda r: given["reward"] * by_prompt(r)), PROMPTS, PPOConfig(**settings)
    )
    loop.step()
    assert loop.value_scale is None
    given["reward"] = 100.0
    loop.step()
    assert loop.value_scale is not None
    assert 50 < loop.value_scale <= 100  # rewards of 100 and -100, a few more of one kind than of the other
    loop.step()
    assert loop.value_scale == loop.state()["value_scale"]
