"""The settings of a PPO run, and where each default is from."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class PPOConfig(BaseModel):
    """Everything that decides a run beside its policy, prompts and reward source.

    A step:
        ``rollouts`` responses, ``samples_per_prompt`` of them for each prompt, sampled ``sample_batch`` at a time; one
        batch is scored while the next is sampled. ``epochs`` passes over them in updates of ``minibatch`` responses, of
        which ``microbatch`` are in memory at a time (None: all of the minibatch).
    Rewards:
        ``reward_scale`` ``none`` takes them as they are. ``auto`` divides by the standard deviation of the first step's
        summed rewards, by a factor of ``reward_scale_limit`` at most either way; the KL coefficient then has another
        meaning for every scorer. ``cut_responses`` is what happens to a response that is cut at the token limit:
        ``penalty`` takes ``cut_penalty`` off its last token's reward, before any scale; ``mask`` leaves it out of
        advantages and losses; ``keep`` treats it like a finished one.
    Price of leaving the reference:
        ``kl_target`` None keeps ``kl_coefficient`` fixed; else it adapts towards that many nats a response
        (arXiv 1909.08593).
    Value function:
        ``critic_learning_rate`` is of a value function that has parameters of its own (``Policy.value_parameters``).
        ``value_scale`` ``auto`` lets it learn returns in units of their standard deviation at the first step, so that
        one rate fits rewards of any size. ``value_clip`` None does not clip.
    Advantages:
        ``gae`` needs a value function. ``group`` (GRPO) and ``leave_one_out`` compare the responses to one prompt:
        ``group`` their summed rewards, ``leave_one_out`` their rewards to go, token by token
        (``redline.token_advantages``). ``whiten`` is for ``gae``; the other two stay as they are.

    Sources of the defaults, which are for pretrained policies; a model trained from scratch wants other rates:
        ``learning_rate`` 3e-6: TRL's PPOConfig and arXiv 2403.17031; OpenRLHF and verl have 5e-7 to 1e-6.
        ``epochs`` 2: between one pass (OpenRLHF, verl, TRL's documented command) and four (arXiv 2403.17031).
        ``clip`` 0.2: arXiv 1707.06347. ``gae_lambda`` 0.95, ``discount`` 1: arXiv 2009.01325, 2203.02155.
        ``kl_coefficient`` 0.05, ``value_coefficient`` 0.1: TRL, arXiv 2403.17031.
        ``critic_learning_rate`` 3e-3: measured for the small network of ``redline.ppo.critic``, see there; OpenRLHF's
        9e-6 and verl's 1e-5 are for critics of the policy's own size.
        ``value_clip`` None: arXiv 2006.05990 finds that clipping the value loss does not help, and a limit in units of
        reward depends on their scale.
        ``cut_penalty`` 1: ``missing_eos_penalty`` in TRL's documented commands, and the full penalty for length of
        DAPO (arXiv 2503.14476; ``penalty_factor`` in verl). Leaving cut responses out is DAPO's filtering and TRL's
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
    discount: float = Field(default=1.0, ge=0, le=1)
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
        """What must be equal for a checkpoint to be resumed; a run may be made longer."""
        return self.model_dump(mode="json", exclude={"steps", "on_model_change"})
