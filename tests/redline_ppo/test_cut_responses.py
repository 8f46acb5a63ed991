"""Responses that are cut at the token limit, reward scales, and group-relative advantages."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from redline.files.metrics_log import MetricsLog
from redline.ppo import FunctionRewards, PPOConfig, PPOLoop, Rollout
from redline.ppo.advantages import cut_penalties, group_relative, reward_scale
from redline.ppo.protocols import Advantages
from redline.ppo.report import write_report
from tests.redline_ppo.tiny import PROMPTS, tiny_policy

MASK = torch.tensor([[True, True, True], [True, True, False], [True, False, False]])


class RecordingEstimator:
    """An advantage estimator that stores its inputs."""

    def __init__(self, returns: bool = True) -> None:
        self._returns = returns

    def __call__(
        self, rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, groups: torch.Tensor
    ) -> Advantages:
        self.rewards, self.mask = rewards, mask
        return Advantages(rewards, rewards if self._returns else None)


def build_loop(estimator: Any = None, **settings: Any) -> PPOLoop:
    """Every second response ends after two tokens. The others are cut after three. Each has reward 2 at its end."""
    policy = tiny_policy(max_new_tokens=3)
    policy._generate = lambda rows: [[5, 6, 7] if n % 2 else [5, 0, 0] for n in range(len(rows))]  # type: ignore[method-assign]
    defaults = {"rollouts": 4, "kl_coefficient": 0.0, "learning_rate": 1e-3}
    return PPOLoop(
        policy, FunctionRewards(lambda r: 2.0), PROMPTS, PPOConfig(**(defaults | settings)), estimator=estimator
    )


def test_the_penalty_is_on_the_last_token_of_a_cut_response() -> None:
    penalties = cut_penalties(torch.tensor([True, False, True]), MASK, 0.5)
    assert penalties.tolist() == [[0.0, 0.0, -0.5], [0.0, 0.0, 0.0], [-0.5, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("settings", "cut"),
    [({}, 1.0), ({"cut_penalty": 0.25}, 1.75), ({"cut_responses": "keep"}, 2.0), ({"cut_responses": "mask"}, 0.0)],
)
def test_the_reward_of_a_cut_response_depends_on_the_settings(settings: dict[str, Any], cut: float) -> None:
    estimator = RecordingEstimator()
    metrics = build_loop(estimator, **settings).step()
    assert estimator.rewards.tolist() == [[0.0, 2.0, 0.0], [0.0, 0.0, cut]] * 2
    is_left_out = settings.get("cut_responses") == "mask"
    assert estimator.mask[:, 2].tolist() == [False, not is_left_out] * 2
    assert metrics["truncated_share"] == 0.5
    assert metrics["score"] == 2.0, "the reported score has no penalty"


@pytest.mark.parametrize("advantage", ["gae", "group"])
def test_a_step_with_only_masked_cut_responses_changes_no_weight(advantage: str) -> None:
    policy = tiny_policy(max_new_tokens=3)
    policy._generate = lambda rows: [[5, 6, 7]] * len(rows)  # type: ignore[method-assign]
    before = policy.state()["weights"]
    settings = {"rollouts": 4, "samples_per_prompt": 2, "cut_responses": "mask", "advantage": advantage}
    metrics = PPOLoop(policy, FunctionRewards(lambda r: 2.0), PROMPTS, PPOConfig(**settings)).step()
    assert all(math.isfinite(value) for value in metrics.values())
    assert all(torch.equal(before[name], weight) for name, weight in policy.state()["weights"].items())


def test_rewards_of_masked_responses_change_no_weight() -> None:
    """The same step with other rewards for cut responses."""

    def trained_weights(cut_reward: float) -> dict[str, torch.Tensor]:
        loop = build_loop(cut_responses="mask", samples_per_prompt=4, advantage="group")
        ends = iter(range(1000))
        loop.rewards = FunctionRewards(lambda r: float(next(ends)) if r.is_finished else cut_reward)
        loop.step()
        weights: dict[str, torch.Tensor] = loop.policy.state()["weights"]
        return weights

    first, second = trained_weights(0.0), trained_weights(50.0)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_rewards_are_not_scaled_by_default() -> None:
    estimator = RecordingEstimator()
    metrics = build_loop(estimator, cut_responses="keep").step()
    assert metrics["reward_scale"] == 1.0
    assert float(estimator.rewards.max()) == 2.0


@pytest.mark.parametrize(
    ("totals", "expected"),
    [([1.0, 3.0], 1.0), ([0.0, 1.0], 2.0), ([0.0, 0.002], 10.0), ([0.0, 2000.0], 0.1), ([5.0, 5.0], 1.0)],
)
def test_an_automatic_scale_is_bounded(totals: list[float], expected: float) -> None:
    assert reward_scale(totals, 10.0) == pytest.approx(expected)


def test_scale_and_cut_share_are_logged_and_reported(tmp_path: Path) -> None:
    def rewarded(rollout: Rollout) -> float:
        return 0.001 * rollout.is_finished

    log = MetricsLog(tmp_path)
    loop = build_loop(reward_scale="auto", cut_penalty=0.0, steps=2)
    loop.rewards = FunctionRewards(rewarded)
    loop.callbacks.append(lambda metrics, rollouts, scores: log.write(metrics))
    loop.train()
    log.close()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["reward_scale"] for row in rows] == [10.0, 10.0], "the scale of small rewards is limited"
    summary = write_report(tmp_path)
    assert summary["reward_scale"] == 10.0
    assert summary["truncated_share"] == summary["last_truncated_share"] == 0.5


def test_group_advantages_are_not_whitened_over_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups of two with totals a < b: -1/sqrt 2 and 1/sqrt 2 on every token, however long the responses are."""
    from redline.ppo import loop as module

    learned: list[torch.Tensor] = []
    real = module.update

    def recording_update(
        policy: Any, optimizer: Any, rollouts: Any, learning: Any, config: Any, seed: str
    ) -> dict[str, float]:
        learned.append(learning.advantages)
        return real(policy, optimizer, rollouts, learning, config, seed)

    monkeypatch.setattr(module, "update", recording_update)
    loop = build_loop(samples_per_prompt=2, advantage="group", cut_responses="keep")
    loop.rewards = FunctionRewards(lambda rollout: 3.0 if rollout.is_finished else -1.0)
    loop.step()
    root = math.sqrt(0.5)
    for row in range(0, 4, 2):
        assert learned[0][row].tolist() == pytest.approx([root, root, 0.0], abs=1e-5)
        assert learned[0][row + 1].tolist() == pytest.approx([-root] * 3, abs=1e-5)


def test_a_masked_response_is_not_a_member_of_its_group() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 100.0]])
    mask = torch.tensor([[True, False, False], [True, True, False], [False, False, False]])
    root = math.sqrt(0.5)
    advantages, _ = group_relative(rewards, mask, torch.tensor([0, 0, 0]))
    assert advantages[0].tolist() == pytest.approx([-root, 0.0, 0.0], abs=1e-5)
    assert advantages[1].tolist() == pytest.approx([root, root, 0.0], abs=1e-5)
    assert advantages[2].tolist() == [0.0, 0.0, 0.0]
