"""Token-level PPO for transformers causal language models, against any reward source. Needs redline-rm[ppo]."""

from __future__ import annotations

from redline.ppo.config import PPOConfig
from redline.ppo.loop import PPOLoop
from redline.ppo.policy import CausalPolicy
from redline.ppo.protocols import AdvantageEstimator, Callback, Policy, RewardSource, Rollout, Scored, Scores
from redline.ppo.rewards import FunctionRewards, RemoteRewards, WeightedRewards

__all__ = [
    "AdvantageEstimator",
    "Callback",
    "CausalPolicy",
    "FunctionRewards",
    "PPOConfig",
    "PPOLoop",
    "Policy",
    "RemoteRewards",
    "RewardSource",
    "Rollout",
    "Scored",
    "Scores",
    "WeightedRewards",
]
