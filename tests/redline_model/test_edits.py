"""The redline of a text leads to its correction, and touches nothing else."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redline_model.correction.edits import TextEdit, apply_edits, edits_between

quickly = settings(deadline=None, database=None, max_examples=200)
anything = st.text(max_size=40)
# Few words, so that the two texts have much in common.
sentences = st.lists(
    st.sampled_from(["the", "cat", "cats", "sat", " ", "  ", "\n", ",", ".", "é", "世界", "🙂", "_"]), max_size=20
).map("".join)
texts = anything | sentences


@quickly
@given(texts, texts)
def test_the_edits_lead_from_one_text_to_the_other(response: str, correction: str) -> None:
    assert apply_edits(response, edits_between(response, correction)) == correction


@quickly
@given(texts, texts)
def test_edits_are_in_order_inside_the_text_and_apart(response: str, correction: str) -> None:
    edits = edits_between(response, correction)
    for edit in edits:
        assert 0 <= edit.start <= edit.end <= len(response)
    for before, after in pairwise(edits):
        assert before.end < after.start  # what lies between was kept, else they were one edit


@quickly
@given(texts, texts)
def test_each_edit_does_what_its_name_says(response: str, correction: str) -> None:
    for op, start, end, text in edits_between(response, correction):
        assert (end > start, bool(text)) == {
            "insert": (False, True),
            "delete": (True, False),
            "replace": (True, True),
        }[op]
        assert response[start:end] != text


@quickly
@given(texts)
def test_a_text_that_is_right_has_no_edits(text: str) -> None:
    assert edits_between(text, text) == []


@quickly
@given(sentences, sentences)
def test_edits_begin_and_end_between_words(response: str, correction: str) -> None:
    def is_inside_a_word(at: int) -> bool:
        before, after = response[at - 1 : at], response[at : at + 1]
        return all(piece.isalnum() or piece == "_" for piece in (before, after))

    for edit in edits_between(response, correction):
        assert not is_inside_a_word(edit.start)
        assert not is_inside_a_word(edit.end)


@pytest.mark.parametrize(
    ("response", "correction", "edits"),
    [
        ("2 + 2 is 5.", "2 + 2 is 4.", [TextEdit("replace", 9, 10, "4")]),
        ("Hold it", "Hold it.", [TextEdit("insert", 7, 7, ".")]),
        ("Yes, hold it.", "Yes hold it.", [TextEdit("delete", 3, 4, "")]),
        ("", "Yes.", [TextEdit("insert", 0, 0, "Yes.")]),
        ("Yes.", "", [TextEdit("delete", 0, 4, "")]),
        ("🙂 gut", "🙂 gütig", [TextEdit("replace", 2, 5, "gütig")]),  # characters, not bytes
        ("Reset", "Resets", [TextEdit("replace", 0, 5, "Resets")]),  # words, not letters
    ],
)
def test_edits_by_hand(response: str, correction: str, edits: list[TextEdit]) -> None:
    assert edits_between(response, correction) == edits


def test_two_edits_keep_what_is_between_them() -> None:
    edits = edits_between("The cat sat on a mat.", "The dog sat on the mat.")
    assert edits == [TextEdit("replace", 4, 7, "dog"), TextEdit("replace", 15, 16, "the")]
    assert apply_edits("The cat sat on a mat.", edits) == "The dog sat on the mat."
