"""slime 0.3: a reward hook, and two hooks that turn token rewards into advantages.

    --custom-rm-path redline.integrations.slime.reward --reward-key score
    --custom-reward-post-process-path redline.integrations.slime.post_process
    --custom-advantage-function-path redline.integrations.slime.advantages

The service's URL is ``REDLINE_URL`` in the environment (its key ``REDLINE_KEY``).
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
    """``{"score": float, "token_rewards": [one per response id]}`` of a ``Sample``.

    The tokenizer is that of ``args.hf_checkpoint``. Raises ItemsFailedError if the sample cannot be scored.
    """
    ids = list(sample.tokens[len(sample.tokens) - sample.response_length :])
    [result] = await _rewarder(args.hf_checkpoint).ascore([sample.prompt], [ids])
    mask = sample.loss_mask or [1] * len(ids)
    rewards = [reward if is_sampled else 0.0 for reward, is_sampled in zip(result.rewards, mask, strict=True)]
    return {"score": result.score, "token_rewards": rewards}


def post_process(args: Any, samples: list[Any]) -> tuple[list[float], list[Any]]:
    """``(raw rewards, token advantages)``: scores for slime's logs, and a 1-D tensor per sample for ``advantages``.

    A group are the samples with the same ``group_index``; without it, ``args.n_samples_per_prompt`` consecutive
    samples.
    """
    import torch

    from redline.token_advantages import leave_one_out_advantages

    token_rewards = [torch.tensor(sample.reward["token_rewards"], dtype=torch.float32) for sample in samples]
    width = max(len(values) for values in token_rewards)
    rewards, mask = torch.zeros(len(token_rewards), width), torch.zeros(len(token_rewards), width)
    for row, (values, sample) in enumerate(zip(token_rewards, samples, strict=True)):
        rewards[row, : len(values)] = values
        mask[row, : len(values)] = torch.tensor(sample.loss_mask or [1] * len(values), dtype=torch.float32)
    indices = [getattr(sample, "group_index", None) for sample in samples]
    groups = [row // args.n_samples_per_prompt if index is None else index for row, index in enumerate(indices)]
    advantages = leave_one_out_advantages(rewards, mask, groups)
    return (
        [float(sample.reward["score"]) for sample in samples],
        [advantages[row, : len(values)] for row, values in enumerate(token_rewards)],
    )


def advantages(args: Any, rollout_data: dict[str, Any]) -> None:
    """Puts the advantages from ``post_process`` into ``rollout_data``, on the device and in the shapes of its ``kl``.

    Raises:
        ValueError: the sequences are split over several devices (context parallelism), which is not supported.
    """
    moved = [
        values.to(device=like.device, dtype=like.dtype)
        for values, like in zip(rollout_data["rewards"], rollout_data["kl"], strict=True)
    ]
    for values, like in zip(moved, rollout_data["kl"], strict=True):
        if values.shape != like.shape:
            raise ValueError(
                f"{tuple(values.shape)} advantages for {tuple(like.shape)} tokens; context parallelism is not supported"
            )
    rollout_data["advantages"] = moved
    rollout_data["returns"] = list(moved)
