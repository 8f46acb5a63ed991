"""Value functions on known returns with default settings. The policy is tiny and untrained."""

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
    """1 or -1, depending on the prompt."""
    return 1.0 if any(word in str(rollout.prompt) for word in GOOD) else -1.0


def by_position(rollout: Rollout) -> list[float]:
    """1.0 per token. The return is the number of remaining tokens up to the limit, which few responses do not reach."""
    return [1.0] * len(rollout.response_ids)


def explained(reward: Callable[[Rollout], float | list[float]], scale: float, **options: str) -> float:
    """Explained variance after fewer than 50 updates at the default settings, as the mean of three steps."""

    def scaled(rollout: Rollout) -> float | list[float]:
        rewards = reward(rollout)
        return rewards * scale if isinstance(rewards, float) else [reward * scale for reward in rewards]

    config = PPOConfig(steps=12, sample_batch=64, cut_responses="keep", kl_coefficient=0.05 * scale, discount=1.0)
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
def test_most_variance_of_known_returns_is_explained_within_50_updates(scale: float) -> None:
    assert explained(by_prompt, scale) > 0.5


def test_returns_that_depend_on_the_position_are_explained() -> None:
    assert explained(by_position, 1.0) > 0.5


def test_a_linear_head_at_the_policy_s_learning_rate_explains_little() -> None:
    assert explained(by_prompt, 1.0, critic="linear") < 0.1


def test_the_network_has_no_gradient_to_the_policy_and_its_own_learning_rate() -> None:
    policy = tiny_policy()
    groups = make_optimizer(policy, PPOConfig()).param_groups
    assert [group["lr"] for group in groups] == [3e-6, 3e-3]
    assert {id(p) for p in groups[1]["params"]} == {id(p) for p in policy.value_head.parameters()}
    assert {id(p) for p in groups[0]["params"]} == {id(p) for p in policy.model.parameters()}
    values = policy.outputs(policy.sample(PROMPTS[:2], [0, 1])).values
    assert torch.equal(values, torch.zeros_like(values)), "it starts at 0"
    torch.autograd.backward(values.sum())
    assert all(parameter.grad is None for parameter in policy.model.parameters())
    assert policy.value_head.out.bias.grad is not None  # type: ignore[union-attr]


def test_a_linear_head_is_in_the_optimizer_group_of_the_policy() -> None:
    policy = tiny_policy(critic="linear")
    assert policy.value_parameters() == []
    groups = make_optimizer(policy, PPOConfig()).param_groups
    assert [group["lr"] for group in groups] == [3e-6]
    assert {id(p) for p in policy.value_head.parameters()} <= {id(p) for p in groups[0]["params"]}


def test_initial_weights_do_not_depend_on_the_random_generator() -> None:
    first = ValueNetwork(12, torch.device("cpu"))
    torch.rand(5)
    second = ValueNetwork(12, torch.device("cpu"))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("width", [100, 6000])
def test_wide_features_do_not_saturate_the_network(width: int) -> None:
    """Features of pretrained models differ little between tokens. The network must learn from the differences."""
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
    """A padded row of two real tokens: unit vectors, their running means, and the position."""
    embeddings = torch.tensor([[[9.0, 9.0], [2.0, 0.0], [0.0, 3.0]]])
    states = torch.tensor([[[7.0], [-4.0], [5.0]]])
    mask = torch.tensor([[0, 1, 1]])
    features = value_features(embeddings, states, mask, torch.tensor([[1, 2]]), longest=4)
    root = math.sqrt(2)
    assert features.shape == (1, 2, features_width(2, 1))
    # last state; mean of embeddings (root mean square 1); mean of states; t / 4 and log(1 + t) / log 5
    assert features[0, 0].tolist() == pytest.approx([-1.0, root, 0.0, -1.0, 0.0, 0.0], abs=1e-5)
    assert features[0, 1].tolist() == pytest.approx([1.0, 1.0, 1.0, 0.0, 0.25, math.log(2) / math.log(5)], abs=1e-3)


def test_values_are_in_units_of_the_first_returns_that_vary() -> None:
    reward = {"scale": 0.0}
    settings = {"rollouts": 8, "kl_coefficient": 0.0, "cut_responses": "keep"}
    loop = PPOLoop(
        tiny_policy(), FunctionRewards(lambda r: reward["scale"] * by_prompt(r)), PROMPTS, PPOConfig(**settings)
    )
    loop.step()
    assert loop.value_scale is None
    reward["scale"] = 100.0
    loop.step()
    assert loop.value_scale is not None
    assert 50 < loop.value_scale <= 100  # rewards of 100 and -100, a few more of one kind than of the other
    loop.step()
    assert loop.value_scale == loop.state()["value_scale"]
