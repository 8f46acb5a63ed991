"""The methods that are compared, and the sizes of a run: full, reduced for a CPU, and quick to show that it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

# The mode of the seq2seq reward model's token rewards; None for the default of its bundle.
SEQ2SEQ_MODE: str | None = None

# Reward models, with the options of ``redline train``. All have the same base, pairs, steps and learning rate.
REWARD_MODELS: dict[str, dict[str, Any]] = {
    "scalar": {"kind": "scalar"},
    "plain": {"kind": "sft"},
    "qrm": {"kind": "qrm"},
    "seq2seq": {"kind": "seq2seq", "mismatch": False},
}


@dataclass(frozen=True)
class Method:
    """How a policy is trained from the start policy.

    Args:
        label: in tables.
        training: ``none`` for the start policy itself.
        reward_model: of ``ppo``, a key of ``REWARD_MODELS``.
        mode: of its token rewards; None for the default of its bundle.
        discount: of ``ppo``. A reward on the last token only needs 1. Token rewards get a small one, so that a token is
            credited mostly with its own reward.
    """

    label: str
    training: Literal["none", "sft", "dpo", "ppo"]
    reward_model: str | None = None
    mode: str | None = None
    discount: float = 1.0


_TOKEN_DISCOUNT = 0.3
MAIN_METHOD = "ppo_seq2seq"
METHODS: dict[str, Method] = {
    "start": Method("start policy", "none"),
    "sft": Method("SFT on the chosen texts", "sft"),
    "dpo": Method("DPO", "dpo"),
    "ppo_scalar": Method("PPO, Bradley-Terry", "ppo", "scalar"),
    "ppo_plain": Method("PPO, margin of the plain model", "ppo", "plain", "margin", _TOKEN_DISCOUNT),
    "ppo_qrm": Method("PPO, Q-RM", "ppo", "qrm", None, _TOKEN_DISCOUNT),
    MAIN_METHOD: Method("PPO, seq2seq", "ppo", "seq2seq", SEQ2SEQ_MODE, _TOKEN_DISCOUNT),
}


@dataclass(frozen=True)
class PPOSettings:
    """What the sweep varies."""

    learning_rate: float = 3e-6
    kl_coefficient: float = 0.05

    @property
    def name(self) -> str:
        """For file names."""
        return f"lr{self.learning_rate:g}-kl{self.kl_coefficient:g}"


@dataclass(frozen=True)
class Plan:
    """Sizes of a run. The names of the fields are keys of the stored results: do not change them.

    Args:
        seeds: number of seeds; each has its own start policy, reward models and policies.
        pairs: at most so many training pairs of a reward model, of SFT and of DPO.
        development: texts at the end of the train part that are used for the sweep and for nothing else.
        batch: texts (SFT) or pairs (DPO, reward models) per optimiser step.
        start_steps, model_steps, sft_steps, dpo_steps: optimiser steps.
        ppo_steps, rollouts, minibatch, epochs: of PPO.
        points: number of measurements of a training run, evenly spaced; the last is after the last step.
        curve_samples, final_samples: responses of one measurement, and of the last one.
        sweep: settings of PPO that every method in ``swept`` tries on the development texts, with the first seed. If
            it is empty, all methods use the first ``PPOSettings``.
        sweep_kl: nats at which the settings are compared, from each run's curve.
        kl_grid: nats at which the table at equal KL has columns.
    """

    name: str
    seeds: int
    pairs: int
    development: int
    batch: int
    start_steps: int
    model_steps: int
    sft_steps: int
    dpo_steps: int
    ppo_steps: int
    rollouts: int
    minibatch: int
    points: int
    curve_samples: int
    final_samples: int
    evaluated_pairs: int
    max_batch_tokens: int
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    epochs: int = 2
    start_learning_rate: float = 2e-5
    model_learning_rate: float = 2e-5
    sft_learning_rate: float = 1e-5
    dpo_learning_rate: float = 5e-6
    dpo_beta: float = 0.1
    ppo: PPOSettings = PPOSettings()
    swept: tuple[str, ...] = ()
    sweep: tuple[PPOSettings, ...] = ()
    sweep_kl: float = 1.0
    kl_grid: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)


_PPO_METHODS = tuple(name for name, method in METHODS.items() if method.training == "ppo")
_GRID = tuple(PPOSettings(rate, kl) for rate in (3e-6, 1e-5) for kl in (0.02, 0.05, 0.2))
FULL = Plan(
    name="full",
    seeds=5,
    pairs=12000,
    development=128,
    batch=32,
    start_steps=150,
    model_steps=300,
    sft_steps=100,
    dpo_steps=100,
    ppo_steps=50,
    rollouts=128,
    minibatch=32,
    points=10,
    curve_samples=256,
    final_samples=512,
    evaluated_pairs=2000,
    max_batch_tokens=16384,
    swept=_PPO_METHODS,
    sweep=_GRID,
)
# About an hour per task and seed on two quiet cores with AVX512-BF16 (estimated from the CPU time of single steps:
# PPO 76 s, seq2seq model 24 s, Bradley-Terry 8 s, SFT 15 s, a measured sample 1.2 s). Less than FULL: 480 of 3,349 (or
# 12,000) pairs, a tenth of the reward models' steps, a fifth of PPO's steps and a quarter of its samples, one epoch
# instead of two, an eighth of the measured samples, no sweep, one seed. Learning rates are higher, because there are
# few steps.
REDUCED = Plan(
    name="reduced",
    seeds=1,
    pairs=480,
    development=64,
    batch=16,
    start_steps=30,
    model_steps=30,
    sft_steps=20,
    dpo_steps=12,
    ppo_steps=10,
    rollouts=32,
    minibatch=16,
    points=2,
    curve_samples=32,
    final_samples=64,
    evaluated_pairs=200,
    max_batch_tokens=2048,
    epochs=1,
    model_learning_rate=1e-4,
    ppo=PPOSettings(1e-5, 0.05),
)
QUICK = Plan(
    name="quick",
    seeds=1,
    pairs=12,
    development=4,
    batch=4,
    start_steps=2,
    model_steps=2,
    sft_steps=2,
    dpo_steps=2,
    ppo_steps=2,
    rollouts=4,
    minibatch=4,
    points=2,
    curve_samples=4,
    final_samples=4,
    evaluated_pairs=8,
    max_batch_tokens=1024,
    precision="float32",
    ppo=PPOSettings(1e-3, 0.05),
    swept=("ppo_scalar", "ppo_seq2seq"),
    sweep=(PPOSettings(1e-3, 0.05), PPOSettings(1e-3, 0.2)),
    kl_grid=(0.001, 0.01),
)
