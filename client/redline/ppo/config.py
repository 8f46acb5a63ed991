"""The settings of a PPO run."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class PPOConfig(BaseModel):
    """Everything that decides a run beside its policy, prompts and reward source.

    ``rollouts`` responses a step, ``samples_per_prompt`` of them for each prompt, sampled ``sample_batch`` at a
    time; one batch is scored while the next is sampled. ``kl_target`` None keeps ``kl_coefficient`` fixed; else
    it adapts towards that many nats a response (arXiv 1909.08593). ``reward_scale`` ``auto`` divides rewards by
    the standard deviation of the first step's summed rewards, so that one KL coefficient suits scorers of any scale.
    """

    model_config = ConfigDict(extra="forbid")

    steps: int = Field(default=40, ge=1)
    rollouts: int = Field(default=64, ge=1)
    samples_per_prompt: int = Field(default=1, ge=1)
    sample_batch: int = Field(default=32, ge=1)
    minibatch: int = Field(default=32, ge=1)
    microbatch: int | None = Field(default=None, ge=1)
    epochs: int = Field(default=4, ge=1)
    learning_rate: float = Field(default=1e-5, gt=0)
    clip: float = Field(default=0.2, gt=0)
    value_clip: float = Field(default=0.2, gt=0)
    value_coefficient: float = Field(default=0.1, ge=0)
    entropy_coefficient: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    kl_coefficient: float = Field(default=0.05, ge=0)
    kl_target: float | None = Field(default=None, gt=0)
    kl_horizon: int = Field(default=2000, ge=1)
    discount: float = Field(default=1.0, ge=0, le=1)
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    advantage: Literal["gae", "group"] = "gae"
    whiten: bool = True
    reward_scale: Literal["auto", "none"] = "auto"
    on_model_change: Literal["warn", "stop"] = "warn"
    seed: int = 0

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.rollouts % self.samples_per_prompt:
            raise ValueError("rollouts must be a multiple of samples_per_prompt")
        if self.advantage == "group" and self.samples_per_prompt < 2:
            raise ValueError(
                "advantage 'group' compares responses to one prompt: samples_per_prompt must be at least 2"
            )
        return self

    def identity(self) -> dict[str, object]:
        """What must be equal for a checkpoint to be resumed; a run may be made longer."""
        return self.model_dump(mode="json", exclude={"steps", "on_model_change"})
