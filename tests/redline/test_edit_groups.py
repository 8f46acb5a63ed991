"""Grouped edits lead to the same text and can be read."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from redline.text.edit_groups import grouped
from redline.wire import Edit
from redline_model.correction.edits import edits_between


def _edits(response: str, correction: str) -> list[Edit]:
    return [Edit(**edit._asdict()) for edit in edits_between(response, correction)]


def _apply(response: str, edits: list[Edit]) -> str:
    parts, at = [], 0
    for edit in edits:
        assert at <= edit.start <= edit.end <= len(response)
        parts += [response[at : edit.start], edit.text]
        at = edit.end
    return "".join([*parts, response[at:]])


def test_a_completely_rewritten_sentence_is_one_replacement() -> None:
    response = "I can not help you with this today because of the rules."
    correction = "Hold the red button with one finger because routers of this kind need the signal."
    edits = _edits(response, correction)
    assert len(edits) >= 4, "by words it interleaves"
    assert grouped(response, edits) == [Edit(op="replace", start=0, end=len(response) - 1, text=correction[:-1])]


def test_two_corrected_words_with_a_pair_between_them_stay_two_edits() -> None:
    response, correction = "He go to school yestaday.", "He went to school yesterday."
    edits = _edits(response, correction)
    assert [(edit.start, edit.end, edit.text) for edit in grouped(response, edits)] == [
        (3, 5, "went"),
        (16, 24, "yesterday"),
    ]


def test_one_kept_word_between_two_replaced_words_is_included() -> None:
    edits = _edits("a cold big house", "a warm big home")
    assert grouped("a cold big house", edits) == [Edit(op="replace", start=2, end=16, text="warm big home")]


def test_an_inserted_comma_does_not_include_the_next_word() -> None:
    response, correction = "Yes we can go house", "Yes, we can go home"
    assert len(grouped(response, _edits(response, correction))) == 2


def test_a_line_break_is_kept() -> None:
    response, correction = "one two\nthree four", "eins zwei\ndrei vier"
    assert [edit.text for edit in grouped(response, _edits(response, correction))] == ["eins zwei", "drei vier"]


_WORDS = st.lists(st.sampled_from(["a", "b", "c", "d", ",", "\n", "é", "字"]), max_size=12).map(" ".join)


@given(_WORDS, _WORDS)
def test_grouped_edits_lead_to_the_same_text_and_grouping_them_again_changes_nothing(before: str, after: str) -> None:
    edits = _edits(before, after)
    fewer = grouped(before, edits)
    assert _apply(before, fewer) == after
    assert len(fewer) <= len(edits)
    assert grouped(before, fewer) == fewer
