"""The Bradley-Terry reward model (arXiv 2009.01325), the baseline: one score per response, on its last token."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from redline_model.correction.rewriter import Correction
from redline_model.encoding.items import EncodedItem
from redline_model.errors import NonFiniteError
from redline_model.extraction import aggregate_rewards
from redline_model.inference.causal_forward import PrefixedSequence
from redline_model.inference.score_head import check_pooling, prompt_and_response
from redline_model.inference.token_statistics import start_copy_to_cpu
from redline_model.kinds import BundleReader, KindSpec
from redline_model.reward_spec import RewardSpec
from redline_model.scorer import ScoredResponse
from redline_model.scorers._classifier import ClassifierScorer


class ScalarOutput(NamedTuple):
    """The model's score, and the number of tokens of the response."""

    score: float
    tokens: int


class ScalarScorer(ClassifierScorer[ScalarOutput]):
    """One score per response, on its last token."""

    kind = "scalar"

    def sequence(self, item: EncodedItem) -> PrefixedSequence:
        """``[x, y]``; in arrangement ``conversation`` it ends where transformers reads the score.

        That is the last token that is not the pad token. If a model pads with the token that closes a turn, it is the
        token before that one: the head was trained there.
        """
        if self.encoder.arrangement != "conversation":
            return prompt_and_response(item)
        ids = [*item.prefix_ids, *item.response_ids, *item.instruction_ids]
        pad_id = self.model.config.get_text_config().pad_token_id
        end = len(ids)
        while end > 1 and ids[end - 1] == pad_id:
            end -= 1
        cut = min(len(item.prefix_ids), end - 1)
        return PrefixedSequence(tuple(ids[:cut]), ids[cut:end])

    @torch.inference_mode()
    def start_forward(self, items: Sequence[EncodedItem]) -> Callable[[], list[ScalarOutput]]:
        """See ``Scorer``; the score of each item."""
        sequences = [self.sequence(item) for item in items]
        last = [range(len(sequence.suffix) - 1, len(sequence.suffix)) for sequence in sequences]
        scores = start_copy_to_cpu(self._forward.values(sequences, last))
        return lambda: [
            ScalarOutput(score, len(item.target_ids)) for score, item in zip(scores().tolist(), items, strict=True)
        ]

    def to_rewards(
        self, output: ScalarOutput, spec: RewardSpec, correction: Correction | None = None
    ) -> ScoredResponse:
        """0 on every token but the last. Raises NonFiniteError."""
        if not math.isfinite(output.score):
            raise NonFiniteError("the model's output for this item holds NaN or infinity")
        rewards = [0.0] * (output.tokens - 1) + [output.score]
        score = aggregate_rewards(torch.tensor(rewards, dtype=torch.float64), spec.aggregate)
        return ScoredResponse(score, rewards, None)


def _load(reader: BundleReader) -> ScalarScorer:
    model: Any = reader.model()
    if reader.template.style == "conversation":  # a Hugging Face reward model, not made by Redline
        check_pooling(model, reader.folder)
    return ScalarScorer.from_model(
        model, reader.encoder(model), reader.extraction, prefix_cache_tokens=reader.prefix_cache_tokens
    )


KIND = KindSpec(
    description="A Bradley-Terry model (arXiv 2009.01325): one number for a whole response, on its last token.",
    architecture="classifier",
    make_scorer=ScalarScorer.from_model,
    load=_load,
    supports_conversation_style=True,
)
