"""The sequence-to-sequence reward model (arXiv 2409.00162): token rewards from one forward pass.

Greedy decoding given (x, y) reproduces ``y_<t`` as long as every earlier argmax agreed, so up to the first
divergence the generated token *is* the teacher-forced argmax. One pass over ``[x, y, y]`` (decoder-only) or
``encoder[x, y] -> decoder[y]`` therefore gives the same rewards as generating, comparing and feeding the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from redline_model.correction.rewriter import PackedRewriter, PaddedRewriter, Rewriter
from redline_model.encoding.encoder import EncodedItem, Encoder
from redline_model.errors import NonFiniteError
from redline_model.extraction import (
    MODES,
    Extraction,
    Mode,
    RewardSpec,
    TokenStatistics,
    aggregate_rewards,
    divergence,
    extract,
)
from redline_model.inference.prefix_cache import Prefix, PrefixCache
from redline_model.inference.target_logits import CausalTargets, EncoderDecoderTargets, target_forward
from redline_model.inference.token_statistics import start_token_statistics
from redline_model.scorer import ScoredResponse


class Seq2SeqScorer:
    """Scores with a language model fitted to rewrite responses. See ``Scorer`` for the contract.

    Args:
        model: a transformers causal or encoder-decoder language model, in eval mode.
        prefix_cache_tokens: tokens of prompts that stay warm between passes.
    """

    kind = "seq2seq"
    modes: tuple[Mode, ...] = MODES
    can_correct = True

    def __init__(self, model: Any, encoder: Encoder, extraction: Extraction, *, prefix_cache_tokens: int = 0) -> None:
        self.model = model
        self.models = (model,)
        self.encoder = encoder
        self.extraction = extraction
        self._forward = target_forward(model, prefix_cache_tokens)
        # A correction is the plain argmax; a base's own settings may ask for penalties, forced or suppressed tokens.
        start = self._forward.start_id if isinstance(self._forward, EncoderDecoderTargets) else None
        model.generation_config = GenerationConfig(
            do_sample=False,
            eos_token_id=encoder.end_id,
            pad_token_id=encoder.end_id,
            bos_token_id=encoder.tokenizer.bos_token_id,
            decoder_start_token_id=start,
        )

    @property
    def prefix_caches(self) -> tuple[PrefixCache, ...]:
        """See ``Scorer``."""
        return self._forward.prefix_caches

    def length(self, item: EncodedItem) -> int:
        """Tokens the model reads for this item, source and target."""
        return len(item.prefix_ids) + len(item.response_ids) + len(item.request_ids) + len(item.target_ids)

    def prefix(self, item: EncodedItem) -> Prefix | None:
        """See ``Scorer``."""
        return self._forward.prefix(item)

    def cost(self, item: EncodedItem, beside: set[Prefix]) -> int:
        """See ``Scorer``."""
        return self._forward.cost(item, beside)

    def batches(self, items: Sequence[EncodedItem], max_tokens: int) -> Iterator[list[int]]:
        """See ``Scorer``."""
        return self._forward.batches(items, max_tokens)

    @torch.inference_mode()
    def start_forward(self, items: Sequence[EncodedItem]) -> Callable[[], list[TokenStatistics]]:
        """See ``Scorer``; token statistics ``(T,)`` on the CPU for each item."""
        return start_token_statistics(self._forward, items)

    def forward(self, items: Sequence[EncodedItem]) -> list[TokenStatistics]:
        """See ``start_forward``."""
        return self.start_forward(items)()

    def to_rewards(self, output: TokenStatistics, spec: RewardSpec) -> ScoredResponse:
        """Rewards under ``spec``; raises NonFiniteError."""
        if not torch.isfinite(output.entropy).all():
            raise NonFiniteError("the model's output for this item holds NaN or infinity")
        rewards = extract(output, spec.mode or self.extraction.mode, self.extraction)
        score = aggregate_rewards(rewards, spec.aggregate)
        return ScoredResponse(score, rewards.tolist(), divergence(output.agrees))

    def rewriter(self) -> Rewriter[TokenStatistics]:
        """The writer that this model allows: speculative where its keys and values can be kept."""
        if isinstance(self._forward, CausalTargets) and self._forward.is_packed:
            return PackedRewriter(self._forward, self.encoder)
        return PaddedRewriter(self.model, self._forward, self.encoder)
