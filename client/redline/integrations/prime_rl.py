"""prime-rl 0.8 and verifiers 0.4: token rewards as per-token advantages, and a reward function for verifiers.

prime-rl gets the advantage of every sampled token from an ``Algorithm``, which it looks up by name in a table::

    from prime_rl.orchestrator import algo
    algo.ALGORITHM_CLASSES["grpo"] = token_algorithm(algo.ALGORITHM_CLASSES["grpo"], TokenRewarder(tokenizer))

before the orchestrator starts.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from redline.integrations.token_rewarder import ClientPerEventLoop, TokenRewarder
from redline.messages import CONTENT_FIELDS
from redline.text.chat_markup import ParsedConversation, to_score_item
from redline.wire import ChatMessage, PromptInput, ScoreOptions


async def sampled_token_rewards(trace: Any, rewarder: TokenRewarder) -> list[float]:
    """A reward for each sampled token of a trace, in the order of its nodes, as ``assign_advantages`` expects them.

    Each message of the policy is scored as the response to the messages before it on its branch. Raises
    ItemsFailedError.
    """
    prompts: dict[int, PromptInput] = {}
    for branch in trace.branches:
        for n, node in enumerate(branch.nodes):
            prompts.setdefault(id(node), [_turn(other.message) for other in branch.nodes[:n]])
    nodes = [node for node in trace.nodes if any(node.mask)]
    ids = [[token for token, is_sampled in zip(node.token_ids, node.mask, strict=True) if is_sampled] for node in nodes]
    scored = await rewarder.ascore([prompts[id(node)] for node in nodes], ids)
    return [reward for item in scored for reward in item.rewards]


def _turn(message: Any) -> ChatMessage:
    content = message.content
    if isinstance(content, list):
        content = "".join(getattr(part, "text", "") for part in content)
    content_fields = {name: _plain(getattr(message, name, None)) for name in CONTENT_FIELDS}
    return ChatMessage.model_validate({"role": str(message.role), "content": content or "", **content_fields})


def _plain(value: Any) -> Any:
    """A field of a message as plain JSON data."""
    if isinstance(value, (list, tuple)):
        return [_plain(element) for element in value]
    return value.model_dump(mode="json", exclude_none=True) if hasattr(value, "model_dump") else value


def token_algorithm(base: type, rewarder: TokenRewarder, *, scale: bool = False) -> type:
    """A prime-rl algorithm whose advantages are ``leave_one_out_advantages`` of a service's token rewards.

    ``scale`` divides by the standard deviation within a group; prime-rl's own GRPO does not. A group of one response
    gets zeros.
    """

    class TokenAlgorithm(base):  # type: ignore[misc]
        async def score_group(self, episodes: list[Any]) -> None:
            import torch
            from prime_rl.orchestrator.algo.base import iter_trainable_traces
            from prime_rl.orchestrator.algo.routing import assign_advantages

            from redline.token_advantages import leave_one_out_advantages

            traces = [trace for _, trace in iter_trainable_traces(episodes)]
            rows = [await sampled_token_rewards(trace, rewarder) for trace in traces]
            if len(rows) < 2:
                for trace in traces:
                    assign_advantages(trace, 0.0)
                return
            rewards = torch.zeros(len(rows), max(map(len, rows)))
            mask = torch.zeros_like(rewards)
            for n, row in enumerate(rows):
                rewards[n, : len(row)] = torch.tensor(row)
                mask[n, : len(row)] = 1.0
            advantages = leave_one_out_advantages(rewards, mask, [0] * len(rows), scale=scale)
            for n, (trace, row) in enumerate(zip(traces, rows, strict=True)):
                assign_advantages(trace, advantages[n, : len(row)].tolist())

    return TokenAlgorithm


def trace_reward(url: str, key: str | None = None) -> Callable[[Any], Awaitable[float]]:
    """A reward function for traces of verifiers: scores the last message. Use it as the body of ``@vf.reward``."""
    clients = ClientPerEventLoop(url, key)

    async def reward(trace: Any) -> float:
        turns = [_turn(message) for message in trace.messages]
        item = to_score_item(ParsedConversation(turns[:-1], turns[-1].content, True))
        return (await clients.get().score([item], options=ScoreOptions(on_too_long="truncate"))).scored()[0].score

    return reward
