"""SkyRL: native token rewards, ``rewards: list[list[float]]`` in the generator's output. SkyRL 0.3."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from redline.integrations.token_rewarder import TokenRewarder
from redline.wire import PromptInput


async def with_token_rewards(
    output: dict[str, Any], prompts: Sequence[PromptInput], rewarder: TokenRewarder
) -> dict[str, Any]:
    """A generator's output with a reward for each of its response ids.

    What the environment gave is replaced. Tokens with loss mask 0 were not written by the policy and get 0.0.

    Args:
        output: SkyRL's ``GeneratorOutput``. prompts: ``prompts`` of the input batch, one a response.

    Raises:
        ValueError: the output has not one response a prompt (step-wise trajectories have several).
        ItemsFailedError: a response could not be scored.
    """
    responses = output["response_ids"]
    if len(responses) != len(prompts):
        raise ValueError(f"{len(responses)} responses to {len(prompts)} prompts: there must be one a prompt")
    told = await rewarder.ascore(prompts, responses)
    rewards = [
        [reward if written else 0.0 for reward, written in zip(one.rewards, mask, strict=True)]
        for one, mask in zip(told, output["loss_masks"], strict=True)
    ]
    return {**output, "rewards": rewards}


class TokenRewardGenerator:
    """Any of SkyRL's generators, its rewards replaced by a service's token rewards.

    Return it from ``get_generator`` of your entry point::

        class Experiment(BasePPOExp):
            def get_generator(self, cfg, tokenizer, inference_engine_client):
                inner = super().get_generator(cfg, tokenizer, inference_engine_client)
                return TokenRewardGenerator(inner, TokenRewarder(tokenizer, url="http://127.0.0.1:8000"))

    and choose an estimator that keeps positions: ``register_estimator`` and
    ``trainer.algorithm.advantage_estimator=redline``, or ``gae`` with a critic. SkyRL's own ``grpo``, ``rloo`` and
    ``maxrl`` sum the rewards of a response.
    """

    def __init__(self, generator: Any, rewarder: TokenRewarder) -> None:
        self._generator = generator
        self._rewarder = rewarder
        self._takes_tqdm = "disable_tqdm" in inspect.signature(generator.generate).parameters

    async def generate(self, input_batch: dict[str, Any], disable_tqdm: bool = False) -> dict[str, Any]:
        """The generator's output with token rewards. Raises as ``with_token_rewards``."""
        more = {"disable_tqdm": disable_tqdm} if self._takes_tqdm else {}
        output = await self._generator.generate(input_batch, **more)
        return await with_token_rewards(output, input_batch["prompts"], self._rewarder)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._generator, name)


def register_estimator(name: str = "redline") -> None:
    """Make ``leave_one_out_advantages`` one of SkyRL's advantage estimators, under ``name``."""
    from skyrl.backends.skyrl_train.utils.ppo_utils import register_advantage_estimator

    from redline.token_advantages import leave_one_out_advantages

    @register_advantage_estimator(name)  # type: ignore[untyped-decorator]
    def estimate(token_level_rewards: Any, response_mask: Any, index: Any, **others: Any) -> tuple[Any, Any]:
        scale = bool(others.get("grpo_norm_by_std", True))
        advantages = leave_one_out_advantages(token_level_rewards, response_mask, list(index), scale=scale)
        return advantages, advantages
