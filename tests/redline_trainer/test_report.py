"""The quality report of reward models: every figure against a manual count or its definition."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from redline.preference_data.rows import Pair
from redline_cli.app import run
from redline_model.bundle.bundle import Bundle
from redline_model.errors import DataError
from redline_trainer.correlation import pearson
from redline_trainer.evaluation.error_spans import (
    auc_difference,
    average_precision,
    error_tokens,
    roc_auc,
    span_detection,
)
from redline_trainer.evaluation.report import (
    _probabilities,
    _without_trend,
    plot_reliability,
    quality_report,
    reliability,
)
from redline_trainer.load_pairs import load_pairs

PAIRS = [
    Pair(
        "How do I reset my router?" if n % 2 else f"What is {n}?",
        f"hold the round button {n}",
        f"open the network panel {n} and wait",
        f"row {n}",
        ((5, 8),) if n % 3 else (),
    )
    for n in range(10)
]


def test_a_token_is_marked_if_it_shares_a_character_with_a_span() -> None:
    offsets = [(0, 4), (4, 8), (8, 9), (9, 9)]
    assert error_tokens(offsets, [(3, 5)]).tolist() == [True, True, False, False]
    assert error_tokens(offsets, [(8, 9)]).tolist() == [False, False, True, False]
    assert error_tokens(offsets, [(4, 4)]).tolist() == [False] * 4
    assert error_tokens(offsets, [(2, 2)]).tolist() == [False] * 4  # inside a token
    assert error_tokens(offsets, []).tolist() == [False] * 4


def test_auc_is_the_share_of_pairs_of_tokens_whose_marked_one_has_the_higher_error_score() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 6, (40,), generator=generator).double()  # with ties
    marked = torch.rand(40, generator=generator) < 0.4
    above = [1.0 if p > n else 0.5 if p == n else 0.0 for p in scores[marked] for n in scores[~marked]]
    assert roc_auc(scores, marked) == pytest.approx(sum(above) / len(above))
    assert roc_auc(torch.tensor([1.0, 2.0]), torch.tensor([False, True])) == 1.0
    assert roc_auc(torch.zeros(4), torch.tensor([False, True, True, False])) == 0.5
    assert roc_auc(torch.zeros(2), torch.tensor([True, True])) == 0.5


def test_average_precision_is_the_mean_precision_at_every_marked_token() -> None:
    scores = torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0])
    marked = torch.tensor([True, False, True, False, False])
    assert average_precision(scores, marked) == pytest.approx((1 / 1 + 2 / 3) / 2)
    assert average_precision(torch.zeros(5), marked) == pytest.approx(0.4)  # all tied: the marked share
    assert average_precision(scores, torch.zeros(5, dtype=torch.bool)) == 0.0


def test_a_weight_counts_a_token_as_often_as_repeating_it() -> None:
    scores, marked = torch.tensor([3.0, 2.0, 2.0, 1.0]), torch.tensor([True, False, True, False])
    weights = torch.tensor([2, 1, 0, 3])
    repeated = torch.repeat_interleave(torch.arange(4), weights)
    for figure in (roc_auc, average_precision):
        assert figure(scores, marked, weights) == pytest.approx(figure(scores[repeated], marked[repeated]))


def test_the_interval_of_span_detection_resamples_prompts() -> None:
    generator = torch.Generator().manual_seed(0)
    marked = [torch.rand(12, generator=generator) < 0.4 for _ in range(20)]
    scores = [m.double() + torch.randn(12, generator=generator) for m in marked]
    detection = span_detection(scores, marked, [f"p{n}" for n in range(20)])
    assert 0.5 < detection.auc_low < detection.auc < detection.auc_high < 1
    assert detection.average_precision_low < detection.average_precision < detection.average_precision_high
    assert detection.tokens == 240
    ahead, low, high = auc_difference(
        detection, span_detection([-s for s in scores], marked, [f"p{n}" for n in range(20)])
    )
    assert ahead == pytest.approx(2 * detection.auc - 1)
    assert low < ahead < high
    assert auc_difference(detection, detection) == (0.0, 0.0, 0.0)
    one_prompt = span_detection(scores, marked, ["p"] * 20)
    assert one_prompt.auc_low == one_prompt.auc_high == pytest.approx(detection.auc)


def test_reliability_counts_both_orders_of_every_pair() -> None:
    bins = reliability(torch.tensor([0.95, 0.95, 0.35], dtype=torch.float64))
    assert [(b.low, b.pairs, b.observed) for b in bins] == [(0.0, 2, 0.0), (0.3, 1, 1.0), (0.6, 1, 0.0), (0.9, 2, 1.0)]
    assert bins[-1].predicted == pytest.approx(0.95)


def test_the_report_has_the_figures_of_a_manual_count(bundle: Bundle, tmp_path: Path) -> None:
    report = quality_report(bundle.scorer, PAIRS)
    assert report.accuracy.pairs == 10
    assert report.accuracy.prompts == 6
    assert report.longer_wins == 0.0
    assert set(report.spans) == {f"{mode}/sum" for mode in bundle.scorer.modes}
    assert sum(b.pairs for b in report.reliability) == 20
    assert report.skipped_pairs == 0
    plot_reliability({"one": report}, tmp_path / "deep" / "plot.png")
    plot_reliability({r"$\\frac$x$": report}, tmp_path / "plot.png")  # not rendered as a formula
    assert (tmp_path / "deep" / "plot.png").stat().st_size > 5000


def test_pairs_without_spans_have_no_span_figures_and_long_pairs_are_counted(bundle: Bundle) -> None:
    plain = [Pair(p.prompt, p.chosen, p.rejected, p.where) for p in PAIRS]
    long = Pair("x " * 3000, "a", "b", "long")
    report = quality_report(bundle.scorer, [long, *plain])
    assert report.spans == {}
    assert report.skipped_pairs == 1
    with pytest.raises(DataError, match="no pair fits"):
        quality_report(bundle.scorer, [long])


def test_pairs_without_annotations_do_not_count_as_free_of_errors(bundle: Bundle) -> None:
    unseen = [Pair(p.prompt, p.chosen, p.rejected, p.where) for p in PAIRS]
    alone = quality_report(bundle.scorer, PAIRS).spans["margin/sum"]
    assert quality_report(bundle.scorer, [*PAIRS, *unseen]).spans["margin/sum"].tokens == alone.tokens


def test_spans_are_read_and_checked(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    row = {"prompt": "p", "chosen": "good", "rejected": "bad text"}
    rows = [
        {**row, "spans": [{"start": 0, "end": 3, "label": "BAD"}]},
        {**row, "spans": "another field of that name"},
        {"chosen": "p good", "rejected": "p bad text", "spans": [{"start": 0, "end": 3}]},
    ]
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert [pair.spans for pair in load_pairs([file])[0]] == [((0, 3),), None, None]
    file.write_text(json.dumps({**row, "spans": [{"start": 0, "end": 9}]}))
    with pytest.raises(DataError, match="does not lie in 'rejected'"):
        load_pairs([file])


def test_the_command_prints_figures_and_writes_them(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out, plot = tmp_path / "pairs.jsonl", tmp_path / "figures.json", tmp_path / "plot.png"
    rows = [
        {
            "prompt": p.prompt,
            "chosen": p.chosen,
            "rejected": p.rejected,
            "spans": [{"start": s, "end": e} for s, e in p.spans or ()],
        }
        for p in PAIRS
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["redline", "evaluate", str(bundle.folder), "--pairs", str(file), "--out", str(out), "--plot", str(plot)]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as exit_info:
        run()
    assert exit_info.value.code in {0, None}
    printed = capsys.readouterr().out
    assert "of 10 pairs right" in printed
    assert "humans marked" in printed
    assert json.loads(out.read_text())["accuracy"]["pairs"] == 10
    assert plot.exists()


def test_a_trend_in_length_is_removed_with_the_curve_of_the_other_half() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(5, 60, (400,), generator=generator).double()
    halves = torch.arange(400) % 2 == 1
    noise = torch.randn(400, generator=generator).double()
    free = _without_trend(0.5 * lengths + noise, lengths, halves)
    assert abs(pearson(free, lengths)) < 0.1
    assert pearson(free, noise) > 0.95
    # a half with another trend keeps what the curve of the other half does not explain
    crossed = _without_trend(torch.where(halves, lengths, -lengths), lengths, halves)
    assert torch.allclose(crossed[halves], 2 * lengths[halves], atol=1e-6)


def test_one_very_long_response_does_not_cause_a_trend() -> None:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(5, 60, (60,), generator=generator).double()
    lengths[7] = 600.0
    noise = torch.randn(60, generator=generator).double()
    free = _without_trend(noise, lengths, torch.arange(60) % 2 == 1)
    assert abs(float(free[7] - noise[7])) < 2.0
    assert abs(pearson(free, lengths)) < abs(pearson(noise, lengths)) + 0.2


def test_a_temperature_is_that_of_the_other_half() -> None:
    halves = torch.arange(40) % 2 == 1
    sign = torch.where(torch.arange(40) % 10 < 8, 1.0, -1.0).double()  # four in five are right
    differences = torch.where(halves, 10.0, 1.0).double() * sign
    probabilities, _ = _probabilities(differences, halves)
    assert probabilities[halves].max() > 0.999  # differences of ten by the temperature of ones
    assert probabilities[~halves].max() < 0.6
