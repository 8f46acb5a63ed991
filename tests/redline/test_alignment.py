"""Rewards moved between tokenizations: nothing is lost, and nothing lands where it does not belong."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redline import align_rewards, check_offsets, token_spans

Span = tuple[int, int]
Cut = tuple[str, list[bytes]]
Case = tuple[str, list[float], list[Span], list[Span]]

quickly = settings(deadline=None, database=None, max_examples=150)
texts = st.text(st.characters(codec="utf-8") | st.sampled_from(" \n\tabé世界🙂\u3000"), max_size=30)
rewards_like = st.floats(-1e3, 1e3, allow_nan=False)


def cut_bytes(data: bytes, cuts: Sequence[int]) -> list[bytes]:
    """``data`` in pieces, cut at ``cuts``; no piece is empty."""
    edges = sorted({0, len(data), *cuts})
    return [data[a:b] for a, b in pairwise(edges)]


def touched_characters(text: str, pieces: Sequence[bytes]) -> list[Span]:
    """For each byte piece the characters of which it holds a byte, as byte-level tokenizers report them."""
    owner = [n for n, character in enumerate(text) for _ in character.encode()]
    spans = []
    at = 0
    for piece in pieces:
        spans.append((owner[at], owner[at + len(piece) - 1] + 1))
        at += len(piece)
    return spans


def without_white_space(text: str, spans: Sequence[Span]) -> list[Span]:
    """White space taken off both ends of every span, as some tokenizers do; what is left of nothing goes."""
    trimmed = []
    for start, end in spans:
        kept = text[start:end]
        if kept.strip():
            trimmed.append((start + len(kept) - len(kept.lstrip()), end - len(kept) + len(kept.rstrip())))
    return trimmed


@st.composite
def tokenizations(draw: st.DrawFn, text: str) -> list[Span]:
    """Any byte-level tokenization of ``text``, with or without its white space and an end token."""
    data = text.encode()
    cuts = draw(st.lists(st.integers(0, len(data)), max_size=len(data)))
    spans = touched_characters(text, cut_bytes(data, cuts)) if data else []
    if draw(st.booleans()):
        spans = without_white_space(text, spans)
    if not spans or draw(st.booleans()):
        spans.append((len(text), len(text)))
    return spans


@st.composite
def two_tokenizations(draw: st.DrawFn) -> Case:
    """A text, rewards on one tokenization of it, and another one."""
    text = draw(texts)
    source, target = draw(tokenizations(text)), draw(tokenizations(text))
    rewards = draw(st.lists(rewards_like, min_size=len(source), max_size=len(source)))
    return text, rewards, source, target


@st.composite
def partitions(draw: st.DrawFn, length: int, within: Sequence[int] = ()) -> list[Span]:
    """Spans that cut ``range(length)`` at character borders, at least at those in ``within``."""
    cuts = draw(st.sets(st.integers(0, length))) | {0, length, *within}
    edges = sorted(cuts)
    return list(pairwise(edges))


def common(first: Span, second: Span) -> int:
    return len(set(range(*first)) & set(range(*second)))


# --- align_rewards ---------------------------------------------------------------------------------------


@quickly
@given(two_tokenizations())
def test_the_sum_is_kept_with_one_reward_per_target_token(case: Case) -> None:
    _, rewards, source, target = case
    aligned = align_rewards(rewards, source, target)
    assert len(aligned) == len(target)
    size = math.fsum(map(abs, rewards))
    assert math.isclose(math.fsum(aligned), math.fsum(rewards), rel_tol=0.0, abs_tol=1e-13 * size)


@quickly
@given(two_tokenizations())
def test_equal_tokenizations_map_exactly(case: Case) -> None:
    _, rewards, source, _ = case
    assert align_rewards(rewards, source, list(source)) == rewards


@quickly
@given(two_tokenizations())
def test_a_reward_reaches_only_overlapping_tokens_each_by_its_share(case: Case) -> None:
    _, _, source, target = case
    if source == target:
        return  # one to one, even where tokens within one character overlap
    for position, span in enumerate(source):
        shared = [common(span, second) for second in target]
        if not any(shared):
            continue
        lone = [float(n == position) for n in range(len(source))]
        expected = [part / sum(shared) for part in shared]
        assert align_rewards(lone, source, target) == pytest.approx(expected, abs=1e-12)


@quickly
@given(st.data(), st.integers(1, 40))
def test_to_a_finer_tokenization_and_back_changes_nothing(data: st.DataObject, length: int) -> None:
    coarse = data.draw(partitions(length))
    fine = data.draw(partitions(length, within=[end for _, end in coarse]))
    rewards = data.draw(st.lists(rewards_like, min_size=len(coarse), max_size=len(coarse)))
    there = align_rewards(rewards, coarse, fine)
    assert align_rewards(there, fine, coarse) == pytest.approx(rewards, abs=1e-9)


@quickly
@given(st.data(), st.integers(1, 40), rewards_like)
def test_end_reward_goes_to_the_end_span_or_else_to_the_last_token(
    data: st.DataObject, length: int, reward: float
) -> None:
    source, target = data.draw(partitions(length)), data.draw(partitions(length))
    end = (length, length)
    lone = [0.0] * len(source) + [reward]
    nothing = [0.0] * (len(target) - 1)
    assert align_rewards(lone, [*source, end], [*target, end]) == [*nothing, 0.0, reward]
    assert align_rewards(lone, [*source, end], target) == [*nothing, reward]


def test_end_span_without_an_end_reward_stays_zero() -> None:
    assert align_rewards([1.0, 2.0], [(0, 2), (2, 5)], [(0, 5), (5, 5)]) == [3.0, 0.0]


def test_a_token_over_a_boundary_is_split_by_characters() -> None:
    # 2 of its 5 characters lie in the first target token, 3 in the second
    assert align_rewards([10.0], [(3, 8)], [(0, 5), (5, 8)]) == pytest.approx([4.0, 6.0])


def test_white_space_that_neither_side_covers_moves_nothing() -> None:
    # "one two": neither side has the space
    assert align_rewards([1.0, 2.0], [(0, 3), (4, 7)], [(0, 3), (4, 5), (5, 7)]) == pytest.approx([1.0, 2 / 3, 4 / 3])


def test_a_white_space_token_missing_in_the_target_goes_to_the_token_before() -> None:
    # "one  two": the source has the spaces as a token, the target has not
    assert align_rewards([1.0, 5.0, 2.0], [(0, 3), (3, 5), (5, 8)], [(0, 3), (5, 8)]) == [6.0, 2.0]


def test_leading_white_space_missing_in_the_target_goes_to_the_first_token() -> None:
    assert align_rewards([5.0, 2.0], [(0, 2), (2, 5)], [(2, 5)]) == [7.0]


def test_source_tokens_within_one_character_all_reach_its_target_token() -> None:
    # "a🙂": the source splits the emoji into three byte tokens
    assert align_rewards([1.0, 2.0, 4.0, 8.0], [(0, 1), (1, 2), (1, 2), (1, 2)], [(0, 1), (1, 2)]) == [
        1.0,
        14.0,
    ]


def test_target_tokens_within_one_character_share_its_reward() -> None:
    assert align_rewards([1.0, 6.0], [(0, 1), (1, 2)], [(0, 1), (1, 2), (1, 2), (1, 2)]) == [
        1.0,
        2.0,
        2.0,
        2.0,
    ]


def test_a_long_token_before_a_short_one_with_the_same_start_keeps_its_overlaps() -> None:
    # ends do not ascend: (0, 4) reaches beyond (1, 2)
    assert align_rewards([6.0], [(3, 4)], [(0, 4), (1, 2), (4, 4)]) == [6.0, 0.0, 0.0]


def test_the_text_may_be_empty() -> None:
    assert align_rewards([2.5], [(0, 0)], [(0, 0)]) == [2.5]


def test_arguments_are_not_modified() -> None:
    rewards, source, target = [1.0, 2.0], [(0, 1), (1, 2)], [(0, 2)]
    align_rewards(rewards, source, target)
    assert (rewards, source, target) == ([1.0, 2.0], [(0, 1), (1, 2)], [(0, 2)])


def test_different_lengths_and_an_empty_target_are_refused() -> None:
    with pytest.raises(ValueError, match="2 rewards for 1 spans"):
        align_rewards([1.0, 2.0], [(0, 1)], [(0, 1)])
    with pytest.raises(ValueError, match="no target"):
        align_rewards([1.0], [(0, 1)], [])


# --- check_offsets ---------------------------------------------------------------------------------------


@quickly
@given(st.data(), texts)
def test_every_tokenization_passes(data: st.DataObject, text: str) -> None:
    assert check_offsets(data.draw(tokenizations(text)), text) is None


@quickly
@given(st.data(), texts.filter(lambda text: bool(text.strip())))
def test_a_missing_token_with_visible_text_is_detected(data: st.DataObject, text: str) -> None:
    spans = data.draw(partitions(len(text)))
    visible = [n for n, (start, end) in enumerate(spans) if text[start:end].strip()]
    gone = data.draw(st.sampled_from(visible))
    remaining = [span for n, span in enumerate(spans) if n != gone]
    problem = check_offsets(remaining, text)
    assert problem is not None
    assert ("do not cover" if remaining else "empty") in problem


@quickly
@given(st.data(), texts.filter(bool))
def test_a_span_beyond_the_text_is_named(data: st.DataObject, text: str) -> None:
    spans = data.draw(partitions(len(text)))
    start, end = spans[-1]
    problem = check_offsets([*spans[:-1], (start, end + 1)], text)
    assert problem is not None
    assert f"token_offsets[{len(spans) - 1}] is [{start}, {end + 1}]" in problem


@pytest.mark.parametrize(
    ("spans", "text", "reason"),
    [
        ([], "a", "empty"),
        ([], "", "empty"),
        ([(-1, 1)], "a", "token_offsets[0]"),
        ([(0, 1), (1, 0)], "ab", "token_offsets[1]"),
        ([(1, 2), (0, 1)], "ab", "0 to 1"),
        ([(0, 2), (1, 2), (0, 2)], "ab", "token_offsets[2] starts at 0"),
        ([(0, 1), (2, 3)], "abc", "1 to 2"),
        ([(0, 1)], "a b", "1 to 3"),
        ([(0, 0)], "a", "0 to 1"),
    ],
)
def test_problems_are_described(spans: list[Span], text: str, reason: str) -> None:
    problem = check_offsets(spans, text)
    assert problem is not None
    assert reason in problem


def test_a_few_tokens_more_than_bytes_pass_and_thousands_do_not() -> None:
    assert check_offsets([(0, 1)] * 4 + [(1, 1)] * 3, "🙂") is None  # four byte tokens, three special ones
    problem = check_offsets([(0, 1)] * 1000, "🙂")
    assert problem is not None
    assert "1000 token_offsets for 1 characters" in problem


def test_white_space_need_not_be_covered() -> None:
    text = " one\n\u3000two\u00a0"
    assert check_offsets([(1, 4), (6, 9)], text) is None


def test_a_short_span_after_a_long_one_uncovers_nothing() -> None:
    assert check_offsets([(0, 3), (1, 2), (3, 4)], "abcd") is None


# --- token_spans -----------------------------------------------------------------------------------------


class ByteVocabulary:
    """Ids are positions in a list of byte strings; decoding joins them, broken characters become U+FFFD."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self.pieces = list(pieces)
        self.ids = list(range(len(pieces)))

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(self.pieces[i] for i in ids).decode("utf-8", "replace")


