"""A policy's answers to test questions, and what gold says of them."""

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
    """One entry a question, whose prompt is in ``keys``: one may be drawn more than once.

    ``kl``: ``log pi - log pi_supervised`` of the answer, nats; its mean estimates the KL. None where the answers are
    not a policy's own samples.
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
    """An answer and its price."""

    text: str
    tokens: int
    kl: float | None


def sample_answers(policy: CausalPolicy, questions: Sequence[Question], seed: int) -> list[Rollout]:
    """One response a question, at temperature 1 as in training."""
    torch.manual_seed(seed)
    rollouts: list[Rollout] = []
    for start in range(0, len(questions), _BATCH):
        part = [q.prompt for q in questions[start : start + _BATCH]]
        rollouts += policy.sample(part, range(len(part)))
    return rollouts


@torch.no_grad()
def summed_logprobs(policy: CausalPolicy, rollouts: Sequence[Rollout], batch: int = _BATCH) -> list[float]:
    """``log pi(y | x)`` of each response, nats, ``batch`` at a time."""
    sums: list[float] = []
    for start in range(0, len(rollouts), batch):
        part = rollouts[start : start + batch]
        logprobs = policy.outputs(part).logprobs
        sums += [float(row[: len(r.response_ids)].sum()) for row, r in zip(logprobs, part, strict=True)]
    return sums


def policy_answers(
    folder: Path, supervised: Path, questions: Sequence[Question], seed: int, limit: int
) -> list[SampledAnswer]:
    """What the policy at ``folder`` answers, and how far that is from the supervised one."""
    policy, before = (CausalPolicy.load(f, device="cpu", max_new_tokens=limit) for f in (folder, supervised))
    rollouts = sample_answers(policy, questions, seed)
    kls = [a - b for a, b in zip(summed_logprobs(policy, rollouts), summed_logprobs(before, rollouts), strict=True)]
    return [SampledAnswer(r.text, len(r.response_ids), kl) for r, kl in zip(rollouts, kls, strict=True)]


def judge(
    task: Task, questions: Sequence[Question], answers: Sequence[SampledAnswer], count: Callable[[str], int]
) -> Answers:
    """``count`` gives the tokens of a text, end token included."""
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
