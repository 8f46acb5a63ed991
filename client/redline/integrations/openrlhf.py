"""OpenRLHF 0.11: a reward function, an agent function with token rewards, and ``spread`` to apply those.

    --reward.remote_url .../redline/integrations/openrlhf.py      one score per sample
    --train.agent_func_path .../redline/integrations/openrlhf.py  one score and token rewards

The service's URL is ``REDLINE_URL`` in the environment (its key ``REDLINE_KEY``). OpenRLHF's own client can also call
the service directly (``--reward.remote_url http://HOST:PORT/get_reward``).
"""

from __future__ import annotations

from functools import cache
from typing import Any

from openrlhf.utils.agent import SingleTurnAgentExecutor
from torch import Tensor

from redline.client import RewardClient
from redline.integrations.token_rewarder import TokenRewarder, service_address
from redline.text.chat_markup import parse_query_and_prompt, to_score_item
from redline.wire import ScoreOptions

TOKEN_REWARDS = "redline_token_rewards"


@cache
def _client() -> RewardClient:
    url, key = service_address()
    return RewardClient(url, key=key)


def reward_func(queries: list[str], prompts: list[str], labels: list[Any], **options: Any) -> dict[str, Any]:
    """One score per sample.

    Raises:
        PromptBoundaryError: a query does not begin with its prompt.
        ItemsFailedError: a sample could not be scored.
    """
    items = [
        to_score_item(parse_query_and_prompt(query, prompt)) for query, prompt in zip(queries, prompts, strict=True)
    ]
    scores = [item.score for item in _client().score(items, options=ScoreOptions(on_too_long="truncate")).scored()]
    return {"rewards": scores, "scores": scores, "extra_logs": {}}


class AgentExecutor(SingleTurnAgentExecutor):  # type: ignore[misc]
    """OpenRLHF's single-turn executor, with rewards from a service on the sampled token ids.

    ``reward`` is the score. The token rewards are passed in ``extra_logs`` to the experience's ``info``, where
    ``spread`` reads them.
    """

    def __init__(self) -> None:
        super().__init__(remote_rm_url=None)
        self._rewarder: TokenRewarder | None = None

    async def execute(
        self,
        prompt: str,
        label: Any,
        sampling_params: Any,
        max_length: int,
        hf_tokenizer: Any,
        llm_engine: Any,
        images: Any = None,
    ) -> dict[str, Any]:
        """Raises ItemsFailedError if the sample cannot be scored: OpenRLHF would continue without a reward."""
        output: dict[str, Any] = await super().execute(
            prompt, label, sampling_params, max_length, hf_tokenizer, llm_engine, images
        )
        if self._rewarder is None:
            self._rewarder = TokenRewarder(hf_tokenizer)
        [(start, end)] = output["action_ranges"]
        [result] = await self._rewarder.ascore([prompt], [output["observation_tokens"][start:end]])
        output.update(reward=result.score, scores=result.score, extra_logs={TOKEN_REWARDS: result.rewards})
        return output


def spread(reward: Tensor, experience: Any) -> Tensor:
    """Spreads the reward that ``compute_reward`` put on each response's last token over its tokens; the sum is kept.

    Call it in ``RemoteExperienceMaker.compute_advantages_and_returns``, right after ``compute_reward``::

        reward = spread(reward, experience)

    What OpenRLHF subtracted from the score before (the group's baseline, a length penalty, clamping) stays on the last
    token. For estimators that do not divide by a standard deviation: ``rloo``, ``reinforce_baseline``, ``reinforce``
    and ``gae``.

    Args:
        reward: (B, A), on the action tokens. experience: OpenRLHF's, with ``action_mask`` (B, A) and token rewards
        in ``info``.

    Returns:
        (B, A); ``reward`` itself if there are no token rewards.
    """
    token_rewards = experience.info.pop(TOKEN_REWARDS, None)
    if token_rewards is None:
        return reward
    mask = experience.action_mask.bool()
    token_rewards = token_rewards.to(reward.device, reward.dtype).reshape(len(mask), -1)
    spread_out = reward.clone()
    for row, is_action in enumerate(mask):
        positions = is_action.nonzero().flatten()
        tokens = token_rewards[row, : len(positions)]
        spread_out[row, positions[: len(tokens)]] += tokens
        spread_out[row, positions[-1]] -= tokens.sum()
    return spread_out
