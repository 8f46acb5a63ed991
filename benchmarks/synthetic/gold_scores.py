"""A policy's answers to test questions, and their gold scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import BaseModel

from benchmarks.synthetic.tasks.task import Question, Task
from redline.ppo import CausalPolicy, Rollout

_BATCH = 100


class Answers(BaseModel):
    """One entry per question in every list. Stored as JSON under these names.

    ``keys``: the prompts; one prompt may occur more than once.

    ``kl``: ``log pi - log pi_supervised`` of the answer, nats; its mean estimates the KL divergence. None if the answer
    was not sampled from the policy itself.
    """

    keys: list[str]
    responses: list[str]
    gold: list[float]
    tokens: list[int]
    ideal_tokens: list[int]
    must_refuse: list[bool]
    refused: list[bool]
    kl: list[float | None]


class SampledAnswer(NamedTuple):
    """An answer, its length in tokens with the end token, and its part of the KL divergence (see ``Answers``)."""

    text: str
    tokens: int
    kl: float | None


def sample_answers(policy: CausalPolicy, questions: Sequence[Question], seed: int) -> list[Rollout]:
    """One response per question, at temperature 1 as in training."""
    torch.manual_seed(seed)
    rollouts: list[Rollout] = []
    for start in range(0, len(questions), _BATCH):
        prompts = [q.prompt for q in questions[start : start + _BATCH]]
        rollouts += policy.sample(prompts, range(len(prompts)))
    return rollouts


@torch.no_grad()
def summed_logprobs(policy: CausalPolicy, rollouts: Sequence[Rollout], batch: int = _BATCH) -> list[float]:
    """``log pi(y | x)`` of each response, nats, computed ``batch`` responses at a time."""
    sums: list[float] = []
    for start in range(0, len(rollouts), batch):
        part = rollouts[start : start + batch]
        logprobs = policy.outputs(part).logprobs
        sums += [float(row[: len(r.response_ids)].sum()) for row, r in zip(logprobs, part, strict=True)]
    return sums


def policy_answers(
    folder: Path, supervised: Path, questions: Sequence[Question], seed: int, limit: int
) -> list[SampledAnswer]:
    """Sampled answers of the policy at ``folder``, of at most ``limit`` tokens, with their KL from ``supervised``."""
    policy, reference = (CausalPolicy.load(f, device="cpu", max_new_tokens=limit) for f in (folder, supervised))
    rollouts = sample_answers(policy, questions, seed)
    logprobs, reference_logprobs = (summed_logprobs(p, rollouts) for p in (policy, reference))
    kls = [a - b for a, b in zip(logprobs, reference_logprobs, strict=True)]
    return [SampledAnswer(r.text, len(r.response_ids), kl) for r, kl in zip(rollouts, kls, strict=True)]


def score_with_gold(
    task: Task, questions: Sequence[Question], answers: Sequence[SampledAnswer], count: Callable[[str], int]
) -> Answers:
    """The answers with their gold scores; ``count`` returns the tokens of a text, the end token included."""
    return Answers(
        keys=[q.key for q in questions],
        responses=[a.text for a in answers],
        gold=[task.gold(q, a.text) for q, a in zip(questions, answers, strict=True)],
        tokens=[a.tokens for a in answers],
        ideal_tokens=[count(task.ideal(q)) for q in questions],
        must_refuse=[q.must_refuse for q in questions],
        refused=[task.is_refusal(a.text) for a in answers],
        kl=[a.kl for a in answers],
    )
