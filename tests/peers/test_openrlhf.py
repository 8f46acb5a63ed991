"""OpenRLHF's own executor, remote-reward client and experience, against a running service."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from redline import RewardClient

PROMPT = "<|user|>How do I reset my router?<|end|><|assistant|>"
CHAT = [{"role": "user", "content": "How do I reset my router?"}]
RESPONSES = ["Hold the round button.", "I am sorry.", "Wait ten seconds 🙂 then"]


class Engine:
    """What OpenRLHF asks its inference engine; answers with given texts."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    async def generate(self, prompt_ids: list[int], params: Any, multi_modal_data: Any = None) -> Any:
        text, is_cut = params.text, params.is_cut
        ids = list(self._tokenizer(text)["input_ids"]) + ([] if is_cut else [self._tokenizer.eos_token_id])
        output = SimpleNamespace(token_ids=ids, finish_reason="length" if is_cut else "stop", logprobs=None)
        return SimpleNamespace(outputs=[output])


def params(text: str, is_cut: bool = False) -> Any:
    return SimpleNamespace(max_tokens=64, logprobs=None, text=text, is_cut=is_cut)


def native(url: str, texts: list[str], **more: Any) -> list[Any]:
    with RewardClient(url) as client:
        return list(client.score([{"prompt": CHAT, "response": text, **more} for text in texts]).scored())


def test_openrlhf_s_remote_reward_client_gets_the_native_score(served: str, policy_tokenizer: Any) -> None:
    from openrlhf.utils.agent import SingleTurnAgentExecutor

    executor = SingleTurnAgentExecutor(f"{served}/get_reward")

    async def run() -> list[dict[str, Any]]:
        engine = Engine(policy_tokenizer)
        return await asyncio.gather(
            *(
                executor.execute(PROMPT, None, params(text, text == RESPONSES[2]), 512, policy_tokenizer, engine)
                for text in RESPONSES * 20
            )
        )

    outputs = asyncio.run(run())
    expected = native(served, RESPONSES[:2]) + native(served, RESPONSES[2:], finished=False)
    for n, output in enumerate(outputs):
        item = expected[n % 3]
        assert output["reward"] == output["scores"] == pytest.approx([item.score], rel=1e-4)
        assert output["extra_logs"]["redline_tokens"] == [float(len(item.rewards))]


def test_a_thousand_concurrent_samples_all_get_their_scores(served: str, policy_tokenizer: Any) -> None:
    from openrlhf.utils.agent import SingleTurnAgentExecutor

    executor = SingleTurnAgentExecutor(f"{served}/get_reward")
    texts = [f"Hold the round button {n} times." for n in range(1000)]

    async def run() -> list[dict[str, Any]]:
        engine = Engine(policy_tokenizer)
        return await asyncio.gather(
            *(executor.execute(PROMPT, "", params(text), 512, policy_tokenizer, engine) for text in texts)
        )

    actual = [output["reward"][0] for output in asyncio.run(run())]
    assert actual == pytest.approx([item.score for item in native(served, texts)], rel=1e-4)


def test_openrlhf_loads_the_reward_function_file(
    served: str, policy_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from openrlhf.utils.agent import SingleTurnAgentExecutor

    import redline.integrations.openrlhf as integration

    monkeypatch.setenv("REDLINE_URL", served)
    executor = SingleTurnAgentExecutor(str(integration.__file__))
    output = asyncio.run(
        executor.execute(PROMPT, "", params(RESPONSES[0]), 512, policy_tokenizer, Engine(policy_tokenizer))
    )
    assert output["reward"] == pytest.approx([native(served, RESPONSES[:1])[0].score], rel=1e-4)


def test_token_rewards_reach_the_experience_and_are_spread_over_its_actions(
    served: str, policy_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from openrlhf.trainer.ppo_utils.experience import Experience

    from redline.integrations.openrlhf import TOKEN_REWARDS, AgentExecutor, spread

    monkeypatch.setenv("REDLINE_URL", served)
    executor = AgentExecutor()
    engine = Engine(policy_tokenizer)

    async def run() -> list[dict[str, Any]]:
        return [await executor.execute(PROMPT, "", params(t), 512, policy_tokenizer, engine) for t in RESPONSES]

    outputs = asyncio.run(run())
    expected = native(served, RESPONSES)
    experiences = []
    for output, item in zip(outputs, expected, strict=True):
        assert output["reward"] == pytest.approx(item.score, rel=1e-4)
        [(start, end)] = output["action_ranges"]
        assert len(output["extra_logs"][TOKEN_REWARDS]) == end - start
        length = len(output["observation_tokens"])
        mask = torch.zeros(length)
        mask[start:end] = 1
        # as OpenRLHF's samples generator makes them, and then puts them together
        experiences.append(
            Experience(
                sequences=torch.tensor(output["observation_tokens"]).unsqueeze(0),
                attention_mask=torch.ones(1, length),
                action_mask=mask[1:].unsqueeze(0),
                rewards=torch.tensor([output["reward"]]),
                info={TOKEN_REWARDS: torch.tensor([output["extra_logs"][TOKEN_REWARDS]])},
            )
        )
    together = Experience.concat_experiences(experiences, policy_tokenizer.pad_token_id)
    mask = together.action_mask.bool()
    last = mask.shape[1] - 1 - mask.int().flip(1).argmax(1)
    baseline = 0.75
    reward = torch.zeros(mask.shape).scatter_(1, last[:, None], (together.rewards - baseline)[:, None])
    actual = spread(reward, together)
    assert TOKEN_REWARDS not in together.info
    assert bool((actual[~mask] == 0).all())
    torch.testing.assert_close(actual.sum(1), reward.sum(1), rtol=1e-4, atol=1e-4)
    for row, item in enumerate(expected):
        own = actual[row][mask[row]].tolist()
        assert own[:-1] == pytest.approx(item.rewards[:-1], rel=1e-3, abs=1e-4)
        assert own[-1] == pytest.approx(item.rewards[-1] - baseline, rel=1e-3, abs=1e-3)
