"""The open task: the language of notes, faults with known least repairs, and a quick run of the whole benchmark."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from benchmarks.open_notes.__main__ import main
from benchmarks.open_notes.models import faulty_spans, test_pairs, training_pairs
from benchmarks.open_notes.plan import FINE_TUNED, PPO_RUNS
from benchmarks.real_policies.metrics import distinct_share
from benchmarks.synthetic.tasks.note_language import DOMAINS, repair
from benchmarks.synthetic.tasks.notes import (
    DECIDES,
    content_distance,
    draw_note,
    fault_count,
    gold,
    own_content_share,
    with_faults,
)

RIGHT = "yesterday anna bought three red lamps from the market ."
NOTES = [draw_note(DOMAINS[d], level, random.Random(n)) for n, level in enumerate(DECIDES * 10) for d in ("a", "b")]
test_pairs.__test__ = False  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "edits", "changed"),
    [
        (RIGHT, 0, ""),
        ("yesterday anna buys three red lamps from the market .", 1, "buys"),  # tense
        ("today anna and bert buys three lamps from the market .", 1, "buys"),  # number
        ("today anna looks for three lamps from the market .", 1, "for"),  # preposition
        ("today anna finds at three lamps from the market .", 1, "at"),
        ("yesterday anna bought three red lamps from market .", 1, ""),  # a missing word changes no other word
        ("yesterday anna bought three three lamps from the market .", 1, "three"),
        ("yesterday anna bought lamps three from the market .", 2, "lamps three"),
        ("tomorrow anna will buy two cups from the shop . tomorrow anna buy two cups from the shop .", 1, ""),
        (RIGHT.removesuffix(" ."), 1, ""),
        ("", 9, ""),
        ("anna", 8, ""),
    ],
)
def test_the_least_repair_of_known_faults(text: str, edits: int, changed: str) -> None:
    found = repair(text.split())
    assert found.edits == edits
    marked = [word for word, is_changed in zip(text.split(), found.changed, strict=True) if is_changed]
    assert len(marked) <= edits
    if changed:
        assert set(marked) <= set(changed.split()) and marked


def levenshtein(a: list[str], b: list[str]) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        previous, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (x != y))
    return row[-1]


def test_a_note_is_right_and_no_repair_is_dearer_than_the_note_that_was_written() -> None:
    for n, note in enumerate(NOTES):
        assert fault_count(note.text) == 0
        faulty = with_faults(note, 0.2, random.Random(n))
        assert fault_count(faulty) <= levenshtein(faulty.split(), note.text.split())


def test_faults_are_found_where_the_repair_changes_words() -> None:
    text = "today anna looks for three lamps from the market ."
    assert [text[start:end] for start, end in faulty_spans(text)] == ["for"]
    for pair in test_pairs("topic", 20, 0):
        assert fault_count(pair.chosen) == 0 < fault_count(pair.rejected)
        assert pair.spans == faulty_spans(pair.rejected)


def test_pairs_and_policy_have_different_content() -> None:
    pairs, tests = training_pairs("nothing", 50, 0), test_pairs("nothing", 50, 0)
    assert own_content_share([p.chosen for p in pairs], DOMAINS["b"]) == 0
    assert own_content_share([p.chosen for p in tests], DOMAINS["b"]) == 1
    assert len({p.prompt for p in pairs}) == 1
    assert len({p.prompt for p in training_pairs("all", 50, 0)}) == 50


def test_gold_content_and_variety_by_hand() -> None:
    assert [gold(RIGHT), gold(RIGHT.replace("bought", "buys")), gold("")] == [1.0, 0.75, 0.0]
    assert content_distance(["anna lamps"], ["anna lamps"]) == 0
    assert content_distance(["anna lamps"], ["ivan apples"]) == 1
    assert content_distance(["anna lamps"], ["anna apples"]) == 0.5
    assert distinct_share(["a b a b"], 2) == pytest.approx(2 / 3)


def test_a_quick_run_has_every_policy_and_can_be_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--quick", "--out", str(tmp_path), "--workers", "1", "--level", "nothing"]
    methods = [f"--method={name}" for name in ("start", "sft_policy", "ppo_seq2seq_logprob", "ppo_scalar")]
    main([*command, *methods])
    results = json.loads((tmp_path / "open_notes.json").read_text(encoding="utf-8"))
    policies = results["levels"]["nothing"]["policies"]
    assert (
        set(policies)
        == {"start", "sft_policy", "ppo_seq2seq_logprob", "ppo_scalar"}
        <= {
            "start",
            *FINE_TUNED,
            *PPO_RUNS,
        }
    )
    assert policies["start"][0]["final"]["kl"] == pytest.approx(0, abs=1e-4)
    assert [point["step"] for point in policies["ppo_scalar"][0]["curve"]] == [1, 2]
    assert results["levels"]["nothing"]["models"]["seq2seq"][0]["source_dependence"]["mismatched"] is not None
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("figures/**/*.json")}
    main([*command, *methods])
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("figures/**/*.json")} == before
    assert "ppo_seq2seq_logprob" in capsys.readouterr().out
