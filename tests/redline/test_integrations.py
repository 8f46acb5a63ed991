"""Token rewards in other frameworks' shapes: one a sampled id, the sum unchanged, padding and foreign tokens empty."""

from __future__ import annotations

import asyncio
import math
import random
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from redline import AsyncRewardClient, ItemsFailedError, RewardClient
from redline.integrations import nemo_rl, prime_rl, skyrl, slime, verl_reward
from redline.integrations.token_rewarder import ClientPerEventLoop, TokenRewarder, decode_sampled
from redline.testing import FakeService
from redline.token_advantages import leave_one_out_advantages, rewards_to_go
from tests.tokenizer_families import TOKENIZERS, tokenizer_of

TEXTS = ["Hold the round button.", "I am sorry 🙂", "naïve café, don't!", "x"]


@pytest.fixture
def fake() -> FakeService:
    """A word's reward is minus its length, the end token's 0.5."""
    return FakeService(lambda word: -float(len(word)), end_reward=0.5)


@pytest.fixture(params=TOKENIZERS)
def rewarder(request: pytest.FixtureRequest, fake: FakeService) -> TokenRewarder:
    return make_rewarder(tokenizer_of(request.param), fake)


def make_rewarder(tokenizer: Any, fake: FakeService) -> TokenRewarder:
    return TokenRewarder(
        tokenizer, client=RewardClient(transport=fake.transport), aclient=AsyncRewardClient(transport=fake.transport)
    )


def encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


# --- sampled ids -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", TOKENIZERS)
@pytest.mark.parametrize("is_finished", [True, False])
@pytest.mark.parametrize("padding", [0, 3])
def test_every_id_has_a_reward_and_the_sum_is_the_score(
    family: str, is_finished: bool, padding: int, fake: FakeService
) -> None:
    tokenizer = tokenizer_of(family)
    rewarder = make_rewarder(tokenizer, fake)
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    if end == pad and padding and not is_finished:
        return  # cannot be told from a response that ended
    rows = [encode(tokenizer, text) + [end] * is_finished + [pad] * padding for text in TEXTS]
    actual = rewarder.score(["Why?"] * len(rows), rows)
    assert actual == asyncio.run(rewarder.ascore(["Why?"] * len(rows), rows))
    for response, row, item in zip(actual, rows, fake.requests[0].items, strict=True):
        assert len(response.rewards) == len(row)
        assert math.fsum(response.rewards) == pytest.approx(response.score, abs=1e-9)
        assert response.rewards[len(row) - padding :] == [0.0] * padding
        assert item.finished is is_finished
        if is_finished:
            assert response.rewards[len(item.token_offsets or ()) - 1] == pytest.approx(0.5)


def test_special_tokens_within_a_response_are_scored() -> None:
    tokenizer = tokenizer_of("byte_bpe")
    ids = [
        *encode(tokenizer, "a"),
        *tokenizer("<|user|>")["input_ids"],
        *encode(tokenizer, "b"),
        tokenizer.eos_token_id,
    ]
    sampled = decode_sampled(ids, partial(tokenizer.decode, skip_special_tokens=False), {tokenizer.eos_token_id})
    assert (sampled.text, sampled.is_finished) == ("a<|user|>b", True)


def test_an_end_token_alone_is_a_response_and_padding_alone_is_an_error(fake: FakeService) -> None:
    tokenizer = tokenizer_of("unigram")
    rewarder = make_rewarder(tokenizer, fake)
    [actual] = rewarder.score(["Why?"], [[tokenizer.eos_token_id, tokenizer.pad_token_id]])
    assert actual.rewards == [0.5, 0.0]
    with pytest.raises(ItemsFailedError):
        rewarder.score(["Why?"], [[tokenizer.pad_token_id]])


def test_messages_may_have_unknown_fields(rewarder: TokenRewarder, fake: FakeService) -> None:
    item = rewarder.item([{"role": "user", "content": "Hi", "name": "Ann"}], [5])  # type: ignore[list-item]
    assert item.prompt != "Hi"


# --- credit ----------------------------------------------------------------------------------------------


def test_rewards_to_go_by_hand() -> None:
    rewards = torch.tensor([[1.0, 2.0, 4.0, 9.0], [1.0, 7.0, 3.0, 0.0]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 1, 0]])
    assert rewards_to_go(rewards, mask).tolist() == [[7.0, 6.0, 4.0, 0.0], [4.0, 3.0, 3.0, 0.0]]
    assert rewards_to_go(rewards, mask, 0.5).tolist() == [[3.0, 4.0, 4.0, 0.0], [2.5, 3.0, 3.0, 0.0]]


