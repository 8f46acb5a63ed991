"""Trains a policy from the start policy by SFT, DPO or PPO, and measures it on the way.

All three use ``CausalPolicy``: the same forward pass and precision, and the start policy as the frozen reference.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.real_policies.metrics import Sample
from benchmarks.real_policies.plan import Plan, PPOSettings
from redline.ppo import CausalPolicy, PPOConfig, PPOLoop, RewardSource, Rollout, Scores
from redline.ppo.sampling import token_mask

if TYPE_CHECKING:
    from redline.preference_data.rows import Pair

# called with the number of steps that are done
Measure = Callable[[int], None]
_BATCH = 32
_T = TypeVar("_T")


class Example(NamedTuple):
    """A text to learn: its prompt, and the text."""

    prompt: str
    text: str


def load_policy(
    folder: Path, new_tokens: int, device: str, precision: Literal["auto", "float32", "bfloat16"]
) -> CausalPolicy:
    """The policy in ``folder``, with a frozen copy of itself as the reference."""
    return CausalPolicy.load(folder, device=device, max_new_tokens=new_tokens, precision=precision)


def sample_texts(policy: CausalPolicy, prompts: Sequence[str], seed: int) -> list[Sample]:
    """One response per prompt at temperature 1, with its KL from the reference. Torch's generator is left as it was."""
    samples: list[Sample] = []
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for start in range(0, len(prompts), _BATCH):
            rollouts = policy.sample(prompts[start : start + _BATCH], range(len(prompts[start : start + _BATCH])))
            logprobs, reference = policy.outputs(rollouts).logprobs, policy.reference_logprobs(rollouts)
            kls = kl_of(logprobs, reference, token_mask(rollouts, policy.device)).tolist()
            samples += [Sample(str(r.prompt), r.text, r.is_finished, kl) for r, kl in zip(rollouts, kls, strict=True)]
    return samples


def kl_of(logprobs: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
    """KL divergence of each sampled response from the reference, in nats, ``(B,)``.

    The sum over tokens of ``q - 1 - log q`` with ``q = pi_ref / pi`` (Schulman 2020, "Approximating KL divergence",
    k3): unbiased like the sum of ``-log q``, never negative, and with a smaller variance.

    Args:
        logprobs, reference, mask: (B, T).
    """
    log_ratio = torch.where(mask, reference - logprobs, 0.0)
    return (torch.expm1(log_ratio) - log_ratio).sum(1)


def as_rollout(policy: CausalPolicy, prompt: str, text: str) -> Rollout:
    """``text`` as if ``policy`` had sampled it: cut at its token limit, and then without the end token.

    Character spans are left out: they are needed for rewards only.
    """
    ids = policy.tokenizer(text, add_special_tokens=False)["input_ids"]
    is_finished = len(ids) < policy.max_new_tokens
    ids = [*ids, min(policy.end_ids)] if is_finished else ids[: policy.max_new_tokens]
    return Rollout(prompt, tuple(policy.prompt_ids(prompt)), tuple(ids), text, ((0, 0),) * len(ids), is_finished)


def train_sft(
    policy: CausalPolicy, examples: Sequence[Example], plan: Plan, steps: int, rate: float, seed: int, measure: Measure
) -> None:
    """Maximise the mean log-probability per token of ``examples``."""

    def loss_of(batch: Sequence[Example]) -> Tensor:
        rollouts = [as_rollout(policy, example.prompt, example.text) for example in batch]
        mask = token_mask(rollouts, policy.device)
        return -(policy.outputs(rollouts).logprobs * mask).sum() / mask.sum()

    _minimise(policy, examples, loss_of, plan, steps, rate, seed, measure)


def train_dpo(policy: CausalPolicy, pairs: Sequence[Pair], plan: Plan, seed: int, measure: Measure) -> None:
    """Direct preference optimisation (arXiv 2305.18290) with the start policy as the reference."""

    def loss_of(batch: Sequence[Pair]) -> Tensor:
        margins = []
        for side in ("chosen", "rejected"):
            rollouts = [as_rollout(policy, str(pair.prompt), getattr(pair, side)) for pair in batch]
            mask = token_mask(rollouts, policy.device)
            ratios = policy.outputs(rollouts).logprobs - policy.reference_logprobs(rollouts)
            margins.append((ratios * mask).sum(1))
        return -F.logsigmoid(plan.dpo_beta * (margins[0] - margins[1])).mean()

    _minimise(policy, pairs, loss_of, plan, plan.dpo_steps, plan.dpo_learning_rate, seed, measure)


def _minimise(
    policy: CausalPolicy,
    examples: Sequence[_T],
    loss_of: Callable[[Sequence[_T]], Tensor],
    plan: Plan,
    steps: int,
    rate: float,
    seed: int,
    measure: Measure,
) -> None:
    """AdamW with a linear warm-up over the first tenth of the steps; each epoch has its own order."""
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.0)
    rng = random.Random(seed)
    order: list[_T] = []
    for step in range(steps):
        if len(order) < plan.batch:
            order += rng.sample(list(examples), len(examples))
        batch, order = order[: plan.batch], order[plan.batch :]
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / max(1.0, steps / 10))
        torch.autograd.backward(loss_of(batch))
        torch.nn.utils.clip_grad_norm_(policy.model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        measure(step + 1)


def train_ppo(
    policy: CausalPolicy,
    rewards: RewardSource,
    prompts: Sequence[str],
    plan: Plan,
    settings: PPOSettings,
    discount: float,
    seed: int,
    measure: Measure,
) -> list[dict[str, float]]:
    """Train with ``redline.ppo``. Returns the metrics of every step."""
    config = PPOConfig(
        steps=plan.ppo_steps,
        rollouts=plan.rollouts,
        sample_batch=min(32, plan.rollouts),
        minibatch=plan.minibatch,
        epochs=plan.epochs,
        learning_rate=settings.learning_rate,
        kl_coefficient=settings.kl_coefficient,
        discount=discount,
        seed=seed,
    )
    history: list[dict[str, float]] = []

    def after_step(metrics: dict[str, float], rollouts: Sequence[Rollout], scores: Scores) -> None:
        history.append(metrics)
        measure(int(metrics["step"]))

    PPOLoop(policy, rewards, prompts, config, callbacks=[after_step]).train()
    return history


def measured_steps(steps: int, points: int) -> list[int]:
    """After which of ``steps`` steps a run is measured: evenly spaced, the last step included."""
    return sorted({round(steps * n / points) for n in range(1, points + 1)} - {0})
