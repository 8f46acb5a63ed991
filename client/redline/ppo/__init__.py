"""Token-level PPO for causal language models of transformers, with any reward source. Needs redline-rm[ppo].

Importing this package does not import torch. The first use of a name that needs torch does.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

# the module of this package that defines each public name
_MODULES = {
    "AdvantageEstimator": "protocols",
    "Callback": "protocols",
    "CausalPolicy": "policy",
    "FunctionRewards": "rewards",
    "PPOConfig": "config",
    "PPOLoop": "loop",
    "Policy": "protocols",
    "RemoteRewards": "rewards",
    "RewardSource": "protocols",
    "Rollout": "protocols",
    "Scored": "protocols",
    "Scores": "protocols",
    "WeightedRewards": "rewards",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
