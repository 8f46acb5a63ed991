"""The edits of a redline turn a response into its correction and change nothing else."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redline_model.correction.edits import TextEdit, apply_edits, edits_between

fast_settings = settings(deadline=None, database=None, max_examples=200)
anything = st.text(max_size=40)
# Few words, so that the two texts have much in common.
sentences = st.lists(
    st.sampled_from(["the", "cat", "cats", "sat", " ", "  ", "\n", ",", ".", "é", "世界", "🙂", "_"]), max_size=20
).map("".join)
texts = anything | sentences


@fast_settings
@given(texts, texts)
def test_applying_the_edits_gives_the_correction(response: str, correction: str) -> None:
    assert apply_edits(response, edits_between(response, correction)) == correction


@fast_settings
@given(texts, texts)
def test_edits_are_in_order_within_the_text_and_not_adjacent(response: str, correction: str) -> None:
    edits = edits_between(response, correction)
    for edit in edits:
        assert 0 <= edit.start <= edit.end <= len(response)
    for previous, following in pairwise(edits):
        assert previous.end < following.start  # adjacent edits would have been merged into one


@fast_settings
@given(texts, texts)
def test_each_edit_matches_its_operation(response: str, correction: str) -> None:
    for op, start, end, text in edits_between(response, correction):
        assert (end > start, bool(text)) == {
            "insert": (False, True),
            "delete": (True, False),
            "replace": (True, True),
        }[op]
        assert response[start:end] != text


@fast_settings
@given(texts)
def test_equal_texts_have_no_edits(text: str) -> None:
    assert edits_between(text, text) == []


@fast_settings
@given(sentences, sentences)
def test_edits_start_and_end_at_word_boundaries(response: str, correction: str) -> None:
    def is_inside_a_word(position: int) -> bool:
        previous, following = response[position - 1 : position], response[position : position + 1]
        return all(letter.isalnum() or letter == "_" for letter in (previous, following))

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
def test_known_edits(response: str, correction: str, edits: list[TextEdit]) -> None:
    assert edits_between(response, correction) == edits


def test_text_between_two_edits_is_kept() -> None:
    edits = edits_between("The cat sat on a mat.", "The dog sat on the mat.")
    assert edits == [TextEdit("replace", 4, 7, "dog"), TextEdit("replace", 15, 16, "the")]
    assert apply_edits("The cat sat on a mat.", edits) == "The dog sat on the mat."
