"""Responses that are cut at the token limit, reward scales, and group-relative advantages as the formulas say."""

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


class Watching:
    """An estimator that keeps what it is given."""

    def __init__(self, returns: bool = True) -> None:
        self._returns = returns

    def __call__(
        self, rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, groups: torch.Tensor
    ) -> Advantages:
        self.rewards, self.mask = rewards, mask
        return Advantages(rewards, rewards if self._returns else None)


def loop_of(estimator: Any = None, **settings: Any) -> PPOLoop:
    """Every second response ends after two tokens, the others are cut after three; each earns 2 at its end."""
    mine = tiny_policy(max_new_tokens=3)
    mine._generate = lambda rows: [[5, 6, 7] if n % 2 else [5, 0, 0] for n in range(len(rows))]  # type: ignore[method-assign]
    given = {"rollouts": 4, "kl_coefficient": 0.0, "learning_rate": 1e-3}
    return PPOLoop(mine, FunctionRewards(lambda r: 2.0), PROMPTS, PPOConfig(**(given | settings)), estimator=estimator)


def test_the_penalty_is_on_the_last_token_of_what_is_cut() -> None:
    told = cut_penalties(torch.tensor([True, False, True]), MASK, 0.5)
    assert told.tolist() == [[0.0, 0.0, -0.5], [0.0, 0.0, 0.0], [-0.5, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("settings", "cut"),
    [({}, 1.0), ({"cut_penalty": 0.25}, 1.75), ({"cut_responses": "keep"}, 2.0), ({"cut_responses": "mask"}, 0.0)],
)
def test_what_a_cut_response_is_worth(settings: dict[str, Any], cut: float) -> None:
    watching = Watching()
    metrics = loop_of(watching, **settings).step()
    assert watching.rewards.tolist() == [[0.0, 2.0, 0.0], [0.0, 0.0, cut]] * 2
    is_left_out = settings.get("cut_responses") == "mask"
    assert watching.mask[:, 2].tolist() == [False, not is_left_out] * 2
    assert metrics["truncated_share"] == 0.5
    assert metrics["score"] == 2.0, "the scorer's own number is told as it is"


@pytest.mark.parametrize("advantage", ["gae", "group"])
def test_a_step_of_cut_responses_alone_teaches_nothing_if_they_are_left_out(advantage: str) -> None:
    mine = tiny_policy(max_new_tokens=3)
    mine._generate = lambda rows: [[5, 6, 7]] * len(rows)  # type: ignore[method-assign]
    before = mine.state()["weights"]
    settings = {"rollouts": 4, "samples_per_prompt": 2, "cut_responses": "mask", "advantage": advantage}
    metrics = PPOLoop(mine, FunctionRewards(lambda r: 2.0), PROMPTS, PPOConfig(**settings)).step()
    assert all(math.isfinite(value) for value in metrics.values())
    assert all(torch.equal(before[name], weight) for name, weight in mine.state()["weights"].items())


def test_what_is_left_out_moves_nothing() -> None:
    """The same step, with other rewards for what is cut."""

    def weights(other: float) -> dict[str, torch.Tensor]:
        loop = loop_of(cut_responses="mask", samples_per_prompt=4, advantage="group")
        ends = iter(range(1000))
        loop.rewards = FunctionRewards(lambda r: float(next(ends)) if r.is_finished else other)
        loop.step()
        told: dict[str, torch.Tensor] = loop.policy.state()["weights"]
        return told

    first, second = weights(0.0), weights(50.0)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_rewards_are_taken_as_they_are() -> None:
    watching = Watching()
    metrics = loop_of(watching, cut_responses="keep").step()
    assert metrics["reward_scale"] == 1.0
    assert float(watching.rewards.max()) == 2.0


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
    loop = loop_of(reward_scale="auto", cut_penalty=0.0, steps=2)
    loop.rewards = FunctionRewards(rewarded)
    loop.callbacks.append(lambda metrics, rollouts, scores: log.write(metrics))
    loop.train()
    log.close()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["reward_scale"] for row in rows] == [10.0, 10.0], "quiet rewards are not made loud"
    summary = write_report(tmp_path)
    assert summary["reward_scale"] == 10.0
    assert summary["truncated_share"] == summary["last_truncated_share"] == 0.5


def test_group_advantages_are_not_whitened_over_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups of two with totals a < b: -1/sqrt 2 and 1/sqrt 2 on every token, however long the responses are."""
    from redline.ppo import loop as module

    learned: list[torch.Tensor] = []
    real = module.update

    def watch(policy: Any, optimizer: Any, rollouts: Any, learning: Any, config: Any, seed: str) -> dict[str, float]:
        learned.append(learning.advantages)
        return real(policy, optimizer, rollouts, learning, config, seed)

    monkeypatch.setattr(module, "update", watch)
    loop = loop_of(samples_per_prompt=2, advantage="group", cut_responses="keep")
    loop.rewards = FunctionRewards(lambda rollout: 3.0 if rollout.is_finished else -1.0)
    loop.step()
    root = math.sqrt(0.5)
    for row in range(0, 4, 2):
        assert learned[0][row].tolist() == pytest.approx([root, root, 0.0], abs=1e-5)
        assert learned[0][row + 1].tolist() == pytest.approx([-root] * 3, abs=1e-5)


def test_a_response_that_is_left_out_is_no_member_of_its_group() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 100.0]])
    mask = torch.tensor([[True, False, False], [True, True, False], [False, False, False]])
    root = math.sqrt(0.5)
    advantages, _ = group_relative(rewards, mask, torch.tensor([0, 0, 0]))
    assert advantages[0].tolist() == pytest.approx([-root, 0.0, 0.0], abs=1e-5)
    assert advantages[1].tolist() == pytest.approx([root, root, 0.0], abs=1e-5)
    assert advantages[2].tolist() == [0.0, 0.0, 0.0]
