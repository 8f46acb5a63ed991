"""Rows of sets become responses with marked words, and comparisons."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from redline.benchmark.examples import comparisons, has_spans, marked_responses, subsets
from redline.benchmark.sets import KNOWN_SETS, known_files, set_file
from redline.errors import RowsError

SOURCE = "He go to school every days ."
GO, DAYS = {"start": 3, "end": 5}, {"start": 22, "end": 26}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def rewrite(chosen: str, spans: list[Any], references: list[str], gaps: tuple[int, ...] = ()) -> dict[str, Any]:
    meta = {"sentence": "7", "references": references, "gap_errors": list(gaps)}
    return {"prompt": "Write.", "chosen": chosen, "rejected": SOURCE, "spans": spans, "meta": meta}


def marked(tmp_path: Path, rows: list[dict[str, Any]]) -> list[str]:
    (response,) = marked_responses(write(tmp_path / "rows.jsonl", rows))
    return [SOURCE[s:e] for (s, e), mark in zip(response.words, response.marked, strict=True) if mark]


def test_a_word_is_marked_if_half_of_the_references_change_it(tmp_path: Path) -> None:
    references = ["A", "B", "C"]
    rows = [rewrite("A", [GO], references), rewrite("B", [GO, DAYS], references), rewrite("C", [], references)]
    assert marked(tmp_path, rows) == ["go"]
    assert marked(tmp_path, [rewrite("A", [GO], ["A", "B"]), rewrite("B", [DAYS], ["A", "B"])]) == ["go", "days"]


def test_references_equal_to_the_response_change_nothing_but_count(tmp_path: Path) -> None:
    references = ["A", SOURCE, SOURCE, "B"]
    assert marked(tmp_path, [rewrite("A", [GO], references), rewrite("B", [GO, DAYS], references)]) == ["go"]
    assert marked(tmp_path, [rewrite("A", [GO], ["A", SOURCE, SOURCE])]) == []


def test_a_reference_that_occurs_twice_counts_twice(tmp_path: Path) -> None:
    references = ["A", "A", "B", "C"]
    rows = [rewrite("A", [GO], references), rewrite("B", [DAYS], references), rewrite("C", [], references)]
    assert marked(tmp_path, rows) == ["go"]


def test_a_reference_that_the_set_left_out_is_not_counted(tmp_path: Path) -> None:
    references = ["A", "left out", "left out too"]
    assert marked(tmp_path, [rewrite("A", [GO], references)]) == ["go"]


def test_a_response_is_clean_only_if_nothing_is_missing_either(tmp_path: Path) -> None:
    def is_clean(*rows: dict[str, Any]) -> bool:
        return marked_responses(write(tmp_path / "rows.jsonl", list(rows)))[0].is_clean

    three = ["A", SOURCE, SOURCE]
    assert is_clean(rewrite("A", [GO], three, (2,)))
    assert not is_clean(rewrite("A", [], ["A", SOURCE], (2,)))
    assert not is_clean(rewrite("A", [GO], ["A", SOURCE]))


def test_rows_without_references_are_annotations_of_their_response(tmp_path: Path) -> None:
    row = {"prompt": "Ask.", "chosen": "x", "rejected": SOURCE}
    rows = [{**row, "spans": [GO]}, {**row, "spans": [GO, DAYS]}, {**row, "spans": []}, row]
    assert marked(tmp_path, rows) == ["go"]


def test_prompts_group_responses_and_limits_keep_all_annotations(tmp_path: Path) -> None:
    def row(prompt: str, rejected: str, spans: list[Any]) -> dict[str, Any]:
        return {"prompt": prompt, "chosen": "x", "rejected": rejected, "spans": spans}

    span = {"start": 0, "end": 1}
    rows = [row("1", "a b", [span]), row("2", "a b", []), row("1", "c d", []), row("1", "a b", []), row("1", "a b", [])]
    path = write(tmp_path / "rows.jsonl", rows)
    first, second, third = marked_responses(path)
    assert first.group == third.group != second.group
    assert len({first.key, second.key, third.key}) == 3
    assert marked_responses(path, 1) == [first]
    assert first.marked == [False, False], "one of three annotations"


def test_results_name_responses_without_their_text(tmp_path: Path) -> None:
    (response,) = marked_responses(write(tmp_path / "rows.jsonl", [rewrite("A", [GO], ["A"])]))
    assert all(len(name) == 16 and int(name, 16) >= 0 for name in (response.key, response.group))


def test_bad_rows_are_refused(tmp_path: Path) -> None:
    path = write(
        tmp_path / "rows.jsonl", [{"prompt": "x", "chosen": "a", "rejected": "b", "spans": [{"start": 0, "end": 9}]}]
    )
    with pytest.raises(RowsError, match=r"rows\.jsonl:1"):
        marked_responses(path)


def test_whether_a_file_has_spans(tmp_path: Path) -> None:
    pair = {"prompt": "x", "chosen": "a", "rejected": "b c"}
    assert has_spans(write(tmp_path / "a.jsonl", [pair, {**pair, "spans": [{"start": 0, "end": 1}]}]))
    assert not has_spans(write(tmp_path / "b.jsonl", [pair, {**pair, "spans": []}]))


def test_rows_of_reward_bench_have_subsets(tmp_path: Path) -> None:
    row = {"prompt": "x", "chosen": "a", "rejected": "b"}
    rows = comparisons(write(tmp_path / "r.jsonl", [{**row, "subset": "safe", "id": 3}, {**row, "subset": "chat"}]))
    assert [(row.subset, row.chosen, row.rejected) for row in rows] == [
        ("safe", ("a",), ("b",)),
        ("chat", ("a",), ("b",)),
    ]
    assert subsets(rows) == ["chat", "safe"]


def test_rows_of_rm_bench_have_three_styles(tmp_path: Path) -> None:
    row = {"prompt": "x", "chosen": ["a", "aa", "*aa*"], "rejected": ["b", "bb", "*bb*"], "domain": "math"}
    (found,) = comparisons(write(tmp_path / "r.jsonl", [row]))
    assert (found.chosen, found.rejected, found.subset) == (tuple(row["chosen"]), tuple(row["rejected"]), "math")
    with pytest.raises(RowsError, match="need equally many"):
        comparisons(write(tmp_path / "r.jsonl", [{**row, "rejected": ["b"]}]))


def test_sentences_with_one_constant_prompt_are_groups(tmp_path: Path) -> None:
    rows = [rewrite("A", [GO], []), rewrite("B", [GO], [])]
    rows[1]["meta"]["sentence"] = "8"
    first, second = comparisons(write(tmp_path / "r.jsonl", rows))
    assert first.group != second.group


def test_a_changed_file_of_a_known_set_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "jfleg.test.jsonl.gz", [rewrite("A", [GO], ["A"])])
    write(tmp_path / "llmbar.test.jsonl.gz", [rewrite("A", [GO], ["A"])])
    (found,) = known_files(tmp_path, needs_spans=True)
    assert (found.name, found.state, found.path) == ("jfleg", "modified", path)
    assert found.licence == "CC BY-NC-SA 4.0"
    known = [item._replace(sha256=found.sha256) if item.name == "jfleg" else item for item in KNOWN_SETS]
    monkeypatch.setattr("redline.benchmark.sets.KNOWN_SETS", tuple(known))
    assert set_file(path).state == "published"
    assert [file.name for file in known_files(tmp_path, needs_spans=False)] == ["jfleg", "llmbar"]
    assert [file.name for file in known_files(tmp_path, needs_spans=False, names=("llmbar",))] == ["llmbar"]
    with pytest.raises(KeyError, match="defacto"):
        known_files(tmp_path, needs_spans=True, names=("defacto",))
    own = set_file(write(tmp_path / "mine.jsonl", [rewrite("A", [GO], ["A"])]))
    assert (own.name, own.state) == ("mine", "own")


def test_every_known_set_has_a_licence_and_a_digest() -> None:
    assert len({known.name for known in KNOWN_SETS}) == len({known.sha256 for known in KNOWN_SETS}) == len(KNOWN_SETS)
    for known in KNOWN_SETS:
        assert known.licence
        assert len(known.sha256) == 64
        assert int(known.sha256, 16)
