"""A tiny policy, prompts and rollouts for the tests of PPO."""

from __future__ import annotations

from typing import Any

from redline.ppo import CausalPolicy, Rollout
from tests.conftest import build_causal, build_tokenizer

PROMPTS = [f"How do I reset my router {n}?" for n in range(7)]


def tiny_policy(**options: Any) -> CausalPolicy:
    """A policy with smaller weights than the scorers of the tests, so that its samples vary."""
    tokenizer = build_tokenizer()
    model = build_causal(len(tokenizer), seed=1)
    for parameter in model.parameters():
        parameter.data *= 0.3
    return CausalPolicy(model, tokenizer, **{"max_new_tokens": 8, **options})


def rollout(prompt_ids: int, response_ids: int, number: int = 0, is_finished: bool = False, group: int = 0) -> Rollout:
    """A rollout with this number of prompt and response ids. Its text is empty."""
    prompt = tuple(4 + (7 * n + 3) % 60 for n in range(prompt_ids))
    response = tuple(4 + (11 * n + 5 * number) % 60 for n in range(response_ids))
    return Rollout("p", prompt, response, "", ((0, 0),) * response_ids, is_finished, group)
