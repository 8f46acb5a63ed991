"""A diff of two texts takes a bounded number of steps, and has the matches of ``difflib`` if the texts are short."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from itertools import pairwise
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redline_model.correction import word_diff
from redline_model.correction.edits import apply_edits, edits_between
from redline_model.correction.word_diff import Match, matches_between

fast_settings = settings(deadline=None, database=None, max_examples=200)
few_letters = st.lists(st.sampled_from("abcdef"), max_size=40)


def check(a: Sequence[Any], b: Sequence[Any], matches: Sequence[Match]) -> None:
    """All matches are equal on both sides, in order and without overlap."""
    for match in matches:
        assert match.size > 0
        assert a[match.start_a : match.start_a + match.size] == b[match.start_b : match.start_b + match.size]
    for previous, following in pairwise(matches):
        assert previous.start_a + previous.size <= following.start_a
        assert previous.start_b + previous.size <= following.start_b


def hard_pairs(words: int) -> Iterator[tuple[str, str, str]]:
    """Pairs of texts with ``words`` words, each a hard case for some diff algorithm."""
    rng = random.Random(0)
    vocabulary = [f"word{n}" for n in range(words)]
    prose = rng.choices(vocabulary, [1 / (n + 1) for n in range(words)], k=words)
    others = rng.choices(vocabulary, [1 / (n + 1) for n in range(words)], k=words)
    shuffled = rng.sample(vocabulary, words)
    yield "prose about different things", " ".join(prose), " ".join(others)
    tenth = [rng.choice(vocabulary) if n % 10 == 0 else word for n, word in enumerate(prose)]
    yield "every tenth word another", " ".join(prose), " ".join(tenth)
    yield "loops of two words", "yes no " * (words // 2), "ja nein " * (words // 2)
    yield "no word in common", " ".join(vocabulary), " ".join(f"other{n}" for n in range(words))
    yield "one word", "again " * words, "again " * (words - 7)
    yield "one word between others", "a " + "again " * words + "b", "b " + "again " * words + "a"
    yield "another order", " ".join(vocabulary), " ".join(shuffled)
    yield "backwards", " ".join(vocabulary), " ".join(reversed(vocabulary))
    yield "marks alone", "".join(rng.choices(",.", k=2 * words)), "".join(rng.choices(",.", k=2 * words))
    yield "one anchor after the other", " ".join(w for p in pairwise(vocabulary) for w in p), " ".join(vocabulary)
    yield "few letters", " ".join(rng.choices("abcdefgh", k=words)), " ".join(rng.choices("abcdefgh", k=words))


@fast_settings
@given(few_letters, few_letters, st.integers(0, 400), st.sampled_from([0, 20, 10**6]))
def test_matches_are_common_parts_in_order(a: list[str], b: list[str], budget: int, short: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(word_diff, "_MAX_DIFFLIB_STEPS", short)
        check(a, b, matches_between(a, b, budget))
        check(a, b, matches_between(a, b))


@fast_settings
@given(few_letters, few_letters)
def test_short_sequences_have_the_matches_of_difflib(a: list[str], b: list[str]) -> None:
    def kept(matches: Sequence[tuple[int, int, int]]) -> list[tuple[int, int]]:
        return [(i + n, j + n) for i, j, size in matches for n in range(size)]

    expected = SequenceMatcher(None, a, b, autojunk=False).get_matching_blocks()
    assert kept(matches_between(a, b)) == kept(expected)


@fast_settings
@given(few_letters, st.lists(st.tuples(st.integers(0, 40), st.sampled_from("xyz")), max_size=4))
def test_a_few_changes_in_a_long_text_without_unique_words_are_found(
    a: list[str], changes: list[tuple[int, str]]
) -> None:
    a = a * 2  # nothing occurs once
    b = list(a)
    for position, letter in changes:
        if position < len(b):
            b[position] = letter
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(word_diff, "_MAX_DIFFLIB_STEPS", 0)
        patch.setattr(word_diff, "_ANCHOR_WIDTHS", (1,))
        assert sum(match.size for match in matches_between(a, b)) >= sum(x == y for x, y in zip(a, b, strict=True))


def test_words_that_occur_once_divide_a_long_text() -> None:
    words = [f"word{n % 700}" for n in range(2000)]
    changed = ["another" if n in {800, 1000, 1200} else word for n, word in enumerate(words)]
    edits = edits_between(" ".join(words), " ".join(changed))
    assert [edit.text for edit in edits] == ["another"] * 3


@pytest.mark.parametrize(("what", "a", "b"), [pytest.param(*pair, id=pair[0]) for pair in hard_pairs(800)])
def test_the_steps_of_a_diff_are_bounded(what: str, a: str, b: str) -> None:
    lines = 0

    def count(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal lines
        lines += event == "line"
        return count if frame.f_code.co_filename in watched else None

    watched = {word_diff.__file__, SequenceMatcher.find_longest_match.__code__.co_filename}
    pieces, others = a.split(" "), b.split(" ")
    if what == "marks alone":
        pieces, others = list(a), list(b)
    budget = 30_000
    previous = sys.gettrace()
    sys.settrace(count)
    try:
        matches = matches_between(pieces, others, budget)
    finally:
        sys.settrace(previous)
    check(pieces, others, matches)
    assert lines < 5 * (budget + 2 * len(pieces) + 2 * len(others))


@pytest.mark.parametrize(("what", "response", "correction"), [pytest.param(*p, id=p[0]) for p in hard_pairs(1000)])
def test_two_texts_of_a_thousand_words_are_compared_in_time(what: str, response: str, correction: str) -> None:
    started = time.process_time()
    edits = edits_between(response, correction)
    assert time.process_time() - started < 2
    assert apply_edits(response, edits) == correction


@pytest.mark.parametrize(("what", "response", "correction"), [pytest.param(*p, id=p[0]) for p in hard_pairs(9000)])
def test_two_texts_of_64_kb_are_compared_in_time(what: str, response: str, correction: str) -> None:
    response, correction = response[: 64 * 1024], correction[: 64 * 1024]
    started = time.process_time()
    edits = edits_between(response, correction)
    assert time.process_time() - started < 3  # a tenth of it where nothing else runs
    assert apply_edits(response, edits) == correction
