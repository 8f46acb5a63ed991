"""From what the model says of each response token to one reward a token; pure functions on tensors.

Notation (docs/method.md): ``y`` a response of T tokens, its end-of-sequence token included where it has one;
``pi`` the reward model; ``a_t = argmax_v pi(v | x, y, y_<t)``; ``k`` the first t with ``a_t != y_t``.
Token statistics are the only thing kept of the logits, so nothing of size T x V outlives a chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from redline_model.errors import UnsupportedError

Mode = Literal["paper", "paper_centered", "margin", "logprob_centered", "probability"]
Aggregate = Literal["sum", "mean", "last"]
_BLOCK_ELEMENTS = 2**20
MODES: tuple[Mode, ...] = get_args(Mode)
AGGREGATES: tuple[Aggregate, ...] = get_args(Aggregate)


class TokenStatistics(NamedTuple):
    """Sufficient statistics of ``pi(. | x, y, y_<t)`` for every extraction mode; each of shape ``(T,)``.

    ``logprob``: log pi(y_t), nats. ``best_logprob``: log pi(a_t). ``entropy``: of pi, nats.
    ``best_ids``: a_t. ``agrees``: True where ``a_t == y_t``.
    """

    logprob: Tensor
    best_logprob: Tensor
    entropy: Tensor
    best_ids: Tensor
    agrees: Tensor


def token_statistics(logits: Tensor, target_ids: Tensor) -> TokenStatistics:
    """Reduce logits ``(T, V)`` for targets ``(T,)`` to statistics ``(T,)``, computed in float32.

    With d = logit - best logit and Z = sum exp d: log pi = d - log Z, and H = log Z - sum exp(d) d / Z.
    """
    # on a CPU a few rows at a time, so that what stands between the formula's steps stays in the cache
    rows = max(1, _BLOCK_ELEMENTS // logits.shape[-1]) if logits.device.type == "cpu" else max(1, len(logits))
    blocks = [
        _statistics(*block) for block in zip(torch.split(logits, rows), torch.split(target_ids, rows), strict=True)
    ]
    return TokenStatistics(*(torch.cat(field) for field in zip(*blocks, strict=True)))


def _statistics(logits: Tensor, target_ids: Tensor) -> TokenStatistics:
    logits = logits.float()
    best, best_ids = logits.max(dim=-1)
    below = logits - best.unsqueeze(-1)
    own = below.gather(-1, target_ids.unsqueeze(-1)).squeeze(-1)
    weights = below.exp()
    total = weights.sum(-1)
    log_total = total.log()
    # p log p is 0 where p is 0, and a logit of minus infinity is not to make it NaN
    entropy = log_total - torch.linalg.vecdot(weights, below.clamp_(min=-1e9)) / total
    return TokenStatistics(own - log_total, -log_total, entropy, best_ids, best_ids == target_ids)


class Extraction(BaseModel):
    """How a bundle reads rewards off its model: the defaults and the magnitudes of each mode (all **ours**).

    ``positive``/``negative``: reward of an agreeing token before k, cost of a diverging one (mode ``paper``).
    ``after_divergence``: reward of a token that agrees again after k (mode ``paper``).
    ``margin_floor``: least reward of a token in mode ``margin``, nats. ``probability_clip``: mode ``probability``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    mode: Mode = "margin"
    aggregate: Aggregate = "sum"
    positive: float = 1.0
    negative: float = 1.0
    after_divergence: float = 0.0
    margin_floor: float = -10.0
    probability_clip: tuple[float, float] = (-0.5, 0.5)


def divergence(agrees: Tensor) -> int | None:
    """``k``, the index of the first False in ``agrees`` ``(T,)``; None where all agree."""
    diverging = torch.nonzero(~agrees)
    return int(diverging[0]) if len(diverging) else None


