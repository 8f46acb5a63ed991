"""verl's own data structures, registries and functions with token rewards from a running service."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
import torch

from redline import RewardClient
from redline.integrations.token_rewarder import TokenRewarder

CHAT = [{"role": "user", "content": "How do I reset my router?"}]
RESPONSES = ["Hold the round button.", "I am sorry.", "Wait ten seconds 🙂 then", "Hold."]


@pytest.fixture
def scored(served: str) -> list[Any]:
    """The native answer."""
    with RewardClient(served) as client:
        return list(client.score([{"prompt": CHAT, "response": text} for text in RESPONSES]).scored())


@pytest.fixture
def ids(policy_tokenizer: Any) -> list[list[int]]:
    return [[*policy_tokenizer(text)["input_ids"], policy_tokenizer.eos_token_id] for text in RESPONSES]


def test_the_agent_loop_output_has_token_rewards_in_rm_scores(
    served: str, policy_tokenizer: Any, ids: list[list[int]], scored: list[Any]
) -> None:
    from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, AgentLoopOutput

    from redline.integrations.verl import with_token_rewards

    rewarder = TokenRewarder(policy_tokenizer, url=served)
    output = AgentLoopOutput(
        prompt_ids=[5, 6], response_ids=ids[0], response_mask=[1] * len(ids[0]), metrics=AgentLoopMetrics()
    )
    result = asyncio.run(with_token_rewards(output, CHAT, rewarder))
    assert result.reward_score == pytest.approx(scored[0].score, rel=1e-4)
    fields = result.as_dict()
    assert fields["rm_scores"].shape == fields["responses"].shape
    assert fields["rm_scores"].tolist() == pytest.approx(scored[0].rewards, rel=1e-3, abs=1e-4)
    assert "token_rewards" not in fields


def test_verl_s_registries_have_the_agent_loop_and_the_estimator(scored: list[Any]) -> None:
    from verl.experimental.agent_loop.agent_loop import _agent_loop_registry
    from verl.trainer.ppo.core_algos import get_adv_estimator_fn

    import redline.integrations.verl as integration

    assert "redline_agent" in _agent_loop_registry
    assert get_adv_estimator_fn("redline") is integration.estimate


def test_a_data_proto_gets_a_reward_tensor_and_verl_s_advantages(
    served: str, policy_tokenizer: Any, ids: list[list[int]], scored: list[Any]
) -> None:
    from verl import DataProto
    from verl.trainer.ppo.core_algos import get_adv_estimator_fn

    from redline.integrations.verl import TokenRewardManager

    width = max(map(len, ids)) + 2
    responses = torch.full((4, width), policy_tokenizer.pad_token_id)
    mask = torch.zeros(4, width, dtype=torch.long)
    for row, own in enumerate(ids):
        responses[row, : len(own)] = torch.tensor(own)
        mask[row, : len(own)] = 1
    prompts = torch.tensor([[5, 6]] * 4)
    raw = np.empty(4, dtype=object)
    raw[:] = [CHAT] * 4
    data = DataProto.from_dict(
        tensors={
            "prompts": prompts,
            "responses": responses,
            "attention_mask": torch.cat([torch.ones(4, 2, dtype=torch.long), mask], 1),
        },
        non_tensors={"raw_prompt": raw},
    )
    manager = TokenRewardManager(policy_tokenizer, rewarder=TokenRewarder(policy_tokenizer, url=served))
    rewards = manager(data)
    assert rewards.shape == (4, width)
    assert torch.equal(rewards, manager(data, return_dict=True)["reward_tensor"])
    assert rewards.sum(1).tolist() == pytest.approx([item.score for item in scored], rel=1e-4, abs=1e-3)
    for row, item in enumerate(scored):
        assert rewards[row, : len(ids[row])].tolist() == pytest.approx(item.rewards, rel=1e-3, abs=1e-4)
    index = np.array(["a", "a", "b", "b"], dtype=object)
    advantages, _ = get_adv_estimator_fn("redline")(token_level_rewards=rewards, response_mask=mask, index=index)
    assert advantages.shape == (4, width)
    assert bool((advantages[mask == 0] == 0).all())


def test_the_custom_reward_function_is_the_native_score(
    served: str, scored: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDLINE_URL", served)
    from redline.integrations.verl_reward import compute_score

    result = asyncio.run(compute_score("any", RESPONSES[0], None, {"prompt": CHAT}))
    assert result["score"] == pytest.approx(scored[0].score, rel=1e-4)
    with pytest.raises(KeyError):
        asyncio.run(compute_score("any", RESPONSES[0], None, {}))


def test_verl_loads_the_reward_function_by_path() -> None:
    from pathlib import Path

    from verl.utils.import_utils import load_extern_object

    import redline.integrations.verl as integration

    path = Path(integration.__file__).with_name("verl_reward.py")
    assert callable(load_extern_object(str(path), "compute_score"))


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_verl_s_reward_model_client_gets_the_native_score(
    served: str, policy_tokenizer: Any, ids: list[list[int]], scored: list[Any], engine: str
) -> None:
    """``compute_score_disrm`` as the reward loop calls it, every sample at once; 4xx are fatal to it."""
    from types import SimpleNamespace

    import aiohttp
    from verl import DataProto
    from verl.experimental.reward_loop.reward_loop import RewardLoopWorker

    rollout = SimpleNamespace(name=engine)
    model = SimpleNamespace(rollout=rollout, model_path="any")
    worker = object.__new__(RewardLoopWorker)
    worker.config = SimpleNamespace(reward=SimpleNamespace(reward_model=model))
    worker.input_tokenizer = worker.reward_model_tokenizer = policy_tokenizer
    worker.reward_router_address = served.removeprefix("http://")

    def sample(chat: list[dict[str, str]], row: list[int]) -> Any:
        tensors = {"responses": torch.tensor([row]), "attention_mask": torch.ones(1, len(row), dtype=torch.long)}
        return DataProto.from_dict(tensors=tensors, non_tensors={"raw_prompt": np.array([chat], dtype=object)})

    async def every() -> list[Any]:
        return await asyncio.gather(*[worker.compute_score_disrm(sample(CHAT, row)) for row in ids])

    result = [item["reward_score"] for item in asyncio.run(every())]
    assert result == pytest.approx([item.score for item in scored], rel=1e-4)
    with pytest.raises(aiohttp.ClientResponseError, match="422"):
        asyncio.run(worker._post_request({"model": "any", "input": "no markup"}, "classify"))
