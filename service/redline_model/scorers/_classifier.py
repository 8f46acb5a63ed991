"""Base class of scorers that use a sequence classifier with one label."""

from __future__ import annotations

from typing import Any, Self, TypeVar

from redline_model.encoding.encoder import Encoder
from redline_model.encoding.items import EncodedItem
from redline_model.inference.causal_forward import PrefixedSequence
from redline_model.inference.planner import CausalPlanner, Planner
from redline_model.inference.score_head import ScalarForward, prompt_and_response
from redline_model.options import Extraction, Mode
from redline_model.scorer import ScoreOnly

M = TypeVar("M")


class ClassifierScorer(ScoreOnly[M]):
    """Base of the scorers. See ``redline_model.scorer.Scorer``.

    Args:
        model: a transformers sequence classifier with one label, in evaluation mode.
        forward: its forward pass.
    """

    modes: tuple[Mode, ...] = ()

    @classmethod
    def from_model(cls, model: Any, encoder: Encoder, extraction: Extraction, *, prefix_cache_tokens: int = 0) -> Self:
        """The scorer around ``model``; runs it on a probe and sets its attention implementation.

        Raises:
            UnsupportedError: the model has no linear head that reads a score.
        """
        return cls(model, encoder, extraction, ScalarForward.probed(model, prefix_cache_tokens))

    def __init__(self, model: Any, encoder: Encoder, extraction: Extraction, forward: ScalarForward) -> None:
        self.model = model
        self.models = (model,)
        self.encoder = encoder
        self.extraction = extraction
        self._forward = forward
        self.planner: Planner = CausalPlanner(forward.causal, self.sequence)

    def sequence(self, item: EncodedItem) -> PrefixedSequence:
        """The sequence that the model reads for an item."""
        return prompt_and_response(item)
