"""The Bradley-Terry reward model (arXiv 2009.01325), the baseline: one scalar, on the last token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from redline_model.batches import pad
from redline_model.errors import NonFiniteError
from redline_model.extraction import Extraction, Mode, Reading, aggregate_rewards
from redline_model.scorers.protocol import Correction, Judgement, unsupported_correction
from redline_model.template import EncodedItem, Encoder


def scalar_rewards(model: Any, items: Sequence[EncodedItem]) -> Tensor:
    """``r(x, y)`` of each item, ``(B,)`` in float32, read at the last real token.

    Pooling goes by length, not by the pad id: transformers' own pooling looks for the last token that is not
    the pad id, which is wrong wherever a tokenizer pads with its end token.
    """
    sequences = [[*item.prefix_ids, *item.target_ids] for item in items]
    batch = pad(sequences, model.device)
    hidden = model.base_model(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
    ).last_hidden_state
    last = torch.tensor([len(s) - 1 for s in sequences], device=hidden.device)
    pooled = hidden[torch.arange(len(sequences), device=hidden.device), last]
    rewards: Tensor = model.score(pooled.to(model.score.weight.dtype)).squeeze(-1).float()
    return rewards


class ScalarMeasurement(NamedTuple):
    """The model's one number and how many tokens it is about."""

    reward: float
    tokens: int


class ScalarScorer:
    """Scores with a transformers sequence-classification model of one label. See ``Scorer``."""

    kind = "scalar"
    modes: tuple[Mode, ...] = ()

    def __init__(self, model: Any, encoder: Encoder, extraction: Extraction) -> None:
        self.model = model
        self.encoder = encoder
        self.extraction = extraction

    def length(self, item: EncodedItem) -> int:
        """Tokens the model reads for this item."""
        return len(item.prefix_ids) + len(item.target_ids)

    @torch.inference_mode()
    def measure(self, items: Sequence[EncodedItem]) -> list[ScalarMeasurement]:
        """The scalar of each item, from one forward pass."""
        rewards = scalar_rewards(self.model, items).tolist()
        return [ScalarMeasurement(r, len(i.target_ids)) for r, i in zip(rewards, items, strict=True)]

    def read(self, measured: ScalarMeasurement, reading: Reading) -> Judgement:
        """0 on every token but the last; raises NonFiniteError."""
        if not math.isfinite(measured.reward):
            raise NonFiniteError("the model's output for this item holds NaN or infinity")
        rewards = [0.0] * (measured.tokens - 1) + [measured.reward]
        score = aggregate_rewards(torch.tensor(rewards, dtype=torch.float64), reading.aggregate)
        return Judgement(score, rewards, None)

    def correct(self, item: EncodedItem, measured: ScalarMeasurement) -> Correction:
        """Always raises UnsupportedError."""
        raise unsupported_correction(self.kind)
