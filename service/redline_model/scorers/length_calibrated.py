"""Post-hoc length calibration (arXiv 2409.17407): a reward less what its length alone would lead one to expect.

``r*(x, y) = r(x, y) - LOWESS(r | length)``, length in response tokens (the end token included), the curve fitted on
a reference set of scored responses. The inner model's token rewards stay; the correction c goes onto the last one
such that their aggregate is the corrected score: c under ``sum`` and ``last``, T c under ``mean``.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from redline_model.correction.rewriter import Rewriter
from redline_model.encoding.encoder import EncodedItem
from redline_model.errors import UnsupportedError
from redline_model.extraction import Mode, RewardSpec, move_score
from redline_model.inference.prefix_cache import Prefix, PrefixCache
from redline_model.scorer import ScoredResponse, Scorer, all_reward_specs, spec_key


class LengthCurve(BaseModel):
    """Expected score by length in response tokens: linear between the knots, constant beyond the ends."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    lengths: list[float] = Field(min_length=1)
    values: list[float] = Field(min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.lengths) != len(self.values):
            raise ValueError(f"{len(self.lengths)} lengths and {len(self.values)} values")
        if any(a >= b for a, b in pairwise(self.lengths)):
            raise ValueError("the lengths do not increase")
        return self

    def at(self, length: float) -> float:
        """The expected score of a response of ``length`` tokens."""
        right = bisect_right(self.lengths, length)
        if right == 0 or right == len(self.lengths):
            return self.values[0 if right == 0 else -1]
        start, end = self.lengths[right - 1], self.lengths[right]
        share = (length - start) / (end - start)
        return (1 - share) * self.values[right - 1] + share * self.values[right]


class LengthCalibration(BaseModel):
    """The curves, keyed by the inner model's reading ``mode/aggregate``, and how they were fitted.

    ``fraction``: share of the reference set in each local regression. ``responses``: how many were scored.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    fraction: float = Field(gt=0, le=1)
    responses: int = Field(ge=1)
    curves: dict[str, LengthCurve]


class LengthCalibratedScorer:
    """Any scorer, its scores freed of their trend in length. See ``Scorer``.

    Args:
        curves: one for every reading of ``inner``, by ``spec_key``.

    Raises:
        UnsupportedError: a reading has no curve.
    """

    kind = "length_calibrated"

    def __init__(self, inner: Scorer[Any], curves: Mapping[str, LengthCurve]) -> None:
        missing = [key for spec in all_reward_specs(inner) if (key := spec_key(inner, spec)) not in curves]
        if missing:
            raise UnsupportedError(f"there is no length curve for {', '.join(missing)}")
        self.inner = inner
        self.curves = dict(curves)
        self.model = inner.model
        self.models = inner.models
        self.modes: tuple[Mode, ...] = inner.modes
        self.extraction = inner.extraction
        self.encoder = inner.encoder
        self.can_correct = inner.can_correct

    @property
    def prefix_caches(self) -> tuple[PrefixCache, ...]:
        """See ``Scorer``."""
        return self.inner.prefix_caches

    def length(self, item: EncodedItem) -> int:
        """See ``Scorer``."""
        return self.inner.length(item)

    def prefix(self, item: EncodedItem) -> Prefix | None:
        """See ``Scorer``."""
        return self.inner.prefix(item)

    def cost(self, item: EncodedItem, beside: set[Prefix]) -> int:
        """See ``Scorer``."""
        return self.inner.cost(item, beside)

    def batches(self, items: Sequence[EncodedItem], max_tokens: int) -> Iterator[list[int]]:
        """See ``Scorer``."""
        return self.inner.batches(items, max_tokens)

    def start_forward(self, items: Sequence[EncodedItem]) -> Callable[[], list[Any]]:
        """See ``Scorer``; the inner measurements."""
        return self.inner.start_forward(items)

    def forward(self, items: Sequence[EncodedItem]) -> list[Any]:
        """See ``start_forward``."""
        return self.inner.forward(items)

    def to_rewards(self, output: Any, spec: RewardSpec) -> ScoredResponse:
        """The inner judgement less the curve at its length; raises NonFiniteError."""
        scored = self.inner.to_rewards(output, spec)
        expected = self.curves[spec_key(self.inner, spec)].at(len(scored.rewards))
        rewards = move_score(scored.rewards, -expected, spec.aggregate)
        return ScoredResponse(scored.score - expected, rewards, scored.diverged_at)

    def rewriter(self) -> Rewriter[Any]:
        """The inner model's; raises UnsupportedError where it does not write."""
        return self.inner.rewriter()