def test_advantages_by_hand() -> None:
    rewards = torch.tensor([[0.0, -3.0, 0.0], [0.0, 0.0, 0.0], [-1.0, 0.0, 0.0]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0]])
    actual = leave_one_out_advantages(rewards, mask, ["a", "a", "a"], scale=False)
    # to go: [-3, -3, 0], [0, 0, 0], [-1, -1, -1], what the last token was given going on
    assert actual.tolist() == [[-2.5, -2.5, 0.5], [2.0, 2.0, 0.0], [0.5, 0.0, 0.0]]
    scaled = leave_one_out_advantages(rewards, mask, ["a", "a", "a"])
    torch.testing.assert_close(scaled, actual / ((6.25 * 2 + 0.25 + 4 + 4 + 0.25) / 6) ** 0.5, rtol=1e-3, atol=1e-4)


def test_with_rewards_on_last_tokens_only_it_is_rloo() -> None:
    """Whatever the lengths: outlasting the others is not paid for."""
    lengths, ends = [3, 3, 6], [2.0, 2.1, 1.9]
    rewards, mask = torch.zeros(3, 6), torch.zeros(3, 6)
    for row, (length, end) in enumerate(zip(lengths, ends, strict=True)):
        mask[row, :length], rewards[row, length - 1] = 1.0, end
    actual = leave_one_out_advantages(rewards, mask, [0] * 3, scale=False)
    for row, end in enumerate(ends):
        rloo = end - (sum(ends) - end) / 2
        torch.testing.assert_close(actual[row], rloo * mask[row])


def test_scaled_advantages_are_bounded_if_sums_are_equal() -> None:
    actual = leave_one_out_advantages(torch.tensor([[0.0, -1.0], [-1.0, 0.0]]), torch.ones(2, 2), [0, 0])
    torch.testing.assert_close(actual, torch.tensor([[0.0, -1.0], [0.0, 1.0]]) * 2**0.5, rtol=1e-3, atol=1e-4)
    assert leave_one_out_advantages(torch.ones(4, 3) * 0.1, torch.ones(4, 3), [0] * 4).abs().max() < 1e-2