def paper(stats: TokenStatistics, options: Extraction) -> Tensor:
    """Sequence-to-sequence reward extraction (arXiv 2409.00162), ``(T,)``.

    ``+positive`` before k, ``-negative`` on every diverging token, ``after_divergence`` where it agrees again.
    """
    has_diverged = (~stats.agrees).cumsum(0) > 0
    agreed = torch.where(has_diverged, options.after_divergence, options.positive)
    return torch.where(stats.agrees, agreed, -options.negative)


def paper_centered(stats: TokenStatistics, options: Extraction) -> Tensor:
    """Agreement minus its expectation under the model: ``1[a_t = y_t] - pi(a_t)``, ``(T,)``. **Ours.**

    Its mean is 0 for a token drawn from the model, so going on for long earns nothing by itself.
    """
    return stats.agrees.float() - stats.best_logprob.exp()


def margin(stats: TokenStatistics, options: Extraction) -> Tensor:
    """``max(log pi(y_t) - log pi(a_t), margin_floor)``, at most 0, in nats, ``(T,)``. **Ours.**"""
    return (stats.logprob - stats.best_logprob).clamp_min(options.margin_floor)


def logprob_centered(stats: TokenStatistics, options: Extraction) -> Tensor:
    """``log pi(y_t) + H(pi)``, nats, ``(T,)``: 0 on average for a token drawn from the model. **Ours.**"""
    return stats.logprob + stats.entropy


def probability(stats: TokenStatistics, options: Extraction) -> Tensor:
    """``pi(y_t) - 1/2`` clipped to ``probability_clip``, ``(T,)``; a relative of RLMEC (arXiv 2401.06081)."""
    low, high = options.probability_clip
    return (stats.logprob.exp() - 0.5).clamp(low, high)


EXTRACTORS: dict[Mode, Callable[[TokenStatistics, Extraction], Tensor]] = {
    "paper": paper,
    "paper_centered": paper_centered,
    "margin": margin,
    "logprob_centered": logprob_centered,
    "probability": probability,
}


def extract(stats: TokenStatistics, mode: Mode, options: Extraction) -> Tensor:
    """Token rewards ``(T,)`` under ``mode``."""
    return EXTRACTORS[mode](stats, options)


def aggregate_rewards(rewards: Tensor, aggregate: Aggregate) -> float:
    """Token rewards ``(T,)``, T > 0, as one scalar: their sum, their mean, or the last of them."""
    if aggregate == "sum":
        return float(rewards.double().sum())
    if aggregate == "mean":
        return float(rewards.double().mean())
    return float(rewards[-1])


def move_score(rewards: list[float], by: float, aggregate: Aggregate) -> list[float]:
    """Token rewards whose aggregate is larger by ``by``; the last token alone carries the difference.

    Under ``mean`` that is T times ``by``, so that what a sum of the rewards gains is T times what the score gains.
    """
    on_last = by * len(rewards) if aggregate == "mean" else by
    return [*rewards[:-1], rewards[-1] + on_last]


class RewardSpec(NamedTuple):
    """A choice of mode (None: the model has no modes) and aggregate for one item."""

    mode: Mode | None
    aggregate: Aggregate


def choose_aggregate(asked: str | None, default: Aggregate) -> Aggregate:
    """``asked`` as an aggregate, ``default`` where None. Raises UnsupportedError, naming what there is."""
    if asked is None:
        return default
    for known in AGGREGATES:
        if known == asked:
            return known
    raise UnsupportedError(f"unknown aggregate {asked!r}; this model offers {', '.join(AGGREGATES)}")


def choose_mode(asked: str | None, default: Mode, offered: tuple[Mode, ...] = MODES) -> Mode:
    """``asked`` as a mode, ``default`` where None. Raises UnsupportedError, naming what there is."""
    wanted = default if asked is None else asked
    for known in offered:
        if known == wanted:
            return known
    raise UnsupportedError(f"unknown extraction mode {wanted!r}; this model offers {', '.join(offered)}")
