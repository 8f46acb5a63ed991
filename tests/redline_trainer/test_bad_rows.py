"""Commands that read pairs skip bad rows on request, and write the skipped rows to a file next to their output."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from redline_cli.app import app
from redline_model.bundle.manifest import read_manifest
from redline_model.errors import DataError
from tests.conftest import build_causal, build_tokenizer

GOOD = [
    {"id": n, "prompt": f"How {n}?", "chosen": "Hold it. " * (n % 5 + 1), "rejected": f"Eat {n}."} for n in range(20)
]
# a row without a rejected response, and a row that cannot be encoded
BAD = [{"prompt": "p", "chosen": "a"}, {"prompt": "p", "chosen": "a", "rejected": "b", "tools": [{"name": "x"}]}]


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def skipped_rows(folder: Path, name: str) -> list[int]:
    return [json.loads(line)["row"] for line in (folder / name).read_text().splitlines()]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    tokenizer = build_tokenizer()
    build_causal(len(tokenizer)).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    rows = [BAD[0], *GOOD[:10], BAD[1], *GOOD[10:]]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def bundle(home: Path) -> Path:
    pairs = ["--pairs", home / "pairs.jsonl"]
    train = ["train", *pairs, "--base", home / "base", "--out", home / "rm", "--kind", "scalar", "--max-steps", 1]
    refused = run(*train)
    assert isinstance(refused.exception, DataError)
    assert "pairs.jsonl:1: 'rejected' is missing" in str(refused.exception)
    done = run(*train, "--on-bad-row", "skip")
    assert done.exit_code == 0, done.output
    assert "skipped 2 of 22 rows" in done.output
    assert "ignored columns: id (20 rows)" in done.output
    assert skipped_rows(home, "rm-skipped.jsonl") == [1, 12]
    return home / "rm"


def test_figures_are_computed_on_the_good_rows(bundle: Path, home: Path, tmp_path: Path) -> None:
    evaluate = ["evaluate", bundle, "--pairs", home / "pairs.jsonl", "--out", tmp_path / "figures.json"]
    assert isinstance(run(*evaluate).exception, DataError)
    for options in ([], ["--precision", "float32", "--precision", "float32"]):
        done = run(*evaluate, "--on-bad-row", "skip", *options)
        assert done.exit_code == 0, done.output
        assert done.output.count("skipped 2 of 22 rows") == 1
        assert skipped_rows(tmp_path, "figures-skipped.jsonl") == [1, 12], "each once"


def test_derived_bundles_are_evaluated_on_the_good_rows(bundle: Path, home: Path, tmp_path: Path) -> None:
    for name, command in (("red", ["derive", "red"]), ("free", ["derive", "length-calibrated"])):
        derive = [*command, bundle, "--pairs", home / "pairs.jsonl", "--out", tmp_path / name]
        assert isinstance(run(*derive).exception, DataError)
        done = run(*derive, "--on-bad-row", "skip")
        assert done.exit_code == 0, done.output
        assert skipped_rows(tmp_path, f"{name}-skipped.jsonl") == [1, 12], "each once"
        assert next(iter(read_manifest(tmp_path / name).metrics["accuracy"].values()))["pairs"] == 20
