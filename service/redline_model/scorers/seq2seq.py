"""The sequence-to-sequence reward model (arXiv 2409.00162): token rewards from one forward pass.

Greedy decoding given (x, y) reproduces ``y_<t`` as long as every earlier argmax agreed, so up to the first
divergence the generated token *is* the teacher-forced argmax. One pass over ``[x, y, y]`` (decoder-only) or
``encoder[x, y] -> decoder[y]`` therefore gives the same rewards as generating, comparing and feeding the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from transformers import GenerationConfig

from redline_model.correction.edits import token_edits
from redline_model.correction.rewriter import Correction, PackedRewriter, PaddedRewriter, Rewriter
from redline_model.encoding.encoder import Encoder
from redline_model.encoding.items import EncodedItem
from redline_model.extraction import TokenStatistics
from redline_model.inference.planner import Planner
from redline_model.inference.target_logits import CausalTargets, EncoderDecoderTargets, probed_targets
from redline_model.inference.token_statistics import start_token_statistics
from redline_model.kinds import KindSpec
from redline_model.options import MODES, SFT_MODES, Extraction, Mode
from redline_model.reward_spec import RewardSpec
from redline_model.scorer import ScoredResponse
from redline_model.scorers._statistics import rewards_of


class Seq2SeqScorer:
    """Scores with a language model that is trained to rewrite responses. See ``redline_model.scorer.Scorer``.

    Args:
        model: a transformers causal or encoder-decoder language model, in evaluation mode.
        forward: its forward pass.
    """

    kind = "seq2seq"
    can_correct = True

    @classmethod
    def from_model(cls, model: Any, encoder: Encoder, extraction: Extraction, *, prefix_cache_tokens: int = 0) -> Self:
        """The scorer around ``model``.

        Runs the model on probes, sets its attention implementation, and replaces its generation settings by those of
        greedy decoding.
        """
        forward = probed_targets(model, prefix_cache_tokens, reads_source=extraction.has_sft)
        # a correction is the plain argmax; a base model's settings may have penalties, forced or suppressed tokens
        model.generation_config = GenerationConfig(
            do_sample=False,
            eos_token_id=encoder.end_id,
            pad_token_id=encoder.end_id,
            bos_token_id=encoder.tokenizer.bos_token_id,
            decoder_start_token_id=forward.start_id if isinstance(forward, EncoderDecoderTargets) else None,
        )
        return cls(model, encoder, extraction, forward)

    def __init__(
        self, model: Any, encoder: Encoder, extraction: Extraction, forward: CausalTargets | EncoderDecoderTargets
    ) -> None:
        self.model = model
        self.models = (model,)
        self.encoder = encoder
        self.extraction = extraction
        self.modes: tuple[Mode, ...] = tuple(m for m in MODES if extraction.has_sft or m not in SFT_MODES)
        self._forward = forward
        self.planner: Planner = forward.planner

    @torch.inference_mode()
    def start_forward(self, items: Sequence[EncodedItem]) -> Callable[[], list[TokenStatistics]]:
        """See ``Scorer``; token statistics ``(T,)`` on the CPU for each item."""
        return start_token_statistics(self._forward, items)

    def forward(self, items: Sequence[EncodedItem]) -> list[TokenStatistics]:
        """See ``Scorer``."""
        return self.start_forward(items)()

    def to_rewards(
        self, output: TokenStatistics, spec: RewardSpec, correction: Correction | None = None
    ) -> ScoredResponse:
        """See ``Scorer``."""
        edits = None if correction is None else token_edits(correction.response_ids, correction.ids)
        return rewards_of(output, spec, self.extraction, edits)

    def rewriter(self) -> Rewriter[TokenStatistics]:
        """A rewriter for this model: with speculative decoding over all rewrites at once if the model runs packed."""
        if isinstance(self._forward, CausalTargets) and self._forward.is_packed:
            return PackedRewriter(self._forward, self.encoder)
        return PaddedRewriter(self.model, self._forward, self.encoder)


KIND = KindSpec(
    description="It reads a prompt and a response and writes the better response (arXiv 2409.00162). Tokens that "
    "agree with what it would write earn reward, tokens that diverge lose it.",
    architecture="language_model",
    make_scorer=Seq2SeqScorer.from_model,
    mode="`{mode}`",
    aggregate="mean",
)
