"""verl 0.9: an agent loop with token rewards, an advantage estimator, and the older reward manager."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput, register
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
from verl.trainer.ppo.core_algos import register_adv_est

from redline.integrations.token_rewarder import TokenRewarder
from redline.token_advantages import leave_one_out_advantages


class TokenRewardOutput(AgentLoopOutput):  # type: ignore[misc]
    """An agent loop's output with a reward for each response id; verl's own class has one score."""

    token_rewards: list[float]

    def as_dict(self) -> dict[str, Any]:
        """verl's fields, with ``rm_scores`` (response length,) as the trainer expects."""
        output: dict[str, Any] = super().as_dict()
        rewards = torch.tensor(output.pop("token_rewards"), dtype=torch.float32)
        output["rm_scores"] = rewards * output["response_mask"]
        return output


async def with_token_rewards(output: AgentLoopOutput, prompt: Any, rewarder: TokenRewarder) -> TokenRewardOutput:
    """``output`` with token rewards from a service. Raises ItemsFailedError if it cannot be scored."""
    [scored] = await rewarder.ascore([prompt], [output.response_ids])
    fields = {name: getattr(output, name) for name in output.model_fields_set}
    fields |= {"token_rewards": scored.rewards, "reward_score": scored.score}
    fields["extra_fields"] = {**output.extra_fields, "reward_extra_info": {}}
    return TokenRewardOutput(**fields)


@register("redline_agent")
class RedlineAgentLoop(SingleTurnAgentLoop):  # type: ignore[misc]
    """verl's single-turn agent loop with a reward for each response token:
    ``actor_rollout_ref.rollout.agent.default_agent_loop=redline_agent``.

    The service's URL is ``REDLINE_URL`` (its key ``REDLINE_KEY``) in the environment of the rollout workers.
    """

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> AgentLoopOutput:
        """Raises ItemsFailedError if the response cannot be scored."""
        output = await super().run(sampling_params, **kwargs)
        if not hasattr(self, "_rewarder"):
            self._rewarder = TokenRewarder(self.tokenizer)
        return await with_token_rewards(output, list(kwargs["raw_prompt"]), self._rewarder)


@register_adv_est("redline")  # type: ignore[untyped-decorator]
def estimate(
    token_level_rewards: Tensor, response_mask: Tensor, index: Any, config: Any = None, **others: Any
) -> tuple[Tensor, Tensor]:
    """``leave_one_out_advantages`` as ``algorithm.adv_estimator=redline``; verl's ``grpo`` sums the rewards."""
    scale = True if config is None else bool(config.get("norm_adv_by_std_in_grpo", True))
    advantages = leave_one_out_advantages(token_level_rewards, response_mask, list(index), scale=scale)
    return advantages, advantages


class TokenRewardManager:
    """The older reward manager, ``manager(data) -> (B, response_len)``; verl calls it up to version 0.6.

    Args:
        tokenizer: the policy's.
    """

    def __init__(self, tokenizer: Any, *arguments: Any, rewarder: TokenRewarder | None = None, **options: Any) -> None:
        self._rewarder = rewarder or TokenRewarder(tokenizer)

    def __call__(self, data: Any, return_dict: bool = False) -> Any:
        """Token rewards, (B, response_len) float32, of a ``DataProto`` with ``responses``, ``attention_mask`` and
        ``raw_prompt``.

        Raises:
            ItemsFailedError: a response could not be scored.
        """
        responses = data.batch["responses"]
        width = responses.shape[1]
        lengths = data.batch["attention_mask"][:, -width:].sum(1).tolist()
        ids = [row[:length].tolist() for row, length in zip(responses, lengths, strict=True)]
        prompts = [p if isinstance(p, str) else list(p) for p in data.non_tensor_batch["raw_prompt"]]
        rewards = torch.zeros(responses.shape, dtype=torch.float32)
        for row, scored in enumerate(self._rewarder.score(prompts, ids)):
            rewards[row, : len(scored.rewards)] = torch.tensor(scored.rewards)
        return {"reward_tensor": rewards, "reward_extra_info": {}} if return_dict else rewards
