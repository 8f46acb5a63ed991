"""DPO's implicit reward (arXiv 2305.18290): a policy's log-probabilities against those of where it started.

``r_t = beta (log pi(y_t | x, y_<t) - log pi_ref(y_t | x, y_<t))``; the sum over t is the reward, up to a term of the
prompt alone, whose optimal policy under a KL penalty of ``beta`` is ``pi``. Both models read ``[x, y]``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from redline_model.correction.rewriter import Rewriter
from redline_model.encoding.encoder import EncodedItem, Encoder
from redline_model.errors import NonFiniteError, UnsupportedError
from redline_model.extraction import Extraction, Mode, RewardSpec, aggregate_rewards
from redline_model.inference.prefix_cache import Prefix, PrefixCache
from redline_model.inference.target_logits import target_forward
from redline_model.inference.token_statistics import start_token_statistics
from redline_model.scorer import ScoredResponse, unsupported_correction


def response_only(item: EncodedItem) -> EncodedItem:
    """``item`` with nothing between its prompt and its target: ``[x, y]``."""
    return replace(item, response_ids=[], request_ids=[])


class DPOOutput(NamedTuple):
    """Log-probabilities of the response's tokens, nats, ``(T,)`` each."""

    policy: Tensor
    reference: Tensor


class DPOScorer:
    """Scores with two causal language models of one vocabulary. See ``Scorer``.

    Args:
        model: the policy, in eval mode.
        reference: what the policy started from, in eval mode.
        beta: reward for a nat, above 0.

    Raises:
        UnsupportedError: the two models do not have the same vocabulary.
    """

    kind = "dpo"
    modes: tuple[Mode, ...] = ()
    can_correct = False

    def __init__(
        self,
        model: Any,
        encoder: Encoder,
        extraction: Extraction,
        *,
        reference: Any,
        beta: float,
        prefix_cache_tokens: int = 0,
    ) -> None:
        sizes = [m.config.get_text_config().vocab_size for m in (model, reference)]
        if sizes[0] != sizes[1]:
            raise UnsupportedError(f"the policy knows {sizes[0]} tokens and its reference {sizes[1]}")
        self.model = model
        self.models = (model, reference)
        self.encoder = encoder
        self.extraction = extraction
        self.beta = beta
        self._policy = target_forward(model, prefix_cache_tokens)
        self._reference = target_forward(reference, prefix_cache_tokens)
        # padded passes fit ragged ones, not the other way round
        self._leader = min((self._policy, self._reference), key=lambda forward: getattr(forward, "is_ragged", False))

    @property
    def prefix_caches(self) -> tuple[PrefixCache, ...]:
        """See ``Scorer``."""
        return self._policy.prefix_caches + self._reference.prefix_caches

    def length(self, item: EncodedItem) -> int:
        """Tokens each model reads for this item."""
        return len(item.prefix_ids) + len(item.target_ids)

    def prefix(self, item: EncodedItem) -> Prefix | None:
        """The prompt but for its last token, where passes are ragged."""
        return self._leader.prefix(response_only(item))

    def cost(self, item: EncodedItem, beside: set[Prefix]) -> int:
        """See ``Scorer``; of one of the two models."""
        return self._leader.cost(response_only(item), beside)

    def batches(self, items: Sequence[EncodedItem], max_tokens: int) -> Iterator[list[int]]:
        """See ``Scorer``."""
        return self._leader.batches([response_only(item) for item in items], max_tokens)

    @torch.inference_mode()
    def start_forward(self, items: Sequence[EncodedItem]) -> Callable[[], list[DPOOutput]]:
        """See ``Scorer``; both models' passes are begun before either is waited for."""
        pairs = [response_only(item) for item in items]
        policy, reference = start_token_statistics(self._policy, pairs), start_token_statistics(self._reference, pairs)
        return lambda: [
            DPOOutput(ours.logprob, theirs.logprob) for ours, theirs in zip(policy(), reference(), strict=True)
        ]

    def forward(self, items: Sequence[EncodedItem]) -> list[DPOOutput]:
        """See ``start_forward``."""
        return self.start_forward(items)()

    def to_rewards(self, output: DPOOutput, spec: RewardSpec) -> ScoredResponse:
        """The scaled log-ratios; raises NonFiniteError."""
        rewards = self.beta * (output.policy.double() - output.reference.double())
        if not torch.isfinite(rewards).all():
            raise NonFiniteError("the models' output for this item holds NaN or infinity")
        return ScoredResponse(aggregate_rewards(rewards, spec.aggregate), rewards.tolist(), None)

    def rewriter(self) -> Rewriter[DPOOutput]:
        """Always raises UnsupportedError: the policy answers prompts, it does not mend responses."""
        raise unsupported_correction(self.kind)
