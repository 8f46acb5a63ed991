"""Post-hoc length calibration (arXiv 2409.17407): a score minus the score that the response's length predicts.

``r*(x, y) = r(x, y) - LOWESS(r | length)``, where length is in response tokens (including the end token) and the curve
is fitted on a reference set of scored responses. The inner model's token rewards are kept, except that the correction c
is added to the last one so that they aggregate to the corrected score: c for ``sum`` and ``last``, T c for ``mean``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from redline_model.correction.rewriter import Correction, Rewriter
from redline_model.encoding.items import EncodedItem
from redline_model.errors import UnsupportedError
from redline_model.extraction import move_score
from redline_model.kinds import BundleReader, KindSpec
from redline_model.options import LengthCalibration, LengthCurve, Mode
from redline_model.reward_spec import RewardSpec, all_reward_specs, spec_key
from redline_model.scorer import ScoredResponse, Scorer

INNER = "inner"  # the sub-folder with the bundle whose scores are corrected


class LengthCalibratedScorer:
    """Another scorer with the trend of its scores in length removed. See ``redline_model.scorer.Scorer``.

    Args:
        curves: one per reward specification of ``inner``, by ``spec_key``.

    Raises:
        UnsupportedError: a specification has no curve.
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
        self.modes: tuple[Mode, ...] = tuple(m for m in inner.modes if f"{m}/sum" in curves)
        self.extraction = inner.extraction
        self.encoder = inner.encoder
        self.planner = inner.planner
        self.can_correct = inner.can_correct

    def start_forward(self, items: Sequence[EncodedItem]) -> Callable[[], list[Any]]:
        """See ``Scorer``; the inner model's outputs."""
        return self.inner.start_forward(items)

    def forward(self, items: Sequence[EncodedItem]) -> list[Any]:
        """See ``Scorer``."""
        return self.inner.forward(items)

    def to_rewards(self, output: Any, spec: RewardSpec, correction: Correction | None = None) -> ScoredResponse:
        """The inner model's score minus the curve at the response's length. Raises NonFiniteError."""
        scored = self.inner.to_rewards(output, spec, correction)
        expected = self.curves[spec_key(self.inner, spec)].at(len(scored.rewards))
        rewards = move_score(scored.rewards, -expected, spec.aggregate)
        return ScoredResponse(scored.score - expected, rewards, scored.diverged_at)

    def rewriter(self) -> Rewriter[Any]:
        """The inner model's rewriter. Raises UnsupportedError if it has none."""
        return self.inner.rewriter()


def _load(reader: BundleReader) -> LengthCalibratedScorer:
    calibration: LengthCalibration = reader.kind_options
    return LengthCalibratedScorer(reader.inner_bundle(INNER), calibration.curves)


KIND = KindSpec(
    description="The reward model in `inner/` less what its scores owe to a response's length (arXiv 2409.17407).",
    load=_load,
    contents="The folder `inner/` is a complete bundle;",
    mode="as that of `inner/`",
)
