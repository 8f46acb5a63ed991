"""Settings of a PPO run (``PPOConfig``), with the source of each default."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class PPOConfig(BaseModel):
    """Settings of a PPO run, apart from its policy, prompts and reward source.

    Steps:
        ``steps``: number of PPO steps of the run.
        ``rollouts``: responses that are sampled in each step.
        ``samples_per_prompt``: responses to each prompt; ``rollouts`` must be a multiple of it.
        ``sample_batch``: responses that are sampled at a time. One batch is scored while the next one is sampled.
        ``epochs``: passes over the responses of a step.
        ``minibatch``: responses per update of the weights.
        ``microbatch``: responses that are in memory at a time; None for the whole minibatch.
        ``seed``: of prompts, sampling and the order of updates.
    Rewards:
        ``reward_scale``: ``none`` leaves rewards unchanged. ``auto`` divides them by the standard deviation of the
        summed rewards of the first step. The meaning of the KL coefficient then depends on the scorer.
        ``reward_scale_limit``: ``auto`` multiplies or divides by at most this factor.
        ``cut_responses``: what happens to a response that is cut at the token limit. ``penalty`` subtracts
        ``cut_penalty`` from the reward of its last token, before scaling; ``mask`` excludes it from advantages and
        losses; ``keep`` treats it like a finished one.
        ``on_model_change``: ``stop`` raises ModelChangedError if the reward model changes during the run; ``warn``
        only reports the change in the metrics.
    KL penalty:
        ``kl_coefficient``: penalty per nat of KL divergence from the reference.
        ``kl_target``: None keeps the coefficient fixed; otherwise it adapts towards this KL, in nats per response
        (arXiv 1909.08593).
        ``kl_horizon``: responses over which the coefficient adapts.
    Policy loss:
        ``clip``: limit of the probability ratio.
        ``entropy_coefficient``: weight of the entropy bonus.
        ``learning_rate``: of the policy.
        ``max_grad_norm``: gradients are clipped to this norm.
    Value function:
        ``critic_learning_rate``: of a value function with its own parameters (``Policy.value_parameters``).
        ``value_coefficient``: weight of the value loss.
        ``value_scale``: ``auto`` lets the value function learn returns in units of their standard deviation at the
        first step, so that one learning rate fits rewards of any size. ``none`` does not scale.
        ``value_clip``: limit of the change of a value; None does not clip.
    Advantages:
        ``advantage``: ``gae`` needs a value function. ``group`` (GRPO) and ``leave_one_out`` compare the responses to
        one prompt: ``group`` their summed rewards, ``leave_one_out`` their rewards to go, token by token
        (``redline.token_advantages``).
        ``discount`` and ``gae_lambda``: of GAE; ``leave_one_out`` uses ``discount``. ``discount`` None: 1 if every
        response is rewarded on its last token only, else 0.7 (``redline.ppo.advantages.default_discount``).
        ``whiten``: scales advantages to mean 0 and variance 1. It applies to ``gae`` only.

    Sources of the defaults. They are for pretrained policies; a model that is trained from scratch needs other rates.
        ``learning_rate`` 3e-6: TRL's PPOConfig and arXiv 2403.17031; OpenRLHF and verl use 5e-7 to 1e-6.
        ``epochs`` 2: between one pass (OpenRLHF, verl, TRL's documented command) and four (arXiv 2403.17031).
        ``clip`` 0.2: arXiv 1707.06347.
        ``gae_lambda`` 0.95, ``discount`` 1 for a reward on the last token: arXiv 2009.01325, 2203.02155.
        ``discount`` 0.7 for token rewards: measured, see docs/decisions/0018. Token rewards that are never positive pay
        for short responses if every token answers for all that follow.
        ``kl_coefficient`` 0.05, ``value_coefficient`` 0.1: TRL, arXiv 2403.17031.
        ``critic_learning_rate`` 3e-3: measured for the small network of ``redline.ppo.critic``, see there. OpenRLHF's
        9e-6 and verl's 1e-5 are for critics of the policy's size.
        ``value_clip`` None: arXiv 2006.05990 finds that clipping the value loss does not help, and a limit in units of
        reward depends on their scale.
        ``cut_penalty`` 1: ``missing_eos_penalty`` in TRL's documented commands, and the full length penalty of DAPO
        (arXiv 2503.14476; ``penalty_factor`` in verl). Excluding cut responses is DAPO's filtering and TRL's
        ``mask_truncated_completions``.
        ``reward_scale`` ``none``: a scale that is fitted to the scorer would decide comparisons between scorers.
        ``max_grad_norm`` 1: transformers, verl.
    """

    model_config = ConfigDict(extra="forbid")

    steps: int = Field(default=40, ge=1)
    rollouts: int = Field(default=64, ge=1)
    samples_per_prompt: int = Field(default=1, ge=1)
    sample_batch: int = Field(default=32, ge=1)
    minibatch: int = Field(default=32, ge=1)
    microbatch: int | None = Field(default=None, ge=1)
    epochs: int = Field(default=2, ge=1)
    learning_rate: float = Field(default=3e-6, gt=0)
    critic_learning_rate: float = Field(default=3e-3, gt=0)
    clip: float = Field(default=0.2, gt=0)
    value_clip: float | None = Field(default=None, gt=0)
    value_coefficient: float = Field(default=0.1, ge=0)
    value_scale: Literal["auto", "none"] = "auto"
    entropy_coefficient: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    kl_coefficient: float = Field(default=0.05, ge=0)
    kl_target: float | None = Field(default=None, gt=0)
    kl_horizon: int = Field(default=2000, ge=1)
    discount: float | None = Field(default=None, ge=0, le=1)
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    advantage: Literal["gae", "group", "leave_one_out"] = "gae"
    whiten: bool = True
    reward_scale: Literal["none", "auto"] = "none"
    reward_scale_limit: float = Field(default=10.0, ge=1)
    cut_responses: Literal["penalty", "mask", "keep"] = "penalty"
    cut_penalty: float = Field(default=1.0, ge=0)
    on_model_change: Literal["warn", "stop"] = "warn"
    seed: int = 0

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.rollouts % self.samples_per_prompt:
            raise ValueError("rollouts must be a multiple of samples_per_prompt")
        if self.advantage != "gae" and self.samples_per_prompt < 2:
            raise ValueError(
                f"advantage '{self.advantage}' compares responses to one prompt: samples_per_prompt must be at least 2"
            )
        return self

    def identity(self) -> dict[str, object]:
        """Settings that must be equal to resume a checkpoint. ``steps`` may differ: a run may be extended."""
        return self.model_dump(mode="json", exclude={"steps", "on_model_change"})
