"""TRL 0.26 or newer: a reward function for GRPO and RLOO, and a GRPO trainer with token rewards."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from trl import GRPOTrainer

from redline.client import RewardClient
from redline.integrations.token_rewarder import TokenRewarder, TokenRewards
from redline.token_advantages import leave_one_out_advantages
from redline.wire import ScoreOptions


class RedlineReward:
    """A reward function: ``GRPOTrainer(reward_funcs=RedlineReward(url, tokenizer), ...)``, or RLOO's.

    Scores the sampled token ids, so that the end token counts and no text is tokenized twice. ``latest`` keeps the
    token rewards of the last call for ``TokenGRPOTrainer``.

    Args:
        url, key: of the service; by default ``REDLINE_URL`` and ``REDLINE_KEY``.
        tokenizer: the policy's.
        end_ids: every id that ends a response; by default the tokenizer's end token.
    """

    __name__ = "redline"

    def __init__(
        self,
        url: str | None,
        tokenizer: Any,
        *,
        key: str | None = None,
        end_ids: Collection[int] | None = None,
        model: str = "default",
        options: ScoreOptions | None = None,
        client: RewardClient | None = None,
    ) -> None:
        self._rewarder = TokenRewarder(
            tokenizer, url=url, key=key, end_ids=end_ids, model=model, options=options, client=client
        )
        self.latest: list[TokenRewards] = []

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        **columns: Any,
    ) -> list[float]:
        """One score per completion. Raises ItemsFailedError if one cannot be scored; it never gets score 0 instead."""
        self.latest = self._rewarder.score(prompts, completion_ids)
        log_metric = columns.get("log_metric")
        if log_metric is not None and self.latest:
            rewards = [reward for item in self.latest for reward in item.rewards]
            log_metric("redline/blamed_share", sum(reward < 0 for reward in rewards) / max(1, len(rewards)))
        return [item.score for item in self.latest]


class TokenGRPOTrainer(GRPOTrainer):  # type: ignore[misc]
    """GRPO whose advantages are ``(B, T)``: a token's advantage comes from its own reward and those of later tokens.

    One of ``reward_funcs`` must be a ``RedlineReward``. ``leave_one_out_advantages`` gets its token rewards, times its
    weight, plus the weighted scores of the other reward functions on the last token. TRL's loss accepts advantages of
    that shape; its logs show the scores. ``scale_rewards="none"`` turns off the division by the group's standard
    deviation.

    Args:
        gamma: discount per token.
    """

    def __init__(self, *arguments: Any, gamma: float = 1.0, **options: Any) -> None:
        super().__init__(*arguments, **options)
        redline_functions = [n for n, function in enumerate(self.reward_funcs) if isinstance(function, RedlineReward)]
        if len(redline_functions) != 1:
            raise ValueError(
                f"TokenGRPOTrainer needs exactly one RedlineReward among its reward_funcs, not {len(redline_functions)}"
            )
        if self.scale_rewards not in ("group", "none"):
            raise ValueError(f"scale_rewards={self.scale_rewards!r}: token advantages need 'group' or 'none'")
        if getattr(self, "multi_objective_aggregation", "sum_then_normalize") != "sum_then_normalize":
            raise ValueError("token advantages need multi_objective_aggregation='sum_then_normalize'")
        self._redline_index = redline_functions[0]
        self._gamma = gamma
        self._scores: Tensor | None = None

    def _calculate_rewards(self, *arguments: Any, **options: Any) -> Tensor:
        scores: Tensor = super()._calculate_rewards(*arguments, **options)
        self._scores = scores
        return scores

    def _generate_and_score_completions(self, inputs: list[Any]) -> dict[str, Any]:
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        group = self.num_generations if self.model.training else self.num_generations_eval
        mask = output["completion_mask"]
        if "tool_mask" in output:
            mask = mask * output["tool_mask"]
        rewards = self._token_rewards(mask)
        if group < 2:  # single completions in an evaluation have no group to compare with
            return output
        gathered = [self.accelerator.pad_across_processes(item, dim=1) for item in (rewards, mask)]
        gathered = [self.accelerator.gather(item) for item in gathered]
        advantages = leave_one_out_advantages(
            gathered[0],
            gathered[1],
            [row // group for row in range(len(gathered[0]))],
            gamma=self._gamma,
            scale=self.scale_rewards != "none",
        )
        count, width = mask.shape
        start = self.accelerator.process_index * count
        output["advantages"] = advantages[start : start + count, :width]
        return output

    def _token_rewards(self, mask: Tensor) -> Tensor:
        """Token rewards (B, T) of this process's completions."""
        assert self._scores is not None
        items: list[TokenRewards] = self.reward_funcs[self._redline_index].latest
        rewards = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device)
        for row, item in enumerate(items):
            rewards[row, : len(item.rewards)] = torch.tensor(item.rewards, device=mask.device)
        weights = self.reward_weights.to(mask.device)
        start = self.accelerator.process_index * len(items)
        others = self._scores[start : start + len(items)] * weights
        others[:, self._redline_index] = 0.0
        last = (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).argmax(1)
        rewards *= weights[self._redline_index]
        rewards[torch.arange(len(items), device=mask.device), last] += others.nansum(1)
        return rewards
