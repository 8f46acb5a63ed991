"""SkyRL 0.3: token rewards as ``rewards: list[list[float]]`` in the generator's output."""

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

    The environment's rewards are replaced. Tokens with loss mask 0 were not sampled by the policy and get 0.0.

    Args:
        output: SkyRL's ``GeneratorOutput``. prompts: ``prompts`` of the input batch, one per response.

    Raises:
        ValueError: the number of responses and prompts differs (step-wise trajectories have several responses).
        ItemsFailedError: a response could not be scored.
    """
    responses = output["response_ids"]
    if len(responses) != len(prompts):
        raise ValueError(f"{len(responses)} responses for {len(prompts)} prompts; there must be one per prompt")
    scored = await rewarder.ascore(prompts, responses)
    rewards = [
        [reward if is_sampled else 0.0 for reward, is_sampled in zip(item.rewards, mask, strict=True)]
        for item, mask in zip(scored, output["loss_masks"], strict=True)
    ]
    return {**output, "rewards": rewards}


class TokenRewardGenerator:
    """Wraps a SkyRL generator and replaces its rewards by a service's token rewards.

    Return it from ``get_generator`` of your entry point::

        class Experiment(BasePPOExp):
            def get_generator(self, cfg, tokenizer, inference_engine_client):
                inner = super().get_generator(cfg, tokenizer, inference_engine_client)
                return TokenRewardGenerator(inner, TokenRewarder(tokenizer, url="http://127.0.0.1:8000"))

    and choose an advantage estimator that uses rewards per token: ``register_estimator`` and
    ``trainer.algorithm.advantage_estimator=redline``, or ``gae`` with a critic. SkyRL's own ``grpo``, ``rloo`` and
    ``maxrl`` sum the rewards of a response.
    """

    def __init__(self, generator: Any, rewarder: TokenRewarder) -> None:
        self._generator = generator
        self._rewarder = rewarder
        self._accepts_disable_tqdm = "disable_tqdm" in inspect.signature(generator.generate).parameters

    async def generate(self, input_batch: dict[str, Any], disable_tqdm: bool = False) -> dict[str, Any]:
        """The generator's output with token rewards. Raises as ``with_token_rewards``."""
        more = {"disable_tqdm": disable_tqdm} if self._accepts_disable_tqdm else {}
        output = await self._generator.generate(input_batch, **more)
        return await with_token_rewards(output, input_batch["prompts"], self._rewarder)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._generator, name)


def register_estimator(name: str = "redline") -> None:
    """Register ``leave_one_out_advantages`` as a SkyRL advantage estimator with the name ``name``."""
    from skyrl.backends.skyrl_train.utils.ppo_utils import register_advantage_estimator

    from redline.token_advantages import leave_one_out_advantages

    @register_advantage_estimator(name)  # type: ignore[untyped-decorator]
    def estimate(token_level_rewards: Any, response_mask: Any, index: Any, **others: Any) -> tuple[Any, Any]:
        scale = bool(others.get("grpo_norm_by_std", True))
        advantages = leave_one_out_advantages(token_level_rewards, response_mask, list(index), scale=scale)
        return advantages, advantages
