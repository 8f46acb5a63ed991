"""Extraction: from the model's logits to one reward per response token, and from token rewards to a score.

Pure functions on tensors.

Notation (docs/explanation/method.md): ``y`` a response of T tokens, including its end-of-sequence token if it has one;
``pi`` the reward model; ``a_t = argmax_v pi(v | x, y, y_<t)``; ``k`` the first t with ``a_t != y_t``.
Only token statistics of the logits are kept, so nothing of size T x V is stored for longer than a chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from redline_model.errors import UnsupportedError
from redline_model.options import CORRECTION_MODES, Aggregate, Extraction, Mode

_BLOCK_ELEMENTS = 2**20


class TokenStatistics(NamedTuple):
    """Sufficient statistics of ``pi(. | x, y, y_<t)`` for every extraction mode; each of shape ``(T,)``.

    ``logprob``: log pi(y_t), nats. ``best_logprob``: log pi(a_t). ``entropy``: of pi, nats.
    ``best_ids``: a_t. ``agrees``: True if ``a_t == y_t``.
    ``without_response``: the same statistics of ``pi(. | x, y_<t)``, the pass in which the response is not in the
    context; None if the model was not fitted for it.
    """

    logprob: Tensor
    best_logprob: Tensor
    entropy: Tensor
    best_ids: Tensor
    agrees: Tensor
    without_response: TokenStatistics | None = None


def token_statistics(logits: Tensor, target_ids: Tensor) -> TokenStatistics:
    """Reduce logits ``(T, V)`` for targets ``(T,)`` to statistics ``(T,)``, computed in float32.

    With d = logit - best logit and Z = sum exp d: log pi = d - log Z, and H = log Z - sum exp(d) d / Z.
    """
    # on a CPU a few rows at a time, so that intermediate results stay in the processor's cache
    rows = max(1, _BLOCK_ELEMENTS // logits.shape[-1]) if logits.device.type == "cpu" else max(1, len(logits))
    blocks = [
        _statistics(*block) for block in zip(torch.split(logits, rows), torch.split(target_ids, rows), strict=True)
    ]
    logprob, best_logprob, entropy, best_ids, agrees = (torch.cat(field) for field in zip(*blocks, strict=True))
    return TokenStatistics(logprob, best_logprob, entropy, best_ids, agrees)


def _statistics(logits: Tensor, target_ids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    logits = logits.float()
    best, best_ids = logits.max(dim=-1)
    below = logits - best.unsqueeze(-1)
    target_logit = below.gather(-1, target_ids.unsqueeze(-1)).squeeze(-1)
    weights = below.exp()
    total = weights.sum(-1)
    log_total = total.log()
    # p log p is 0 for p = 0, and a logit of minus infinity must not make it NaN
    entropy = log_total - torch.linalg.vecdot(weights, below.clamp_(min=-1e9)) / total
    return target_logit - log_total, -log_total, entropy, best_ids, best_ids == target_ids


def divergence(agrees: Tensor) -> int | None:
    """``k``, the index of the first False in ``agrees`` ``(T,)``; None if all agree."""
    diverging = torch.nonzero(~agrees)
    return int(diverging[0]) if len(diverging) else None


def paper(stats: TokenStatistics, options: Extraction) -> Tensor:
    """Sequence-to-sequence reward extraction (arXiv 2409.00162), ``(T,)``.

    ``+positive`` before k, ``-negative`` on every diverging token, ``after_divergence`` on tokens that agree after k.
    """
    has_diverged = (~stats.agrees).cumsum(0) > 0
    agreed = torch.where(has_diverged, options.after_divergence, options.positive)
    return torch.where(stats.agrees, agreed, -options.negative)


def paper_centered(stats: TokenStatistics, options: Extraction) -> Tensor:
    """Agreement minus its expectation under the model: ``1[a_t = y_t] - pi(a_t)``, ``(T,)``. **Ours.**

    Its mean is 0 for a token sampled from the model, so length alone earns no reward.
    """
    return stats.agrees.float() - stats.best_logprob.exp()


def margin(stats: TokenStatistics, options: Extraction) -> Tensor:
    """``max(log pi(y_t) - log pi(a_t), margin_floor)``, at most 0, in nats, ``(T,)``. **Ours.**"""
    return (stats.logprob - stats.best_logprob).clamp_min(options.margin_floor)


def logprob(stats: TokenStatistics, options: Extraction) -> Tensor:
    """``max(log pi(y_t), logprob_floor)``, nats, ``(T,)``. **Ours.**"""
    return stats.logprob.clamp_min(options.logprob_floor)


def logprob_centered(stats: TokenStatistics, options: Extraction) -> Tensor:
    """``log pi(y_t) + H(pi)``, nats, ``(T,)``: 0 on average for a token sampled from the model. **Ours.**"""
    return stats.logprob + stats.entropy


def probability(stats: TokenStatistics, options: Extraction) -> Tensor:
    """``pi(y_t) - 1/2`` clipped to ``probability_clip``, ``(T,)``; related to RLMEC (arXiv 2401.06081)."""
    low, high = options.probability_clip
    return (stats.logprob.exp() - 0.5).clamp(low, high)


def _without_response(stats: TokenStatistics) -> TokenStatistics:
    if stats.without_response is None:
        raise UnsupportedError("the model was not fitted to write without the response in its context")
    return stats.without_response


def sft_logprob(stats: TokenStatistics, options: Extraction) -> Tensor:
    """``logprob`` of the pass in which the response is not in the context, ``(T,)``."""
    return logprob(_without_response(stats), options)


def sft_margin(stats: TokenStatistics, options: Extraction) -> Tensor:
    """``margin`` of the pass in which the response is not in the context, ``(T,)``."""
    return margin(_without_response(stats), options)


EXTRACTORS: dict[Mode, Callable[[TokenStatistics, Extraction], Tensor]] = {
    "paper": paper,
    "paper_centered": paper_centered,
    "margin": margin,
    "logprob": logprob,
    "sft_logprob": sft_logprob,
    "sft_margin": sft_margin,
    "logprob_centered": logprob_centered,
    "probability": probability,
}


def edits(stats: TokenStatistics, token_edits: Tensor, options: Extraction) -> Tensor:
    """``w log pi(y_t) - e_t``, ``(T,)``, with ``e_t`` the edits that the model's correction makes there. **Ours.**

    Args:
        token_edits: ``e_t``, ``(T,)``, see ``redline_model.correction.edits.token_edits``.
    """
    return options.edits_logprob_weight * logprob(stats, options) - token_edits


def extract(stats: TokenStatistics, mode: Mode, options: Extraction, token_edits: Tensor | None = None) -> Tensor:
    """Token rewards ``(T,)`` under ``mode``.

    ``token_edits``: ``(T,)``, needed by the modes in ``CORRECTION_MODES`` only.

    Raises:
        UnsupportedError: the mode needs a correction or a pass that was not computed.
    """
    if mode not in CORRECTION_MODES:
        return EXTRACTORS[mode](stats, options)
    if token_edits is None:
        raise UnsupportedError(f"the mode {mode} needs the model's correction of the response")
    return edits(stats, token_edits, options)


def aggregate_rewards(rewards: Tensor, aggregate: Aggregate) -> float:
    """Token rewards ``(T,)``, T > 0, as one number: their sum, their mean, or the last of them."""
    if aggregate == "sum":
        return float(rewards.double().sum())
    if aggregate == "mean":
        return float(rewards.double().mean())
    return float(rewards[-1])


def move_score(rewards: list[float], change: float, aggregate: Aggregate) -> list[float]:
    """Token rewards whose aggregate is larger by ``change``; only the last token's reward changes.

    For ``mean`` it changes by T times ``change``, so the sum of the rewards changes by T times as much as the score.
    """
    last_change = change * len(rewards) if aggregate == "mean" else change
    return [*rewards[:-1], rewards[-1] + last_change]