@st.composite
def split_texts(draw: st.DrawFn) -> Cut:
    """A text without U+FFFD, and its bytes in pieces that may split characters."""
    text = draw(texts.filter(lambda text: bool(text) and "\ufffd" not in text))
    data = text.encode()
    return text, cut_bytes(data, draw(st.lists(st.integers(0, len(data)), max_size=len(data))))


@quickly
@given(split_texts())
def test_spans_are_a_tokenization_of_the_decoded_text(case: Cut) -> None:
    text, pieces = case
    vocabulary = ByteVocabulary(pieces)
    decoded, spans = token_spans(vocabulary.decode, vocabulary.ids)
    assert decoded == text
    assert len(spans) == len(pieces)
    assert check_offsets(spans, text) is None


@quickly
@given(split_texts())
def test_each_span_covers_the_characters_of_the_token_s_bytes(
    case: Cut,
) -> None:
    text, pieces = case
    vocabulary = ByteVocabulary(pieces)
    _, spans = token_spans(vocabulary.decode, vocabulary.ids)
    assert spans == touched_characters(text, pieces)


@quickly
@given(split_texts())
def test_characters_that_end_in_a_token_are_within_its_span(case: Cut) -> None:
    text, pieces = case
    vocabulary = ByteVocabulary(pieces)
    _, spans = token_spans(vocabulary.decode, vocabulary.ids)
    ends = [len(text[: n + 1].encode()) for n in range(len(text))]  # byte after each character
    at = 0
    for piece, (start, end) in zip(pieces, spans, strict=True):
        ending = [n for n, byte in enumerate(ends) if at < byte <= at + len(piece)]
        assert set(ending) <= set(range(start, end))
        at += len(piece)


