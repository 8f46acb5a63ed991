"""Length calibration removes the trend in length, and the bundle records how it was fitted."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
import torch

from redline.preference_data.rows import Pair
from redline_model.bundle.bundle import Bundle
from redline_model.bundle.manifest import DataSource
from redline_model.encoding.items import Item
from redline_model.errors import BundleError, DataError, UnsupportedError
from redline_model.options import CORRECTION_MODES
from redline_model.reward_spec import RewardSpec, reward_spec
from redline_model.scorer import Scorer, forward_all
from redline_model.scorers.length_calibrated import INNER, LengthCalibratedScorer
from redline_model.scorers.scalar import ScalarOutput
from redline_trainer.correlation import pearson
from redline_trainer.evaluation.length_calibration import derive_length_calibrated, fit_length_curves

PAIRS = [
    Pair(f"Question {n}?", "Hold the button. " * (n % 7 + 1), "Go away. " * (n % 4 + 1), f"t:{n}") for n in range(24)
]


class LengthRewarder:
    """A scorer whose score grows with the length, plus noise that does not depend on it."""

    def __init__(self, scorer: Scorer[Any], noise: float) -> None:
        self._scorer = scorer
        self._noise = noise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scorer, name)

    def forward(self, items: Any) -> list[Any]:
        noise = [self._noise * ((crc32(item.text.encode()) % 1000) / 1000 - 0.5) for item in items]
        sizes = [len(item.target_ids) for item in items]
        return [ScalarOutput(3.0 + 0.5 * size + e, size) for size, e in zip(sizes, noise, strict=True)]


def test_a_linear_trend_in_length_is_removed(scalar_scorer: Scorer[Any]) -> None:
    items = [scalar_scorer.encoder.encode(Item("Hi", "word " * (1 + n % 40) + str(n))) for n in range(160)]
    lengths = torch.tensor([float(len(item.target_ids)) for item in items], dtype=torch.float64)
    for noise, max_correlation in ((0.0, 1e-6), (4.0, 0.1)):
        inner: Any = LengthRewarder(scalar_scorer, noise)
        scorer = LengthCalibratedScorer(inner, fit_length_curves(inner, items))
        for aggregate in ("sum", "last"):
            spec = RewardSpec(None, aggregate)  # type: ignore[arg-type]
            scores = [
                torch.tensor([scorer_part.to_rewards(m, spec).score for m in inner.forward(items)], dtype=torch.float64)
                for scorer_part in (inner, scorer)
            ]
            assert pearson(scores[0], lengths) > 0.9
            assert (
                float(scores[1].abs().max()) < 1e-6
                if noise == 0
                else abs(pearson(scores[1], lengths)) < max_correlation
            )


@pytest.mark.parametrize("kind", ["bundle", "scalar_bundle"])
def test_a_length_calibrated_bundle_from_pairs(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    source: Bundle = request.getfixturevalue(kind)
    data = [DataSource(name="pairs.jsonl", sha256=None, pairs=len(PAIRS))]
    written = derive_length_calibrated(source.folder, tmp_path / "out", PAIRS, fraction=0.5, data=data)
    loaded = Bundle.load(tmp_path / "out")
    assert loaded.manifest == written
    calibration = loaded.manifest.length_calibration
    assert calibration is not None
    assert (calibration.fraction, calibration.responses) == (0.5, 2 * len(PAIRS))
    assert loaded.manifest.data == data
    assert loaded.manifest.training["derived_from"][0]["digest"] == source.digest
    assert set(calibration.curves) == set(source_keys(source))
    assert len(loaded.manifest.calibration) == len(calibration.curves)
    encode = loaded.scorer.encoder.encode
    items = [encode(Item(pair.prompt, text)) for pair in PAIRS for text in (pair.chosen, pair.rejected)]
    lengths = torch.tensor([float(len(item.target_ids)) for item in items], dtype=torch.float64)
    spec = reward_spec(loaded.scorer)
    scores = [
        torch.tensor([s.to_rewards(m, spec).score for m in forward_all(s, items, 2048)], dtype=torch.float64)
        for s in (source.scorer, loaded.scorer)
    ]
    assert abs(pearson(scores[1], lengths)) < max(0.1, 0.5 * abs(pearson(scores[0], lengths)))
    assert Bundle.load(tmp_path / "out" / INNER).digest == source.digest, "the inner bundle is complete"


def source_keys(bundle: Bundle) -> list[str]:
    # no curve for modes that need corrections of all responses
    modes = [mode for mode in bundle.scorer.modes if mode not in CORRECTION_MODES] or [bundle.scorer.kind]
    return [f"{mode}/{aggregate}" for mode in modes for aggregate in ("sum", "mean", "last")]


def test_invalid_inputs_are_errors_before_anything_is_written(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no pairs"):
        derive_length_calibrated(bundle.folder, tmp_path / "out", [])
    with pytest.raises(DataError, match="too long"):
        derive_length_calibrated(bundle.folder, tmp_path / "out", [Pair("p", "word " * 900, "no", "t:1")])
    with pytest.raises(UnsupportedError, match="fraction"):
        derive_length_calibrated(bundle.folder, tmp_path / "out", PAIRS, fraction=0.0)
    (tmp_path / "taken").mkdir()
    with pytest.raises(BundleError, match="exists"):
        derive_length_calibrated(bundle.folder, tmp_path / "taken", PAIRS)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
