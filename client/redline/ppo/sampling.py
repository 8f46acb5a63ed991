"""Samples the responses of a step. Each batch is scored while the next one is sampled."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from concurrent.futures import Future

import torch
from torch import Tensor

from redline.errors import ProtocolError
from redline.http.daemon_pool import DaemonThreadPool
from redline.ppo.config import PPOConfig
from redline.ppo.protocols import Policy, Prompt, RewardSource, Rollout, Scores


def step_prompts(prompts: Sequence[Prompt], config: PPOConfig, step: int) -> list[Prompt]:
    """The prompts of a step, each ``samples_per_prompt`` times. They depend on the seed and the step only."""
    count = max(1, config.rollouts // config.samples_per_prompt)
    chosen: list[Prompt] = []
    while len(chosen) < count:
        epoch, offset = divmod(step * count + len(chosen), len(prompts))
        order = list(range(len(prompts)))
        random.Random(f"{config.seed}/{epoch}").shuffle(order)
        chosen += [prompts[i] for i in order[offset : offset + count - len(chosen)]]
    return [prompt for prompt in chosen for _ in range(config.samples_per_prompt)]


def roll_out(
    policy: Policy, rewards: RewardSource, prompts: Sequence[Prompt], config: PPOConfig
) -> tuple[list[Rollout], Scores, float]:
    """Sample and score responses. Returns ``(rollouts, scores, seconds of scoring)``.

    Raises:
        RedlineError: the reward source failed, or returned a wrong number of scores.
    """
    rollouts: list[Rollout] = []
    pending: list[Future[tuple[Scores, float]]] = []

    def score(part: list[Rollout]) -> tuple[Scores, float]:
        started = time.perf_counter()
        scores = rewards.score(part)
        if len(scores.items) != len(part):
            raise ProtocolError(f"the reward source returned {len(scores.items)} scores for {len(part)} rollouts")
        return scores, time.perf_counter() - started

    with DaemonThreadPool(1) as scorer:
        for start in range(0, len(prompts), config.sample_batch):
            part = prompts[start : start + config.sample_batch]
            groups = [(start + n) // config.samples_per_prompt for n in range(len(part))]
            sampled = policy.sample(part, groups)
            rollouts += sampled
            pending.append(scorer.submit(score, sampled))
        results = [future.result() for future in pending]
    digests = tuple(digest for digests in dict.fromkeys(scores.digests for scores, _ in results) for digest in digests)
    items = [item for scores, _ in results for item in scores.items]
    return rollouts, Scores(items, digests), sum(seconds for _, seconds in results)


def token_mask(rollouts: Sequence[Rollout], device: torch.device) -> Tensor:
    """``(B, T)``, True on every response token, including the end token."""
    lengths = torch.tensor([len(rollout.response_ids) for rollout in rollouts], device=device)
    return torch.arange(int(lengths.max()), device=device) < lengths.unsqueeze(1)


def padded_rewards(scores: Scores, mask: Tensor) -> Tensor:
    """Token rewards as ``(B, T)``, 0 in padding. Raises ProtocolError if a rollout has not one reward per token."""
    rewards = torch.zeros(mask.shape, device=mask.device)
    for row, (item, length) in enumerate(zip(scores.items, mask.sum(1).tolist(), strict=True)):
        if len(item.rewards) != length:
            raise ProtocolError(f"rollout {row} has {length} tokens and {len(item.rewards)} rewards")
        rewards[row, :length] = torch.tensor(item.rewards)
    return rewards
