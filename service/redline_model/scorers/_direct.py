"""Base class of scorers with one causal language model that reads ``[x, y]``: the response is not in the context."""

from __future__ import annotations

from typing import Any, Self, TypeVar

from redline_model.encoding.encoder import Encoder
from redline_model.inference.planner import Planner, causal_planner
from redline_model.inference.target_logits import CausalTargets, direct_sequence
from redline_model.options import Extraction, Mode
from redline_model.scorer import ScoreOnly

M = TypeVar("M")


class DirectScorer(ScoreOnly[M]):
    """Base of the scorers. See ``redline_model.scorer.Scorer``.

    Args:
        model: a transformers causal language model, in evaluation mode.
        forward: its forward pass.
    """

    modes: tuple[Mode, ...] = ()

    @classmethod
    def from_model(cls, model: Any, encoder: Encoder, extraction: Extraction, *, prefix_cache_tokens: int = 0) -> Self:
        """The scorer around ``model``; runs it on probes and sets its attention implementation."""
        return cls(model, encoder, extraction, CausalTargets.probed(model, prefix_cache_tokens))

    def __init__(self, model: Any, encoder: Encoder, extraction: Extraction, forward: CausalTargets) -> None:
        self.model = model
        self.models = (model,)
        self.encoder = encoder
        self.extraction = extraction
        self._forward = forward
        self.planner: Planner = causal_planner(
            forward.forward, direct_sequence, lambda item: direct_sequence(item).tokens
        )
