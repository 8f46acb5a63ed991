"""TRL's own trainers, for real steps, against a running service."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from redline import RewardClient
from tests.conftest import build_causal

QUESTIONS = ["How do I reset my router?", "How do I open the panel?"]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory, policy_tokenizer: Any) -> str:
    """A policy's folder."""
    folder = str(tmp_path_factory.mktemp("policy"))
    build_causal(len(policy_tokenizer), seed=3).save_pretrained(folder)
    policy_tokenizer.save_pretrained(folder)
    return folder


def arguments(kind: type, out: Path, **more: Any) -> Any:
    return kind(
        output_dir=str(out),
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=12,
        max_steps=2,
        logging_steps=1,
        learning_rate=1e-3,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
        **more,
    )


def prompts(is_chat: bool) -> Any:
    from datasets import Dataset

    prompts: list[Any] = [[{"role": "user", "content": q}] for q in QUESTIONS] if is_chat else list(QUESTIONS)
    return Dataset.from_dict({"prompt": prompts})


@pytest.mark.parametrize("is_chat", [True, False])
@pytest.mark.parametrize("kind", ["GRPO", "RLOO"])
def test_the_reward_function_drives_trl_s_trainers(
    served: str, policy: str, policy_tokenizer: Any, tmp_path: Path, kind: str, is_chat: bool
) -> None:
    import trl

    from redline.integrations.trl import RedlineReward

    reward = RedlineReward(served, policy_tokenizer)
    trainer = getattr(trl, f"{kind}Trainer")(
        model=policy,
        reward_funcs=reward,
        args=arguments(getattr(trl, f"{kind}Config"), tmp_path),
        train_dataset=prompts(is_chat),
        processing_class=policy_tokenizer,
    )
    trainer.train()
    logged = [row for row in trainer.state.log_history if "reward" in row]
    assert len(logged) == 2
    assert all(math.isfinite(row["reward"]) for row in logged)
    assert logged[-1]["reward"] == pytest.approx(
        sum(token_rewards.score for token_rewards in reward.latest) / 4, rel=1e-4
    )
    if kind == "GRPO":
        assert all(0.0 <= row["redline/blamed_share"] <= 1.0 for row in logged)


def test_token_rewards_reach_trl_s_loss_with_their_shape_and_sum(
    served: str, policy: str, policy_tokenizer: Any, tmp_path: Path
) -> None:
    import torch
    from trl import GRPOConfig

    from redline.integrations.trl import RedlineReward, TokenGRPOTrainer

    seen: list[dict[str, Any]] = []

    class Watched(TokenGRPOTrainer):
        def _generate_and_score_completions(self, inputs: list[Any]) -> dict[str, Any]:
            output = super()._generate_and_score_completions(inputs)
            token_rewards = self.reward_funcs[0].latest
            seen.append({**output, "told": token_rewards, "rewards": self._token_rewards(output["completion_mask"])})
            return output

    def brief(completions: list[Any], **columns: Any) -> list[float]:
        return [0.25] * len(completions)

    trainer = Watched(
        model=policy,
        reward_funcs=[RedlineReward(served, policy_tokenizer), brief],
        args=arguments(GRPOConfig, tmp_path, reward_weights=[1.0, 2.0]),
        train_dataset=prompts(True),
        processing_class=policy_tokenizer,
    )
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    trainer.train()
    assert len(seen) == 2
    with RewardClient(served) as client:
        for output in seen:
            ids, mask, advantages = output["completion_ids"], output["completion_mask"], output["advantages"]
            assert advantages.shape == ids.shape == (4, ids.shape[1])
            assert bool((advantages[mask == 0] == 0).all())
            # what the other function gave stands on the last token, twice as heavy
            sums = torch.tensor([token_rewards.score for token_rewards in output["told"]]) + 0.5
            torch.testing.assert_close(output["rewards"].sum(1), sums, rtol=1e-5, atol=1e-4)
            # advantages of a group cancel out at every token, but for the division by its deviation
            torch.testing.assert_close(
                (advantages * 1.0).masked_fill(mask == 0, 0.0)[:, 0].sum(), torch.tensor(0.0), rtol=0, atol=1e-3
            )
            # the service, asked in its own words, gives what arrived
            own = ids[0][mask[0].bool()].tolist()
            text = policy_tokenizer.decode(own, skip_special_tokens=False).removesuffix("<|end|>")
            item = {"prompt": [{"role": "user", "content": QUESTIONS[0]}], "response": text, "finished": own[-1] == 0}
            other = {**item, "prompt": [{"role": "user", "content": QUESTIONS[1]}]}
            scores = [item.score for item in client.score([item, other]).scored()]
            assert any(abs(score - output["told"][0].score) < 1e-3 for score in scores)
    after = list(trainer.model.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_failed_response_raises_in_trl(policy_tokenizer: Any, served: str) -> None:
    from redline import ItemsFailedError
    from redline.integrations.trl import RedlineReward

    reward = RedlineReward(served, policy_tokenizer)
    with pytest.raises(ItemsFailedError):
        reward(prompts=["Why?"], completions=[""], completion_ids=[[5] * 4000])
