"""Rewards from token statistics, for the kinds whose modes are functions of them."""

from __future__ import annotations

import torch
from torch import Tensor

from redline_model.errors import NonFiniteError
from redline_model.extraction import TokenStatistics, aggregate_rewards, divergence, extract
from redline_model.options import Extraction
from redline_model.reward_spec import RewardSpec
from redline_model.scorer import ScoredResponse


def rewards_of(
    output: TokenStatistics, spec: RewardSpec, extraction: Extraction, token_edits: Tensor | None = None
) -> ScoredResponse:
    """The rewards of one item, and its score, by their modes.

    Args:
        token_edits: ``(T,)``, see ``redline_model.extraction.edits``; needed by the modes in ``CORRECTION_MODES`` only.

    Raises:
        NonFiniteError: the statistics hold NaN or infinity.
        UnsupportedError: a mode needs a correction or a pass that was not computed.
    """
    if not torch.isfinite(output.entropy).all():
        raise NonFiniteError("the model's output for this item holds NaN or infinity")
    rewards, scored = (
        extract(output, mode or extraction.mode, extraction, token_edits) for mode in (spec.mode, spec.mode_of_score)
    )
    return ScoredResponse(aggregate_rewards(scored, spec.aggregate), rewards.tolist(), divergence(output.agrees))
