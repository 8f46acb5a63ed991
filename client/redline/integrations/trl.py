"""TRL: a reward function for GRPO and RLOO, and a GRPO trainer that learns from token rewards. TRL 0.26 or newer."""

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

    Scores the ids that were sampled, so the end token counts and no text is tokenised twice. ``latest`` keeps the
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
        """One number a completion. Raises ItemsFailedError where one cannot be scored: a failure is never a zero."""
        self.latest = self._rewarder.score(prompts, completion_ids)
        log_metric = columns.get("log_metric")
        if log_metric is not None and self.latest:
            rewards = [reward for item in self.latest for reward in item.rewards]
            log_metric("redline/blamed_share", sum(reward < 0 for reward in rewards) / max(1, len(rewards)))
        return [told.score for told in self.latest]


class TokenGRPOTrainer(GRPOTrainer):  # type: ignore[misc]
    """GRPO whose advantages are ``(B, T)``: a token is credited with what it and its successors were given.

    One of ``reward_funcs`` must be a ``RedlineReward``. Its token rewards, times its weight, and the weighted numbers
    of the other reward functions, on the last token, are what ``leave_one_out_advantages`` makes advantages of. TRL's
    own loss takes advantages of that shape; its logs show the scalars. ``scale_rewards="none"`` switches the division
    by the group's standard deviation off.

    Args:
        gamma: discount a token.
    """

    def __init__(self, *arguments: Any, gamma: float = 1.0, **options: Any) -> None:
        super().__init__(*arguments, **options)
        own = [n for n, function in enumerate(self.reward_funcs) if isinstance(function, RedlineReward)]
        if len(own) != 1:
            raise ValueError(f"TokenGRPOTrainer wants one RedlineReward among its reward_funcs, there are {len(own)}")
        if self.scale_rewards not in ("group", "none"):
            raise ValueError(
                f"scale_rewards={self.scale_rewards!r}: token advantages are scaled by group, or not at all"
            )
        if getattr(self, "multi_objective_aggregation", "sum_then_normalize") != "sum_then_normalize":
            raise ValueError("token advantages are made of the weighted sum of all rewards")
        self._own = own[0]
        self._gamma = gamma
        self._numbers: Tensor | None = None

    def _calculate_rewards(self, *arguments: Any, **options: Any) -> Tensor:
        numbers: Tensor = super()._calculate_rewards(*arguments, **options)
        self._numbers = numbers
        return numbers

    def _generate_and_score_completions(self, inputs: list[Any]) -> dict[str, Any]:
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        group = self.num_generations if self.model.training else self.num_generations_eval
        mask = output["completion_mask"]
        if "tool_mask" in output:
            mask = mask * output["tool_mask"]
        rewards = self._token_rewards(mask)
        if group < 2:  # an evaluation of single completions has nothing to compare with
            return output
        every = [self.accelerator.pad_across_processes(one, dim=1) for one in (rewards, mask)]
        every = [self.accelerator.gather(one) for one in every]
        advantages = leave_one_out_advantages(
            every[0],
            every[1],
            [row // group for row in range(len(every[0]))],
            gamma=self._gamma,
            scale=self.scale_rewards != "none",
        )
        count, width = mask.shape
        start = self.accelerator.process_index * count
        output["advantages"] = advantages[start : start + count, :width]
        return output

    def _token_rewards(self, mask: Tensor) -> Tensor:
        """(B, T), of this process's completions."""
        assert self._numbers is not None
        told: list[TokenRewards] = self.reward_funcs[self._own].latest
        rewards = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device)
        for row, one in enumerate(told):
            rewards[row, : len(one.rewards)] = torch.tensor(one.rewards, device=mask.device)
        weights = self.reward_weights.to(mask.device)
        start = self.accelerator.process_index * len(told)
        others = self._numbers[start : start + len(told)] * weights
        others[:, self._own] = 0.0
        last = (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).argmax(1)
        rewards *= weights[self._own]
        rewards[torch.arange(len(told), device=mask.device), last] += others.nansum(1)
        return rewards
