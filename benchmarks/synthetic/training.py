"""Trains supervised policies, reward models and PPO policies of a synthetic task, each an ordinary folder on disk."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.synthetic.budget import Budget
from benchmarks.synthetic.tasks.task import Question, Task, prompt_key
from examples.quickstart.supervised import encode, fit, tiny_llama, train_tokenizer
from redline.ppo import CausalPolicy, PPOConfig, PPOLoop, RewardSource, Rollout, Scores
from redline.preference_data.rows import Pair
from redline_trainer.config import TrainConfig
from redline_trainer.train import train

INSTRUCTION = "Improve your answer."


def train_supervised(
    out: Path, demonstrations: Sequence[tuple[Question, str]], words: Sequence[str], budget: Budget, seed: int
) -> None:
    """A tokenizer and a small Llama at ``out``, trained from scratch on ``demonstrations``."""
    torch.manual_seed(seed)
    prompts = [
        q.prompt if isinstance(q.prompt, str) else " ".join(m["content"] for m in q.prompt) for q, _ in demonstrations
    ]
    tokenizer = train_tokenizer([*prompts, *(r for _, r in demonstrations), *words, *[INSTRUCTION] * 2])
    model = tiny_llama(
        len(tokenizer), tokenizer.eos_token_id, tokenizer.pad_token_id, hidden=budget.hidden_size, layers=budget.layers
    )
    examples = [encode(tokenizer, q.prompt, response) for q, response in demonstrations]
    fit(model, examples, steps=budget.supervised_steps, batch_size=32, learning_rate=3e-3, seed=seed)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def train_reward_model(
    out: Path, base: Path, pairs: Sequence[Pair], steps: int, seed: int, options: Mapping[str, Any]
) -> None:
    """A bundle at ``out``, trained as by ``redline train`` with ``options``."""
    config = TrainConfig.model_validate(
        {
            "base": str(base),
            "out": out,
            "max_steps": steps,
            "learning_rate": 1e-3,
            "held_out_share": 0.05,
            "instruction": INSTRUCTION,
            "checkpoint_every": steps + 1,
            "seed": seed,
            **options,
        }
    )
    train(config, pairs, overwrite=True)


def train_ppo(
    out: Path,
    start: Path,
    rewards: RewardSource,
    task: Task,
    questions: Sequence[Question],
    budget: Budget,
    seed: int,
    settings: Mapping[str, Any] | None = None,
) -> list[dict[str, float]]:
    """A policy at ``out``. Returns one row per step: KL (nats per response), proxy and gold score, length, entropy.

    Args:
        settings: of PPO, other than those of the budget.
    """
    question_of = {q.key: q for q in questions}
    curve: list[dict[str, float]] = []

    def record(metrics: dict[str, float], rollouts: Sequence[Rollout], scores: Scores) -> None:
        golds = [task.gold(question_of[prompt_key(r.prompt)], r.text) if r.is_finished else 0.0 for r in rollouts]
        curve.append(
            {
                "step": metrics["step"],
                "kl": metrics["kl"],
                "proxy": metrics["score"],
                "gold": sum(golds) / len(golds),
                "tokens": metrics["response_tokens"],
                "entropy": metrics["entropy"],
            }
        )

    config = PPOConfig.model_validate(
        {
            "steps": budget.ppo_steps,
            "rollouts": budget.rollouts,
            "sample_batch": budget.rollouts,
            "epochs": 2,
            "learning_rate": 2e-4,
            "value_clip": 0.2,
            "value_scale": "none",
            "cut_responses": "keep",
            "seed": seed,
            **(settings or {}),
        }
    )
    shuffled = list(questions)
    random.Random(seed).shuffle(shuffled)
    policy = CausalPolicy.load(start, device="cpu", max_new_tokens=budget.max_new_tokens, critic="linear")
    PPOLoop(policy, rewards, [q.prompt for q in shuffled], config, callbacks=[record]).train()
    policy.save(out)
    return curve
