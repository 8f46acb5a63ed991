"""The PPO loop (arXiv 1707.06347, 2204.05862) with token rewards. Start reading at ``PPOLoop.step``."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from redline.errors import ModelChangedError, StepRefusedError
from redline.ppo.advantages import (
    cut_penalties,
    default_discount,
    kl_penalized_rewards,
    make_estimator,
    reward_scale,
    whiten,
)
from redline.ppo.checkpoint import copied_to_cpu, restore_checkpoint, save_checkpoint
from redline.ppo.config import PPOConfig
from redline.ppo.losses import adapted_kl_coefficient, explained_variance
from redline.ppo.non_finite import NonFiniteError, StepRecord, check_scores, write_step
from redline.ppo.protocols import (
    AdvantageEstimator,
    Callback,
    Policy,
    Prompt,
    RewardSource,
    Rollout,
    TokenOutputs,
)
from redline.ppo.sampling import padded_rewards, roll_out, step_prompts, token_mask
from redline.ppo.update import UpdateInputs, make_optimizer, update
from redline.token_advantages import rewards_to_go


class PPOLoop:
    """Trains ``policy`` with PPO on the rewards of ``rewards``.

    Args:
        prompts: used in an order that depends on the seed. Each is used once before any is used again.
        config: its seed also seeds torch's global generator here, so that sampling can be repeated.
        estimator: None for the one that ``config.advantage`` names.
        callbacks: called after every step with its metrics, rollouts and scores.
        identity: other values that must be equal to resume a checkpoint, such as the policy's source.
        refused: folder for the batch of a step that is undone because a number is not finite. If None, it is the folder
            ``refused`` next to the checkpoint file; without a checkpoint the batch is not written.
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
        refused: Path | None = None,
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
        self.discount: float | None = config.discount
        self.value_scale: float | None = None if config.value_scale == "auto" else 1.0
        self.refused = refused
        self.digest: str | None = None
        self._estimator = estimator
        self._optimizer = make_optimizer(policy, config)
        torch.manual_seed(config.seed)

    def train(self, checkpoint: Path | None = None, checkpoint_every: int = 10) -> None:
        """Run the remaining steps. With ``checkpoint``, resume an interrupted run from that file and save to it.

        Raises:
            RedlineError: the reward source failed, a step was undone, or the checkpoint belongs to another run.
        """
        if checkpoint is not None and self.refused is None:
            self.refused = checkpoint.parent / "refused"
        if checkpoint is not None and not self.steps_done:
            self.resume(checkpoint)
        while self.steps_done < self.config.steps:
            self.step()
            is_last = self.steps_done == self.config.steps
            if checkpoint is not None and (is_last or self.steps_done % checkpoint_every == 0):
                save_checkpoint(checkpoint, self.state())

    def resume(self, checkpoint: Path) -> None:
        """Restore the state from ``checkpoint`` if it exists. Raises CheckpointError if it belongs to another run."""
        if checkpoint.exists():
            self.load_state(restore_checkpoint(checkpoint, self.identity))

    def step(self) -> dict[str, float]:
        """Sample, score and learn once; returns the metrics of the step.

        Raises:
            StepRefusedError: a reward, log-probability, loss or gradient is not finite. Weights, optimizer and the
                other state of the loop are restored to their values before the step; torch's random generators are
                not. For this a copy of weights and optimizer is kept in main memory: 12 bytes per trained weight.
        """
        record = StepRecord(self.steps_done + 1)
        before = copied_to_cpu(self.state())
        try:
            metrics = self._step(record)
        except NonFiniteError as error:
            self._optimizer.zero_grad(set_to_none=True)
            self.load_state(before)
            where = "" if self.refused is None else f"; see {write_step(self.refused, record, str(error))}"
            raise StepRefusedError(
                f"step {record.step} was undone because a number is not finite: {error}{where}"
            ) from error
        assert record.scores is not None
        for callback in self.callbacks:
            callback(metrics, record.rollouts, record.scores)
        return metrics

    def _step(self, record: StepRecord) -> dict[str, float]:
        config = self.config
        clock = time.perf_counter()

        # 1. responses to the next prompts; every batch is scored while the next is sampled
        rollouts, scores, scoring_s = roll_out(self.policy, self.rewards, self.step_prompts(self.steps_done), config)
        record.rollouts, record.scores = rollouts, scores
        check_scores(scores)
        is_model_new = self._record_model(scores.digests)
        rollout_s = time.perf_counter() - clock

        # 2. outputs of policy, value function and reference before any update
        mask = token_mask(rollouts, self.policy.device)
        with torch.no_grad():
            old = self._old_outputs(rollouts, mask, record)
            reference = self._padded([self.policy.reference_logprobs(part) for part in self._parts(rollouts)], mask)
        reference = record.add("reference log-probability", reference, mask)

        # 3. token rewards, the penalty for responses cut at the token limit, the reward scale, and the KL penalty
        raw = padded_rewards(scores, mask)
        if self.discount is None:
            self.discount = default_discount(raw, mask)
        is_cut = torch.tensor([not rollout.is_finished for rollout in rollouts], device=mask.device)
        if config.cut_responses == "penalty":
            raw = raw + cut_penalties(is_cut, mask, config.cut_penalty)
        learned_mask = mask & ~is_cut.unsqueeze(1) if config.cut_responses == "mask" else mask
        if self.reward_scale is None:
            totals = [math.fsum(row) for row in raw.tolist()]
            self.reward_scale = reward_scale(totals, config.reward_scale_limit)
        rewards = kl_penalized_rewards(raw * self.reward_scale, old.logprobs, reference, self.kl_coefficient, mask)

        # 4. advantages of the responses that are used for learning
        value_scale = self._fit_value_scale(rewards, learned_mask, self.discount)
        values = old.values * value_scale
        groups = torch.tensor([rollout.group for rollout in rollouts], device=mask.device)
        estimator = self._estimator or make_estimator(config, self.discount)
        advantages, returns = estimator(rewards * learned_mask, values, learned_mask, groups)
        if config.whiten and returns is not None:
            advantages = whiten(advantages, learned_mask)
        advantages = record.add("advantage", advantages, learned_mask)

        # 5. several epochs of clipped updates
        clock = time.perf_counter()
        inputs = UpdateInputs(learned_mask, old, advantages, returns, value_scale)
        seed = f"{config.seed}/{self.steps_done}"
        update_metrics = update(self.policy, self._optimizer, rollouts, inputs, config, seed)
        update_s = time.perf_counter() - clock

        # 6. the KL coefficient of the next step
        kl = float(((old.logprobs - reference) * mask).sum(1).mean())
        used_coefficient = self.kl_coefficient
        if config.kl_target is not None:
            self.kl_coefficient = adapted_kl_coefficient(
                self.kl_coefficient, kl, config.kl_target, len(rollouts), config.kl_horizon
            )

        # 7. the metrics
        self.steps_done += 1
        tokens = mask.sum()
        return {
            "step": float(self.steps_done),
            "score": sum(item.score for item in scores.items) / len(scores.items),
            "token_reward": float(padded_rewards(scores, mask).sum() / tokens),
            "reward_scale": self.reward_scale,
            "kl": kl,
            "kl_coefficient": used_coefficient,
            "discount": self.discount,
            "entropy": float((old.entropy * mask).sum() / tokens),
            "response_tokens": float(tokens / len(rollouts)),
            "truncated_share": sum(not r.is_finished for r in rollouts) / len(rollouts),
            "explained_variance": 0.0 if returns is None else explained_variance(values, returns, learned_mask),
            **update_metrics,
            "model_changed": float(is_model_new),
            "seconds_rollout": rollout_s,
            "seconds_scoring": scoring_s,
            "seconds_update": update_s,
        }

    def step_prompts(self, step: int) -> list[Prompt]:
        """The prompts of a step, each ``samples_per_prompt`` times. They depend on the seed and the step only."""
        return step_prompts(self.prompts, self.config, step)

    def _fit_value_scale(self, rewards: Tensor, mask: Tensor, discount: float) -> float:
        """Units of the value function: the standard deviation of the first returns that are not all equal.

        It is stored in ``value_scale``. Until then it is 1.
        """
        if self.value_scale is None:
            returns = rewards_to_go(rewards, mask, discount)[mask]
            std = float(returns.std(correction=0)) if len(returns) else 0.0
            if not std > 1e-6:
                return 1.0
            self.value_scale = std
        return self.value_scale

    def _record_model(self, digests: Sequence[str]) -> bool:
        """Store the last of ``digests``, which are in order of use. Returns whether the reward model has changed."""
        before = self.digest
        is_new = before is not None and any(digest != before for digest in digests)
        self.digest = digests[-1] if digests else before
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
        return torch.where(mask, torch.cat(rows), 0.0)

    def _old_outputs(self, rollouts: Sequence[Rollout], mask: Tensor, record: StepRecord) -> TokenOutputs:
        parts = [self.policy.outputs(part) for part in self._parts(rollouts)]
        fields = [self._padded(field, mask) for field in zip(*parts, strict=True)]
        names = ("log-probability", "entropy", "value")
        return TokenOutputs(*(record.add(name, field, mask) for name, field in zip(names, fields, strict=True)))

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on, apart from random generators."""
        return {
            "identity": self.identity,
            "steps_done": self.steps_done,
            "kl_coefficient": self.kl_coefficient,
            "reward_scale": self.reward_scale,
            "value_scale": self.value_scale,
            "discount": self.discount,
            "digest": self.digest,
            "policy": self.policy.state(),
            "optimizer": self._optimizer.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore a ``state`` that ``state()`` returned."""
        self.steps_done = state["steps_done"]
        self.kl_coefficient = state["kl_coefficient"]
        self.reward_scale = state["reward_scale"]
        self.value_scale = state["value_scale"]
        self.discount = state["discount"]
        self.digest = state["digest"]
        self.policy.load_state(state["policy"])
        self._optimizer.load_state_dict(state["optimizer"])