def test_three_tokens_of_one_emoji_share_its_span() -> None:
    vocabulary = ByteVocabulary([b"so ", "🙂".encode()[:1], "🙂".encode()[1:3], "🙂".encode()[3:], b"!"])
    assert token_spans(vocabulary.decode, vocabulary.ids) == (
        "so 🙂!",
        [(0, 3), (3, 4), (3, 4), (3, 4), (4, 5)],
    )


def test_token_with_the_end_of_one_character_and_the_start_of_the_next() -> None:
    first, second = "é".encode(), "ü".encode()
    vocabulary = ByteVocabulary([first[:1], first[1:] + second[:1], second[1:]])
    assert token_spans(vocabulary.decode, vocabulary.ids) == ("éü", [(0, 1), (0, 2), (1, 2)])


def test_a_final_token_without_text_is_an_empty_span_at_the_end() -> None:
    vocabulary = ByteVocabulary([b"do", b"ne", b""])
    assert token_spans(vocabulary.decode, vocabulary.ids) == ("done", [(0, 2), (2, 4), (4, 4)])


def test_no_tokens_give_no_spans() -> None:
    assert token_spans(ByteVocabulary([]).decode, []) == ("", [])


@quickly
@given(st.binary(min_size=1, max_size=24), st.lists(st.integers(0, 24), max_size=24))
def test_invalid_bytes_give_offsets_that_a_service_accepts(data: bytes, cuts: list[int]) -> None:
    vocabulary = ByteVocabulary(cut_bytes(data, [cut for cut in cuts if cut <= len(data)]))
    text, spans = token_spans(vocabulary.decode, vocabulary.ids)
    assert check_offsets(spans, text) is None


@quickly
@given(st.data(), split_texts())
def test_the_sum_of_rewards_on_sampled_tokens_is_kept(data: st.DataObject, case: Cut) -> None:
    text, pieces = case
    vocabulary = ByteVocabulary([*pieces, b""])
    _, spans = token_spans(vocabulary.decode, vocabulary.ids)
    service = [*data.draw(partitions(len(text))), (len(text), len(text))]
    rewards = data.draw(st.lists(rewards_like, min_size=len(service), max_size=len(service)))
    aligned = align_rewards(rewards, service, spans)
    assert aligned[-1] == rewards[-1]
    assert math.isclose(math.fsum(aligned), math.fsum(rewards), rel_tol=0.0, abs_tol=1e-13 * sum(map(abs, rewards)))
