"""Words make token rewards of different tokenizers comparable."""

from __future__ import annotations

from redline.benchmark.words import word_error_scores, word_spans
from redline.spans import share_characters


def test_words_are_separated_by_white_space_only() -> None:
    text = "  It's\ta  well-known\n世界 ."
    assert [text[start:end] for start, end in word_spans(text)] == ["It's", "a", "well-known", "世界", "."]


def test_a_word_is_marked_if_it_shares_a_character_with_a_span() -> None:
    words = [(0, 3), (4, 6), (7, 9)]
    assert share_characters(words, [(2, 4), (8, 8)]) == [True, False, False]
    assert share_characters(words, [(3, 4)]) == [False, False, False]


def test_a_words_error_score_is_that_of_its_worst_token() -> None:
    words = word_spans("the wrongly word")
    pieces = [(0, 3), (3, 7), (7, 11), (11, 12), (12, 16), (16, 16)]
    assert word_error_scores(words, pieces, [1.0, -2.0, 0.5, -9.0, 0.0, -9.0]) == [-1.0, 2.0, 0.0]


def test_tokens_that_span_words_count_for_each_of_them() -> None:
    assert word_error_scores(word_spans("a b c"), [(0, 3), (3, 5)], [-1.0, 2.0]) == [1.0, 1.0, -2.0]


def test_a_finer_tokenizer_with_equal_rewards_gives_equal_scores() -> None:
    words = word_spans("some longer words")
    coarse, fine = [(0, 4), (4, 11), (11, 17)], [(n, n + 1) for n in range(17)]
    spread = [next(r for (s, e), r in zip(coarse, [0.1, -0.7, 0.3], strict=True) if s <= n < e) for n in range(17)]
    assert word_error_scores(words, coarse, [0.1, -0.7, 0.3]) == word_error_scores(words, fine, spread)


def test_a_word_without_a_token_has_no_score() -> None:
    assert word_error_scores(word_spans("a b"), [(0, 1)], [1.0]) is None
