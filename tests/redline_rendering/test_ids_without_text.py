"""Responses given by ids: ids are judged as they are, whatever text they make, and each has one span."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import pytest

from redline_model.encoding.encoder import Encoder, Item
from redline_model.errors import BadIdsError
from redline_model.options import Template
from redline_model.reward_spec import reward_spec
from redline_model.scorer import Scorer
from tests.conftest import build_causal, build_scorer
from tests.tokenizer_families import TOKENIZERS, tokenizer_of


def encoder_of(family: str) -> Encoder:
    made = tokenizer_of(family)
    return Encoder(made, Template(style="plain"), arrangement="rewrite", vocab_size=len(made), max_tokens=None)


def ids_without_text(tokenizer: Any) -> list[int]:
    return [i for i in range(len(tokenizer)) if i != tokenizer.eos_token_id and not tokenizer.decode([i])]


@pytest.mark.parametrize("family", TOKENIZERS)
def test_any_ids_are_kept_and_have_a_span_each_in_order(family: str) -> None:
    encoder = encoder_of(family)
    draw = random.Random(0)
    usable = [i for i in range(encoder.vocab_size) if i != encoder.end_id]
    for _ in range(100):
        ids = draw.choices(usable, k=draw.randrange(1, 12))
        for given in (ids, [*ids, encoder.end_id]):
            item = encoder.encode(Item("Hi", given))
            assert item.target_ids == given
            assert item.response_ids == ids
            assert item.text == encoder.tokenizer.decode(ids, skip_special_tokens=False)
            assert len(item.offsets) == len(given)
            assert all(0 <= start <= end <= len(item.text) for start, end in item.offsets)
            assert all(one[0] <= two[0] for one, two in pairwise(item.offsets))
            assert item.is_finished == (given is not ids)


def test_ids_that_make_half_a_letter_and_ids_that_make_no_text() -> None:
    half = encoder_of("byte_bpe")
    letter = half.tokenizer("क", add_special_tokens=False)["input_ids"]
    assert len(letter) == 3
    item = half.encode(Item("Hi", letter[:2]))
    assert (item.target_ids, item.text) == (letter[:2], "\ufffd")
    nothing = encoder_of("unigram")
    empty = ids_without_text(nothing.tokenizer)
    assert empty, "or nothing is shown"
    item = nothing.encode(Item("Hi", empty[:1]))
    assert (item.target_ids, item.text, item.offsets) == (empty[:1], "", [(0, 0)])


def test_an_id_without_text_has_a_reward_of_its_own() -> None:
    made = tokenizer_of("unigram")
    scorer: Scorer[Any] = build_scorer("seq2seq", build_causal(len(made)), made)
    empty = ids_without_text(made)[0]
    words = made("hold the button", add_special_tokens=False)["input_ids"]
    items = [scorer.encoder.encode(Item("Hi", ids)) for ids in (words, [*words, empty], [empty])]
    scored = [scorer.to_rewards(outputs, reward_spec(scorer)) for outputs in scorer.forward(items)]
    assert [len(one.rewards) for one in scored] == [len(words), len(words) + 1, 1]
    assert scored[1].score != scored[0].score


def test_an_end_token_amid_ids_is_refused() -> None:
    encoder = encoder_of("byte_bpe")
    with pytest.raises(BadIdsError, match="before their end"):
        encoder.encode(Item("Hi", [encoder.end_id, 5]))
    assert encoder.encode(Item("Hi", [encoder.end_id])).target_ids == [encoder.end_id]