@pytest.mark.parametrize("seed", range(20))
def test_a_response_s_own_rewards_do_not_move_its_baseline(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.randn(8, 6, generator=generator)
    mask = (torch.arange(6) < torch.randint(1, 7, (8, 1), generator=generator)).int()
    groups = [0, 1] * 4
    actual = leave_one_out_advantages(rewards, mask, groups, scale=False)
    changed = rewards.clone()
    changed[0] += 5.0
    moved = leave_one_out_advantages(changed, mask, groups, scale=False)
    difference = (moved - actual)[0]
    expected = rewards_to_go(torch.full((1, 6), 5.0), mask[:1])[0] * mask[0]
    torch.testing.assert_close(difference, expected)
    assert torch.equal(moved[1::2], actual[1::2])  # the other group


@pytest.mark.parametrize("seed", range(10))
def test_the_padding_side_does_not_matter(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 6, (4,), generator=generator).tolist()
    rows = [torch.randn(length, generator=generator) for length in lengths]
    left, right = torch.zeros(4, 7), torch.zeros(4, 7)
    left_mask, right_mask = torch.zeros(4, 7), torch.zeros(4, 7)
    for n, row in enumerate(rows):
        left[n, : len(row)], left_mask[n, : len(row)] = row, 1.0
        right[n, 7 - len(row) :], right_mask[n, 7 - len(row) :] = row, 1.0
    item = leave_one_out_advantages(left, left_mask, [0] * 4)
    right_padded = leave_one_out_advantages(right, right_mask, [0] * 4)
    for n, row in enumerate(rows):
        torch.testing.assert_close(item[n, : len(row)], right_padded[n, 7 - len(row) :])


def test_a_group_of_one_response_gets_zeros() -> None:
    actual = leave_one_out_advantages(torch.ones(3, 2), torch.ones(3, 2), [0, 0, 1])
    assert actual.tolist() == [[0.0, 0.0]] * 3


# --- the frameworks' shapes ------------------------------------------------------------------------------


def test_skyrl_s_output_gets_lists_as_long_as_its_ids(rewarder: TokenRewarder, fake: FakeService) -> None:
    tokenizer = rewarder._tokenizer
    ids = [[*encode(tokenizer, text), tokenizer.eos_token_id] for text in TEXTS]
    masks = [[1] * len(row) for row in ids]
    masks[0][0] = 0
    output = {"response_ids": ids, "rewards": [1.0] * 4, "loss_masks": masks, "prompt_token_ids": [[1]] * 4}

    class Generator:
        name = "inner"

        async def generate(self, input_batch: dict[str, Any], disable_tqdm: bool = False) -> dict[str, Any]:
            assert disable_tqdm
            return output

    generator = skyrl.TokenRewardGenerator(Generator(), rewarder)
    batch = {"prompts": [[{"role": "user", "content": "Why?"}]] * 4}
    actual = asyncio.run(generator.generate(batch, disable_tqdm=True))
    assert generator.name == "inner"
    assert [len(row) for row in actual["rewards"]] == [len(row) for row in ids]
    assert actual["rewards"][0][0] == 0.0
    plain = rewarder.score(["Why?"] * 4, ids)
    assert actual["rewards"][1:] == [item.rewards for item in plain[1:]]
    assert actual["prompt_token_ids"] == output["prompt_token_ids"]
    assert output["rewards"] == [1.0] * 4
    with pytest.raises(ValueError, match="4 responses for 1 prompts"):
        asyncio.run(generator.generate({"prompts": ["Why?"]}, disable_tqdm=True))


def test_slime_s_hooks_from_reward_to_advantages(monkeypatch: pytest.MonkeyPatch, fake: FakeService) -> None:
    tokenizer = tokenizer_of("byte_fallback")
    monkeypatch.setattr(slime, "_rewarder", lambda path: make_rewarder(tokenizer, fake))
    args = SimpleNamespace(hf_checkpoint="policy", n_samples_per_prompt=2)
    samples = []
    for text in TEXTS:
        ids = [*encode(tokenizer, text), tokenizer.eos_token_id]
        sample = SimpleNamespace(prompt="Why?", tokens=[7, 8, 9, *ids], response_length=len(ids), loss_mask=None)
        sample.reward = asyncio.run(slime.reward(args, sample))
        samples.append(sample)
    raw, advantages = slime.post_process(args, samples)
    assert raw == [sample.reward["score"] for sample in samples]
    assert [sum(sample.reward["token_rewards"]) for sample in samples] == pytest.approx(raw)
    assert [len(item) for item in advantages] == [sample.response_length for sample in samples]
    assert math.copysign(1.0, float(advantages[0][0])) == math.copysign(1.0, raw[0] - raw[1])
    data: dict[str, Any] = {"rewards": advantages, "kl": [torch.zeros(len(item)) for item in advantages]}
    slime.advantages(args, data)
    assert all(torch.equal(a, b) for a, b in zip(data["advantages"], advantages, strict=True))
    data["kl"][0] = torch.zeros(1)
    with pytest.raises(ValueError, match="context parallelism"):
        slime.advantages(args, data)


def test_prime_rl_s_rewards_are_those_of_its_sampled_tokens(rewarder: TokenRewarder, fake: FakeService) -> None:
    tokenizer = rewarder._tokenizer

    def node(role: str, text: str, is_sampled: bool) -> Any:
        ids = encode(tokenizer, text)
        own = [*ids, tokenizer.eos_token_id] if is_sampled else ids
        return SimpleNamespace(
            message=SimpleNamespace(role=role, content=text),
            token_ids=[3, *own],
            mask=[False, *([is_sampled] * len(own))],
        )

    nodes = [node("user", "Why?", False), node("assistant", "So.", True), node("user", "Oh?", False)]
    nodes.append(node("assistant", "Hold the round button.", True))
    trace = SimpleNamespace(nodes=nodes, branches=[SimpleNamespace(nodes=nodes)])
    actual = asyncio.run(prime_rl.sampled_token_rewards(trace, rewarder))
    assert len(actual) == sum(sum(item.mask) for item in nodes)
    items = fake.requests[0].items
    assert [[m.role for m in item.prompt] for item in items] == [["user"], ["user", "assistant", "user"]]  # type: ignore[union-attr]
    assert math.fsum(actual) == pytest.approx(
        sum(item.score for item in rewarder.score(*_sampled_responses(nodes))), abs=1e-9
    )


def _sampled_responses(nodes: list[Any]) -> tuple[list[Any], list[list[int]]]:
    sampled = [node for node in nodes if any(node.mask)]
    return ["Why?"] * len(sampled), [node.token_ids[1:] for node in sampled]


def test_nemo_rl_s_advantages_are_on_the_sampled_ids(rewarder: TokenRewarder) -> None:
    tokenizer = rewarder._tokenizer
    rng = random.Random(0)
    logs, width = [], 0
    for text in TEXTS:
        prompt = [rng.randrange(3, 20) for _ in range(rng.randrange(2, 5))]
        ids = [*encode(tokenizer, text), tokenizer.eos_token_id]
        logs.append(
            [
                {"role": "user", "content": "Why?", "token_ids": torch.tensor(prompt)},
                {"role": "assistant", "content": text, "token_ids": torch.tensor(ids)},
            ]
        )
        width = max(width, len(prompt) + len(ids))
    mask = torch.zeros(4, width)
    for row, log in enumerate(logs):
        start = len(log[0]["token_ids"])
        mask[row, start : start + len(log[1]["token_ids"])] = 1.0
    estimator = nemo_rl.TokenAdvantages(rewarder, scale=False)
    actual = estimator.compute_advantage(torch.zeros(4, 3), torch.zeros(4), mask, {"message_log": logs})
    assert actual.shape == mask.shape
    assert bool((actual[mask == 0] == 0).all())
    scores = [item.score for item in rewarder.score(["Why?"] * 4, [log[1]["token_ids"].tolist() for log in logs])]
    for row, log in enumerate(logs):
        others = (sum(scores) - scores[row]) / 3
        assert float(actual[row, len(log[0]["token_ids"])]) == pytest.approx(scores[row] - others, abs=1e-4)


RENDERED = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
MESSAGES = [("system", "Be brief."), ("user", "Why?")]


def _last_prompt(fake: FakeService) -> list[tuple[str, str]]:
    prompt = fake.requests[-1].items[-1].prompt
    assert isinstance(prompt, list)
    return [(message.role, message.content) for message in prompt]


def test_a_rendered_prompt_is_not_rendered_again(monkeypatch: pytest.MonkeyPatch, fake: FakeService) -> None:
    tokenizer = tokenizer_of("byte_bpe")
    rewarder = make_rewarder(tokenizer, fake)
    rewarder.score([RENDERED], [encode(tokenizer, "So.")])
    assert _last_prompt(fake) == MESSAGES
    monkeypatch.setattr(slime, "_rewarder", lambda path: rewarder)
    ids = encode(tokenizer, "So.")
    sample = SimpleNamespace(prompt=RENDERED, tokens=[7, *ids], response_length=len(ids), loss_mask=None)
    asyncio.run(slime.reward(SimpleNamespace(hf_checkpoint="policy"), sample))
    assert _last_prompt(fake) == MESSAGES
    log = [
        {"role": "user", "content": RENDERED, "token_ids": torch.tensor([7])},
        {"role": "assistant", "content": "So.", "token_ids": torch.tensor(ids)},
    ]
    mask = torch.ones(2, 1 + len(ids))
    nemo_rl.TokenAdvantages(rewarder).compute_advantage(
        torch.zeros(2, 1), torch.zeros(2), mask, {"message_log": [log, log]}
    )
    assert _last_prompt(fake) == MESSAGES


def test_a_client_is_kept_for_each_event_loop(fake: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "redline.integrations.token_rewarder.AsyncRewardClient", partial(AsyncRewardClient, transport=fake.transport)
    )
    clients = ClientPerEventLoop("http://test")

    async def both() -> tuple[Any, Any]:
        return clients.get(), clients.get()

    first, second = asyncio.run(both()), asyncio.run(both())
    assert first[0] is first[1]
    assert first[0] is not second[0]


def test_verl_s_reward_function_accepts_an_empty_response(fake: FakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "redline.integrations.token_rewarder.AsyncRewardClient", partial(AsyncRewardClient, transport=fake.transport)
    )
    for text, score in (("", 0.5), ("Hold.", -4.5)):
        actual = asyncio.run(verl_reward.compute_score("any", text, None, {"prompt": RENDERED}))
        assert actual == {"score": score}
        assert _last_prompt(fake) == MESSAGES
