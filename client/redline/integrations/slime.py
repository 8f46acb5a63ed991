"""slime: a reward hook, and the two hooks that carry token rewards into its advantages. slime 0.3.

    --custom-rm-path redline.integrations.slime.reward --reward-key score
    --custom-reward-post-process-path redline.integrations.slime.post_process
    --custom-advantage-function-path redline.integrations.slime.advantages

The service is at ``REDLINE_URL`` (and ``REDLINE_KEY``) in the environment.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from redline.integrations.token_rewarder import TokenRewarder


@cache
def _rewarder(tokenizer_path: str) -> TokenRewarder:
    from transformers import AutoTokenizer

    return TokenRewarder(AutoTokenizer.from_pretrained(tokenizer_path, trust_remote_code=False))


async def reward(args: Any, sample: Any, **options: Any) -> dict[str, Any]:
    """``{"score": float, "token_rewards": [one a response id]}`` of a ``Sample``.

    The tokenizer is that of ``args.hf_checkpoint``. Raises ItemsFailedError where the sample cannot be scored.
    """
    ids = list(sample.tokens[len(sample.tokens) - sample.response_length :])
    [told] = await _rewarder(args.hf_checkpoint).ascore([sample.prompt], [ids])
    mask = sample.loss_mask or [1] * len(ids)
    rewards = [one if written else 0.0 for one, written in zip(told.rewards, mask, strict=True)]
    return {"score": told.score, "token_rewards": rewards}


def post_process(args: Any, samples: list[Any]) -> tuple[list[float], list[Any]]:
    """``(raw rewards, token advantages)``: the scalars for slime's logs, and a 1-D tensor a sample for ``advantages``.

    A group is the samples with one ``group_index``, or ``args.n_samples_per_prompt`` in a row where they have none.
    """
    import torch

    from redline.token_advantages import leave_one_out_advantages

    told = [torch.tensor(sample.reward["token_rewards"], dtype=torch.float32) for sample in samples]
    width = max(len(one) for one in told)
    rewards, mask = torch.zeros(len(told), width), torch.zeros(len(told), width)
    for row, (one, sample) in enumerate(zip(told, samples, strict=True)):
        rewards[row, : len(one)] = one
        mask[row, : len(one)] = torch.tensor(sample.loss_mask or [1] * len(one), dtype=torch.float32)
    marks = [getattr(sample, "group_index", None) for sample in samples]
    groups = [row // args.n_samples_per_prompt if mark is None else mark for row, mark in enumerate(marks)]
    advantages = leave_one_out_advantages(rewards, mask, groups)
    return (
        [float(sample.reward["score"]) for sample in samples],
        [advantages[row, : len(one)] for row, one in enumerate(told)],
    )


def advantages(args: Any, rollout_data: dict[str, Any]) -> None:
    """Put what ``post_process`` made into ``rollout_data``, on the device and in the shapes of its ``kl``.

    Raises:
        ValueError: the sequences are split over several devices (context parallelism): their parts are not cut here.
    """
    told = [
        one.to(device=like.device, dtype=like.dtype)
        for one, like in zip(rollout_data["rewards"], rollout_data["kl"], strict=True)
    ]
    for one, like in zip(told, rollout_data["kl"], strict=True):
        if one.shape != like.shape:
            raise ValueError(
                f"{tuple(one.shape)} advantages for {tuple(like.shape)} tokens; context parallelism is not served"
            )
    rollout_data["advantages"] = told
    rollout_data["returns"] = list(told)
