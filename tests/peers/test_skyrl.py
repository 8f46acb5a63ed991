"""SkyRL's own validation, post-processing and tensors on token rewards from a running service."""

from __future__ import annotations

import asyncio
import typing
from typing import Any

import pytest
import torch
import typing_extensions

from redline.integrations.skyrl import TokenRewardGenerator, register_estimator
from redline.integrations.token_rewarder import TokenRewarder
from redline.token_advantages import leave_one_out_advantages

typing.TypedDict = typing_extensions.TypedDict  # what pydantic wants of SkyRL's types below Python 3.12

RESPONSES = ["Hold the round button.", "I am sorry.", "Wait ten seconds 🙂 then", "Hold."]
PROMPTS = [[{"role": "user", "content": "How do I reset my router?"}]] * 4


@pytest.fixture
def output(served: str, policy_tokenizer: Any) -> dict[str, Any]:
    """A SkyRL generator's output after our wrapper."""
    from skyrl.train.generators.base import GeneratorInterface

    class Inner(GeneratorInterface):  # type: ignore[misc]
        async def generate(self, input_batch: Any, disable_tqdm: bool = False) -> Any:
            ids = [[*policy_tokenizer(text)["input_ids"], policy_tokenizer.eos_token_id] for text in RESPONSES]
            return {
                "prompt_token_ids": [[5, 6, 7]] * 4,
                "response_ids": ids,
                "rewards": [0.0] * 4,
                "loss_masks": [[1] * len(row) for row in ids],
                "stop_reasons": ["stop"] * 4,
                "rollout_metrics": None,
                "rollout_logprobs": None,
            }

    generator = TokenRewardGenerator(Inner(), TokenRewarder(policy_tokenizer, url=served))
    return asyncio.run(generator.generate({"prompts": PROMPTS}))


def test_skyrl_s_validation_passes_and_its_tensors_keep_every_reward(
    output: dict[str, Any], policy_tokenizer: Any
) -> None:
    from skyrl.train.dataset.preprocess import convert_prompts_responses_to_batch_tensors
    from skyrl.train.utils.trainer_utils import validate_generator_output

    validate_generator_output(4, output)
    tensors = convert_prompts_responses_to_batch_tensors(
        policy_tokenizer, output["prompt_token_ids"], output["response_ids"], output["rewards"], output["loss_masks"]
    )
    sequences, _, mask, rewards = tensors[:4]
    assert rewards.shape == mask.shape
    torch.testing.assert_close(rewards.sum(1), torch.tensor([sum(row) for row in output["rewards"]]))
    for row, own in enumerate(output["rewards"]):
        assert rewards[row][mask[row].bool()].tolist() == pytest.approx(own, rel=1e-5)
    assert sequences.shape[0] == 4


def its_advantages(rewards: Any, mask: Any, index: Any, estimator: str, *, grpo_norm_by_std: bool) -> Any:
    """SkyRL's own function, by a registered estimator's name."""
    from skyrl.backends.skyrl_train.utils.ppo_utils import compute_advantages_and_returns

    return compute_advantages_and_returns(
        token_level_rewards=rewards,
        response_mask=mask,
        index=index,
        adv_estimator=estimator,
        values=None,
        config=None,
        grpo_norm_by_std=grpo_norm_by_std,
        gamma=1.0,
        lambd=1.0,
    )


def test_skyrl_s_registry_accepts_the_estimator(output: dict[str, Any], policy_tokenizer: Any) -> None:
    from skyrl.train.dataset.preprocess import convert_prompts_responses_to_batch_tensors

    register_estimator("redline_test")
    tensors = convert_prompts_responses_to_batch_tensors(
        policy_tokenizer, output["prompt_token_ids"], output["response_ids"], output["rewards"], output["loss_masks"]
    )
    mask, rewards = tensors[2], tensors[3]
    index = ["a", "a", "b", "b"]
    advantages, returns = its_advantages(rewards, mask, index, "redline_test", grpo_norm_by_std=False)
    torch.testing.assert_close(advantages, leave_one_out_advantages(rewards, mask, index, scale=False))
    assert torch.equal(advantages, returns)


def test_padding_rows_of_batches_get_zeros() -> None:
    from skyrl.backends.skyrl_train.training_batch import TrainingInputBatch, pad_training_input_batch

    register_estimator("redline_padded")
    batch = TrainingInputBatch({"rewards": torch.randn(4, 5), "response_mask": torch.ones(4, 5)})
    batch.metadata = {"uids": ["a", "a", "b", "b"]}
    padded = pad_training_input_batch(batch, 2)
    advantages, _ = its_advantages(
        padded["rewards"], padded["response_mask"], padded.metadata["uids"], "redline_padded", grpo_norm_by_std=True
    )
    assert advantages.shape == (6, 5)
    assert bool((advantages[4:] == 0).all())
    assert bool((advantages[:4] != 0).any())
