"""The comparison of precisions: its figures, its command and its errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from redline.preference_data.rows import Pair
from redline_cli.app import run
from redline_model.bundle.bundle import Bundle
from redline_model.errors import DataError, UnsupportedError
from redline_trainer.evaluation.precision import compare_precisions

PAIRS = [
    Pair(f"How do I reset router {n}?", f"Hold the round button {n} times.", "I am sorry.", f"pairs:{n}")
    for n in range(6)
]


def test_a_precision_agrees_with_itself(bundle: Bundle) -> None:
    *_, table = compare_precisions(bundle.folder, PAIRS, ["float32", "float32"])
    for row in table.rows:
        assert row.argmax_agreement == row.same_paper_rewards == 1.0
        assert row.score_correlation == pytest.approx(1.0)
        assert row.score_shift == pytest.approx(0.0, abs=1e-5)
    assert table.pairs == table.rows[0].accuracy.pairs == 6


@pytest.mark.parametrize("precision", ["bfloat16", "int8", "nf4"])
def test_a_lower_precision_needs_less_memory_and_its_scores_correlate(bundle: Bundle, precision: str) -> None:
    *_, table = compare_precisions(bundle.folder, PAIRS, ["float32", precision])
    exact, rounded = table.rows
    assert rounded.weights_mb < exact.weights_mb
    assert rounded.argmax_agreement is not None
    assert 0.0 < rounded.argmax_agreement <= 1.0
    assert rounded.score_correlation > 0.5


def test_a_scalar_model_has_no_argmax(scalar_bundle: Bundle) -> None:
    *_, table = compare_precisions(scalar_bundle.folder, PAIRS, ["float32", "bfloat16"])
    assert [row.argmax_agreement for row in table.rows] == [None, None]
    assert table.reading == "scalar/sum"


def test_an_unknown_precision_is_an_error_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="int4"):
        next(compare_precisions(tmp_path / "nowhere", PAIRS, ["float32", "int4"]))


def test_pairs_that_are_all_too_long_are_an_error(bundle: Bundle) -> None:
    with pytest.raises(DataError, match="too long"):
        next(compare_precisions(bundle.folder, [Pair("p " * 600, "a", "b", "here")], ["float32"]))


def test_the_command_prints_a_table_and_writes_it(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "pairs.jsonl"
    rows: list[dict[str, Any]] = [{"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected} for p in PAIRS]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "deep" / "figures.json"
    command = ["redline", "evaluate", str(bundle.folder), "--pairs", str(file), "--limit", "4", "--out", str(out)]
    monkeypatch.setattr("sys.argv", [*command, "--precision", "float32", "--precision", "bfloat16"])
    with pytest.raises(SystemExit) as exit_info:
        run()
    assert exit_info.value.code in {0, None}
    printed = capsys.readouterr().out
    assert "bfloat16" in printed
    assert "4 pairs" in printed
    assert [row["precision"] for row in json.loads(out.read_text())["rows"]] == ["float32", "bfloat16"]
