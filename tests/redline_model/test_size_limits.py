"""Sizes are checked before anything is tokenised, and cutting a prompt early gives the same ids as cutting it late."""

from __future__ import annotations

from typing import Any

import pytest

from redline.chat_template import StatelessTokenizer
from redline_model.encoding.encoder import Encoder
from redline_model.encoding.items import Item
from redline_model.errors import TooLongError
from redline_model.scorer import Scorer


@pytest.fixture
def encoder(causal_scorer: Scorer[Any], tokenizer: Any) -> Encoder:
    original = causal_scorer.encoder
    return Encoder(
        tokenizer, original.template, arrangement=original.arrangement, vocab_size=original.vocab_size, max_tokens=64
    )


@pytest.fixture
def tokenised(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of characters of each text that was tokenised."""
    lengths: list[int] = []
    encoded = StatelessTokenizer._encoded

    def counting(self: StatelessTokenizer, text: str, **options: Any) -> Any:
        lengths.append(len(text))
        return encoded(self, text, **options)

    monkeypatch.setattr(StatelessTokenizer, "_encoded", counting)
    return lengths


LONG = "How do I reset my router? " * 100_000


@pytest.mark.parametrize(
    "item",
    [
        Item("p", LONG),
        Item(LONG, "r"),
        Item([{"role": "user", "content": LONG}], "r"),
        Item([{"role": "user" * 100_000, "content": "c"}], "r"),
        Item([{"role": "user", "content": "c"}] * 100_000, "r"),
        Item([5] * 100_000, "r"),
        Item("p", [5] * 100_000),
    ],
    ids=["response", "prompt", "message", "role", "messages", "prompt ids", "response ids"],
)
def test_an_item_far_above_the_limit_is_refused_before_tokenisation(
    encoder: Encoder, tokenised: list[int], item: Item
) -> None:
    with pytest.raises(TooLongError):
        encoder.encode(item)
    assert sum(tokenised) < 100


@pytest.mark.parametrize("is_chat", [False, True])
def test_a_long_prompt_is_cut_before_tokenisation_and_gives_the_same_ids(
    encoder: Encoder, tokenised: list[int], is_chat: bool
) -> None:
    def prompt(text: str) -> Any:
        return [{"role": "system", "content": LONG}, {"role": "user", "content": text}] if is_chat else text

    assert encoder.max_chars is not None
    cut = encoder.encode(Item(prompt(LONG + "And the round button?"), "Hold it.", on_too_long="truncate"))
    assert 0 < sum(tokenised) < 3 * (encoder.max_chars + 2048)
    assert cut.is_truncated
    short = LONG[-encoder.max_chars :] + "And the round button?"
    expected = encoder.encode(Item(prompt(short), "Hold it.", on_too_long="truncate"))
    assert cut.prefix_ids == expected.prefix_ids


def test_a_text_within_the_token_limit_is_never_above_the_character_limit(encoder: Encoder, tokenizer: Any) -> None:
    longest = max(tokenizer.get_vocab(), key=len)
    text = tokenizer.convert_tokens_to_string([longest]) * 20
    assert len(text) <= encoder.max_chars  # type: ignore[operator]


@pytest.mark.parametrize("value", [10**2000, [10**60] * 100, -(10**2000), {"x": 1e-300, "y": [1.5] * 200}])
def test_numbers_count_with_their_length_as_text(encoder: Encoder, tokenised: list[int], value: Any) -> None:
    encoder.max_chars = 2000
    message = {"role": "user", "content": "c", "name": value}
    with pytest.raises(TooLongError):
        encoder.encode(Item([message], "r"))
    assert sum(tokenised) < 100
