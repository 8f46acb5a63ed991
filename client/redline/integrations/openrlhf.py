"""OpenRLHF: a reward function file, an agent function file with token rewards, and the line that spreads them.
OpenRLHF 0.11.

    --reward.remote_url .../redline/integrations/openrlhf.py      one number a sample
    --train.agent_func_path .../redline/integrations/openrlhf.py  a number and token rewards

The service is at ``REDLINE_URL`` (and ``REDLINE_KEY``) in the environment. OpenRLHF's own client can also ask the
service itself (``--reward.remote_url http://HOST:PORT/get_reward``).
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
    """One number a sample.

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
    """OpenRLHF's single turn, scored by a service on the ids that were sampled.

    ``reward`` is the score. The token rewards travel in ``extra_logs`` to the experience's ``info``, from which
    ``spread`` takes them.
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
        """Raises ItemsFailedError where the sample cannot be scored: OpenRLHF would go on with no reward at all."""
        output: dict[str, Any] = await super().execute(
            prompt, label, sampling_params, max_length, hf_tokenizer, llm_engine, images
        )
        if self._rewarder is None:
            self._rewarder = TokenRewarder(hf_tokenizer)
        [(start, end)] = output["action_ranges"]
        [told] = await self._rewarder.ascore([prompt], [output["observation_tokens"][start:end]])
        output.update(reward=told.score, scores=told.score, extra_logs={TOKEN_REWARDS: told.rewards})
        return output


def spread(reward: Tensor, experience: Any) -> Tensor:
    """The reward that ``compute_reward`` put on each response's last token, spread over its tokens; the sum is kept.

    Call it in ``RemoteExperienceMaker.compute_advantages_and_returns``, right behind ``compute_reward``::

        reward = spread(reward, experience)

    What OpenRLHF took off the score before (the group's baseline, a length penalty, the clamp) stays on the last
    token. Made for the estimators that do not divide by a deviation: ``rloo``, ``reinforce_baseline``, ``reinforce``
    and ``gae``.

    Args:
        reward: (B, A), on the predicted tokens. experience: OpenRLHF's, with ``action_mask`` (B, A) and token rewards
        in ``info``.

    Returns:
        (B, A); ``reward`` itself where there are no token rewards.
    """
    told = experience.info.pop(TOKEN_REWARDS, None)
    if told is None:
        return reward
    mask = experience.action_mask.bool()
    told = told.to(reward.device, reward.dtype).reshape(len(mask), -1)
    spread_out = reward.clone()
    for row, own in enumerate(mask):
        places = own.nonzero().flatten()
        tokens = told[row, : len(places)]
        spread_out[row, places[: len(tokens)]] += tokens
        spread_out[row, places[-1]] -= tokens.sum()
    return spread_out
