"""NeMo-RL 0.6: an environment with one score per sample, and an advantage estimator with token rewards.

NeMo-RL's environments get no token ids and return one score; token rewards enter in the advantage estimator::

    from nemo_rl.algorithms import grpo
    grpo._create_advantage_estimator = lambda config: TokenAdvantages(TokenRewarder(tokenizer))
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from redline.client import RewardClient
from redline.integrations.token_rewarder import TokenRewarder, to_messages
from redline.text.chat_markup import ParsedConversation, parse_prompt, strip_ending, to_score_item
from redline.token_advantages import leave_one_out_advantages
from redline.wire import ChatMessage, ScoreOptions


def _prompt(log: list[dict[str, Any]]) -> str | list[ChatMessage]:
    """The messages of a log. Data processors render chat templates into the contents; that markup is removed again."""
    prompt = parse_prompt("".join(message["content"] for message in log))
    if not isinstance(prompt, str):
        return prompt
    # the messages of a log also have token ids and other fields that are not part of the conversation
    return to_messages([{"role": message["role"], "content": message["content"]} for message in log])


class RedlineEnvironment:
    """A single-turn environment: the last message of a log is the response to those before it. Make it a Ray actor.

    Args:
        url, key: of the service.
    """

    def __init__(self, url: str, key: str | None = None, *, client: RewardClient | None = None) -> None:
        self._client = client or RewardClient(url, key=key)

    def step(self, message_log_batch: list[list[dict[str, Any]]], metadata: list[Any]) -> Any:
        """NeMo-RL's ``EnvironmentReturn``, ``rewards`` (B,). Raises ItemsFailedError, PromptBoundaryError."""
        from nemo_rl.environments.interfaces import EnvironmentReturn

        items = [
            to_score_item(ParsedConversation(_prompt(log[:-1]), strip_ending(log[-1]["content"], ())[0], True))
            for log in message_log_batch
        ]
        scores = [
            item.score for item in self._client.score(items, options=ScoreOptions(on_too_long="truncate")).scored()
        ]
        return EnvironmentReturn(
            observations=[{"role": "environment", "content": ""} for _ in items],
            metadata=metadata,
            next_stop_strings=[None] * len(items),
            rewards=torch.tensor(scores, dtype=torch.float32),
            terminateds=torch.ones(len(items)),
            answers=None,
        )

    def global_post_process_and_metrics(self, batch: Any) -> tuple[Any, dict[str, float]]:
        """Returns the batch unchanged, and the mean reward as a metric."""
        return batch, {"redline/mean_reward": float(batch["total_reward"].float().mean())}


class TokenAdvantages:
    """An advantage estimator: ``leave_one_out_advantages`` of a service's rewards on the sampled ids, (B, S).

    The last assistant message of each log is scored; earlier ones get advantage 0.
    """

    def __init__(self, rewarder: TokenRewarder, *, scale: bool = True) -> None:
        self._rewarder = rewarder
        self._scale = scale

    def compute_advantage(
        self, prompt_ids: Tensor, rewards: Tensor, mask: Tensor, repeated_batch: Any, **others: Any
    ) -> Tensor:
        """Advantages (B, S) on the tokens of the full sequence, 0 outside ``mask``.

        Args:
            prompt_ids: (B, P), equal for responses to one prompt. mask: (B, S), 1 on tokens that the policy sampled.
            repeated_batch: has ``message_log``: messages with ``role``, ``content`` and ``token_ids``.

        Raises:
            ItemsFailedError: a response could not be scored.
        """
        prompts, ids, starts = [], [], []
        for log in repeated_batch["message_log"]:
            last = max(n for n, message in enumerate(log) if message["role"] == "assistant")
            prompts.append(_prompt(log[:last]))
            ids.append(log[last]["token_ids"].tolist())
            starts.append(sum(len(message["token_ids"]) for message in log[:last]))
        token_rewards = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device)
        is_scored = torch.zeros_like(token_rewards)
        for row, (start, scored) in enumerate(zip(starts, self._rewarder.score(prompts, ids), strict=True)):
            end = min(start + len(scored.rewards), mask.shape[1])
            token_rewards[row, start:end] = torch.tensor(scored.rewards[: end - start], device=mask.device)
            is_scored[row, start:end] = 1.0
        groups = [tuple(row.tolist()) for row in prompt_ids]
        return leave_one_out_advantages(token_rewards, mask * is_scored, groups, scale=self._scale)
