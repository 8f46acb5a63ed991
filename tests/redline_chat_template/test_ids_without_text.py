"""Responses given as ids: any ids are scored, whatever text they decode to, and each has one span."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import pytest

from redline_model.encoding.encoder import Encoder
from redline_model.encoding.items import Item
from redline_model.errors import BadIdsError
from redline_model.options import Template
from redline_model.reward_spec import reward_spec
from redline_model.scorer import Scorer
from tests.conftest import build_causal, build_scorer
from tests.tokenizer_families import TOKENIZERS, tokenizer_of


def encoder_of(family: str) -> Encoder:
    tokenizer = tokenizer_of(family)
    return Encoder(
        tokenizer, Template(style="plain"), arrangement="rewrite", vocab_size=len(tokenizer), max_tokens=None
    )


def ids_without_text(tokenizer: Any) -> list[int]:
    return [i for i in range(len(tokenizer)) if i != tokenizer.eos_token_id and not tokenizer.decode([i])]


@pytest.mark.parametrize("family", TOKENIZERS)
def test_any_ids_are_kept_and_have_one_span_each_in_order(family: str) -> None:
    encoder = encoder_of(family)
    rng = random.Random(0)
    usable = [i for i in range(encoder.vocab_size) if i != encoder.end_id]
    for _ in range(100):
        ids = rng.choices(usable, k=rng.randrange(1, 12))
        for sampled in (ids, [*ids, encoder.end_id]):
            item = encoder.encode(Item("Hi", sampled))
            assert item.target_ids == sampled
            assert item.response_ids == ids
            assert item.text == encoder.tokenizer.decode(ids, skip_special_tokens=False)
            assert len(item.offsets) == len(sampled)
            assert all(0 <= start <= end <= len(item.text) for start, end in item.offsets)
            assert all(span[0] <= next_span[0] for span, next_span in pairwise(item.offsets))
            assert item.is_finished == (sampled is not ids)


def test_ids_of_half_a_character_and_ids_without_text_are_encoded() -> None:
    byte_encoder = encoder_of("byte_bpe")
    letter = byte_encoder.tokenizer("क", add_special_tokens=False)["input_ids"]
    assert len(letter) == 3
    item = byte_encoder.encode(Item("Hi", letter[:2]))
    assert (item.target_ids, item.text) == (letter[:2], "\ufffd")
    unigram_encoder = encoder_of("unigram")
    textless = ids_without_text(unigram_encoder.tokenizer)
    assert textless, "the tokenizer must have such ids"
    item = unigram_encoder.encode(Item("Hi", textless[:1]))
    assert (item.target_ids, item.text, item.offsets) == (textless[:1], "", [(0, 0)])


def test_an_id_without_text_has_its_own_reward() -> None:
    tokenizer = tokenizer_of("unigram")
    scorer: Scorer[Any] = build_scorer("seq2seq", build_causal(len(tokenizer)), tokenizer)
    textless = ids_without_text(tokenizer)[0]
    words = tokenizer("hold the button", add_special_tokens=False)["input_ids"]
    items = [scorer.encoder.encode(Item("Hi", ids)) for ids in (words, [*words, textless], [textless])]
    scored = [scorer.to_rewards(outputs, reward_spec(scorer)) for outputs in scorer.forward(items)]
    assert [len(response.rewards) for response in scored] == [len(words), len(words) + 1, 1]
    assert scored[1].score != scored[0].score


def test_an_end_token_within_ids_is_refused() -> None:
    encoder = encoder_of("byte_bpe")
    with pytest.raises(BadIdsError, match="before their end"):
        encoder.encode(Item("Hi", [encoder.end_id, 5]))
    assert encoder.encode(Item("Hi", [encoder.end_id])).target_ids == [encoder.end_id]
