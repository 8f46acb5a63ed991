"""The PPO loop (arXiv 1707.06347, 2204.05862) with token rewards. ``step`` reads from top to bottom."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from redline.background import DaemonPool
from redline.errors import ModelChangedError, ProtocolError
from redline.ppo.advantages import GAE, GroupRelative, penalized_rewards, whiten
from redline.ppo.checkpoint import read_checkpoint, save_checkpoint
from redline.ppo.config import PPOConfig
from redline.ppo.losses import adapted_kl_coefficient, explained_variance, policy_loss, value_loss
from redline.ppo.protocols import (
    AdvantageEstimator,
    Callback,
    Policy,
    Prompt,
    RewardSource,
    Rollout,
    Scores,
    TokenOutputs,
)


class PPOLoop:
    """Drives ``policy`` against ``rewards``.

    Args:
        prompts: drawn in an order that the seed decides, each once before any comes again.
        estimator: None takes the one that ``config.advantage`` names.
        callbacks: called after every step with its metrics, rollouts and scores.
        identity: whatever else must be the same for a checkpoint to be resumed (the policy's source, say).
    """

    def __init__(
        self,
        policy: Policy,
        rewards: RewardSource,
        prompts: Sequence[Prompt],
        config: PPOConfig,
        *,
        estimator: AdvantageEstimator | None = None,
        callbacks: Sequence[Callback] = (),
        identity: Mapping[str, object] | None = None,
    ) -> None:
        self.policy = policy
        self.rewards = rewards
        self.prompts = list(prompts)
        self.config = config
        self.callbacks = list(callbacks)
        self.identity: dict[str, object] = {**config.identity(), **(identity or {})}
        self.steps_done = 0
        self.kl_coefficient = config.kl_coefficient
        self.reward_scale: float | None = None if config.reward_scale == "auto" else 1.0
        self.digest: str | None = None
        self._estimator: AdvantageEstimator = estimator or (
            GAE(config.discount, config.gae_lambda) if config.advantage == "gae" else GroupRelative()
        )
        self._optimizer = torch.optim.AdamW(
            policy.parameters(), lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=0.0
        )
        torch.manual_seed(config.seed)

    def train(self, checkpoint: Path | None = None, checkpoint_every: int = 10) -> None:
        """All steps that are left. With ``checkpoint``, an interrupted run goes on where that file says.

        Raises:
            RedlineError: the reward source gave up, or the checkpoint is of another run.
        """
        if checkpoint is not None and not self.steps_done:
            self.resume(checkpoint)
        while self.steps_done < self.config.steps:
            self.step()
            is_last = self.steps_done == self.config.steps
            if checkpoint is not None and (is_last or self.steps_done % checkpoint_every == 0):
                save_checkpoint(checkpoint, self.state())

    def resume(self, checkpoint: Path) -> None:
        """Go on where ``checkpoint`` says, if it exists. Raises CommandError where it is of another run."""
        if checkpoint.exists():
            self.load_state(read_checkpoint(checkpoint, self.identity))

    def step(self) -> dict[str, float]:
        """One round of sampling, scoring and learning; returns its metrics."""
        config = self.config
        clock = time.perf_counter()

        # 1. responses to the next prompts; every batch is scored while the next is sampled
        rollouts, scores, scoring_s = self._roll_out()
        is_model_new = self._notice_model(scores.digest)
        rollout_s = time.perf_counter() - clock

        # 2. what policy, value function and reference say of them before anything changes
        mask = token_mask(rollouts, self.policy.device)
        with torch.no_grad():
            old = self._old_outputs(rollouts, mask)
            reference = self._padded([self.policy.reference_logprobs(part) for part in self._parts(rollouts)], mask)

        # 3. token rewards on one scale, less the price of leaving the reference
        raw = padded_rewards(scores, mask)
        if self.reward_scale is None:
            self.reward_scale = scale_of([math.fsum(item.rewards) for item in scores.items])
        rewards = penalized_rewards(raw * self.reward_scale, old.logprobs, reference, self.kl_coefficient, mask)

        # 4. advantages
        groups = torch.tensor([rollout.group for rollout in rollouts], device=mask.device)
        advantages, returns = self._estimator(rewards, old.values, mask, groups)
        if config.whiten:
            advantages = whiten(advantages, mask)

        # 5. several epochs of clipped updates
        clock = time.perf_counter()
        update = self._update(rollouts, mask, old, advantages, returns)
        update_s = time.perf_counter() - clock

        # 6. the price itself
        kl = float(((old.logprobs - reference) * mask).sum(1).mean())
        used_coefficient = self.kl_coefficient
        if config.kl_target is not None:
            self.kl_coefficient = adapted_kl_coefficient(
                self.kl_coefficient, kl, config.kl_target, len(rollouts), config.kl_horizon
            )

        # 7. the books
        self.steps_done += 1
        tokens = mask.sum()
        metrics = {
            "step": float(self.steps_done),
            "score": sum(item.score for item in scores.items) / len(scores.items),
            "token_reward": float(raw.sum() / tokens),
            "kl": kl,
            "kl_coefficient": used_coefficient,
            "entropy": float((old.entropy * mask).sum() / tokens),
            "response_tokens": float(tokens / len(rollouts)),
            "truncated_share": sum(not r.is_finished for r in rollouts) / len(rollouts),
            "explained_variance": 0.0 if returns is None else explained_variance(old.values, returns, mask),
            **update,
            "model_changed": float(is_model_new),
            "seconds_rollout": rollout_s,
            "seconds_scoring": scoring_s,
            "seconds_update": update_s,
        }
        for callback in self.callbacks:
            callback(metrics, rollouts, scores)
        return metrics

    def step_prompts(self, step: int) -> list[Prompt]:
        """The prompts of a step, each ``samples_per_prompt`` times; a function of seed and step alone."""
        count = max(1, self.config.rollouts // self.config.samples_per_prompt)
        chosen: list[Prompt] = []
        while len(chosen) < count:
            epoch, offset = divmod(step * count + len(chosen), len(self.prompts))
            order = list(range(len(self.prompts)))
            random.Random(f"{self.config.seed}/{epoch}").shuffle(order)
            chosen += [self.prompts[i] for i in order[offset : offset + count - len(chosen)]]
        return [prompt for prompt in chosen for _ in range(self.config.samples_per_prompt)]

    def _roll_out(self) -> tuple[list[Rollout], Scores, float]:
        prompts = self.step_prompts(self.steps_done)
        rollouts: list[Rollout] = []
        pending: list[Future[tuple[Scores, float]]] = []

        def score(part: list[Rollout]) -> tuple[Scores, float]:
            started = time.perf_counter()
            scores = self.rewards.score(part)
            if len(scores.items) != len(part):
                raise ProtocolError(f"the reward source gave {len(scores.items)} scores for {len(part)} rollouts")
            return scores, time.perf_counter() - started

        with DaemonPool(1) as scorer:
            for start in range(0, len(prompts), self.config.sample_batch):
                part = prompts[start : start + self.config.sample_batch]
                groups = [(start + n) // self.config.samples_per_prompt for n in range(len(part))]
                sampled = self.policy.sample(part, groups)
                rollouts += sampled
                pending.append(scorer.submit(score, sampled))
            answers = [future.result() for future in pending]
        digests = dict.fromkeys(scores.digest for scores, _ in answers if scores.digest is not None)
        items = [item for scores, _ in answers for item in scores.items]
        return rollouts, Scores(items, "+".join(digests) or None), sum(seconds for _, seconds in answers)

    def _notice_model(self, digest: str | None) -> bool:
        """Whether other weights than before have answered; a step in mid-swap names both, the later one last."""
        answered = digest.split("+") if digest is not None else []
        before = self.digest
        is_new = before is not None and any(one != before for one in answered)
        self.digest = answered[-1] if answered else before
        if is_new and self.config.on_model_change == "stop":
            raise ModelChangedError(
                f"the reward model changed at step {self.steps_done + 1}: {before} -> {self.digest}"
            )
        return is_new

    def _parts(self, rollouts: Sequence[Rollout]) -> list[Sequence[Rollout]]:
        size = self.config.microbatch or self.config.minibatch
        return [rollouts[n : n + size] for n in range(0, len(rollouts), size)]

    def _padded(self, parts: Sequence[Tensor], mask: Tensor) -> Tensor:
        rows = [torch.nn.functional.pad(part, (0, mask.shape[1] - part.shape[1])) for part in parts]
        return torch.cat(rows) * mask

    def _old_outputs(self, rollouts: Sequence[Rollout], mask: Tensor) -> TokenOutputs:
        parts = [self.policy.outputs(part) for part in self._parts(rollouts)]
        return TokenOutputs(*(self._padded(fields, mask) for fields in zip(*parts, strict=True)))

    def _update(
        self,
        rollouts: Sequence[Rollout],
        mask: Tensor,
        old: TokenOutputs,
        advantages: Tensor,
        returns: Tensor | None,
    ) -> dict[str, float]:
        config = self.config
        sums = dict.fromkeys(("policy_loss", "value_loss", "clip_fraction", "update_kl", "grad_norm"), 0.0)
        updates = 0
        for epoch in range(config.epochs):
            order = list(range(len(rollouts)))
            random.Random(f"{config.seed}/{self.steps_done}/{epoch}").shuffle(order)
            for start in range(0, len(order), config.minibatch):
                chosen = order[start : start + config.minibatch]
                tokens = mask[chosen].sum()
                size = config.microbatch or len(chosen)
                for first in range(0, len(chosen), size):
                    rows = chosen[first : first + size]
                    now = self.policy.outputs([rollouts[i] for i in rows])
                    width = now.logprobs.shape[1]
                    real = mask[rows, :width]
                    surrogate = policy_loss(
                        now.logprobs, old.logprobs[rows, :width], advantages[rows, :width], real, config.clip
                    )
                    loss = surrogate.loss - config.entropy_coefficient * (now.entropy * real).sum()
                    if returns is not None:
                        error = value_loss(
                            now.values,
                            old.values[rows, :width],
                            returns[rows, :width],
                            real,
                            config.value_clip,
                        )
                        loss = loss + config.value_coefficient * error
                        sums["value_loss"] += float(error.detach() / tokens)
                    torch.autograd.backward(loss / tokens)
                    sums["policy_loss"] += float(surrogate.loss.detach() / tokens)
                    sums["clip_fraction"] += float(surrogate.clipped / tokens)
                    sums["update_kl"] += float(surrogate.kl / tokens)
                norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), config.max_grad_norm)
                sums["grad_norm"] += float(norm)
                self._optimizer.step()
                self._optimizer.zero_grad(set_to_none=True)
                updates += 1
        return {name: value / updates for name, value in sums.items()}

    def state(self) -> dict[str, Any]:
        """All that the next step depends on."""
        return {
            "identity": self.identity,
            "steps_done": self.steps_done,
            "kl_coefficient": self.kl_coefficient,
            "reward_scale": self.reward_scale,
            "digest": self.digest,
            "policy": self.policy.state(),
            "optimizer": self._optimizer.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go back to ``state``."""
        self.steps_done = state["steps_done"]
        self.kl_coefficient = state["kl_coefficient"]
        self.reward_scale = state["reward_scale"]
        self.digest = state["digest"]
        self.policy.load_state(state["policy"])
        self._optimizer.load_state_dict(state["optimizer"])


def token_mask(rollouts: Sequence[Rollout], device: torch.device) -> Tensor:
    """``(B, T)``, True on every response token, the end token included."""
    lengths = torch.tensor([len(rollout.response_ids) for rollout in rollouts], device=device)
    return torch.arange(int(lengths.max()), device=device) < lengths.unsqueeze(1)


def padded_rewards(scores: Scores, mask: Tensor) -> Tensor:
    """Token rewards as ``(B, T)``, 0 in padding. Raises ProtocolError where their number is not the tokens'."""
    rewards = torch.zeros(mask.shape, device=mask.device)
    for row, (item, length) in enumerate(zip(scores.items, mask.sum(1).tolist(), strict=True)):
        if len(item.rewards) != length:
            raise ProtocolError(f"rollout {row} has {length} tokens and {len(item.rewards)} rewards")
        rewards[row, :length] = torch.tensor(item.rewards)
    return rewards


def scale_of(scores: Sequence[float]) -> float:
    """``1 / std`` of the responses' summed rewards; 1 where they do not vary."""
    mean = sum(scores) / len(scores)
    std = math.sqrt(sum((s - mean) ** 2 for s in scores) / len(scores))
    return 1.0 / std if std > 1e-6 else 1.0
