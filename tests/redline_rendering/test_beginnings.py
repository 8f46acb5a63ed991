"""Pieces that are tokenised apart have the ids that they have in the whole text, whatever is put before a text."""

from __future__ import annotations

from typing import Any

import pytest

from redline.chat_template import PolicyPrompts, StatelessTokenizer
from redline_model.encoding.encoder import Encoder, Item
from redline_model.options import Template
from tests.chat_templates import with_template
from tests.tokenizer_families import TOKENIZERS, tokenizer_of

RESPONSES = ["Hold the button", " Hold it.", "1,024 don'ts"]
# templates whose opening of the answer no token spans
STYLE_OF_TOKEN = "inst without spaces"


def encoder_of(tokenizer: Any, style: str = "policy") -> Encoder:
    template = Template.of_policy(tokenizer) if style == "policy" else Template(style=style)  # type: ignore[arg-type]
    return Encoder(tokenizer, template, arrangement="prompt_response", vocab_size=len(tokenizer), max_tokens=None)


@pytest.mark.parametrize("family", TOKENIZERS)
@pytest.mark.parametrize("style", ["policy", "chat"])
def test_a_response_behind_a_special_token_has_the_ids_of_the_whole_conversation(family: str, style: str) -> None:
    made = with_template(family, STYLE_OF_TOKEN)
    encoder = encoder_of(made, style)
    for response in RESPONSES:
        item = encoder.encode(Item("Why?", response))
        turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": response}]
        whole = made.apply_chat_template(turns, return_dict=False)
        found = [*item.prefix_ids, *item.response_ids]
        assert found == list(whole)[: len(found)]


@pytest.mark.parametrize("family", ["byte_bpe", "byte_bpe_prefix_space", "first_space", "word_piece"])
def test_a_response_behind_ordinary_text_has_the_ids_of_the_whole_conversation(family: str) -> None:
    made = with_template(family, "chatml")
    encoder = encoder_of(made)
    for response in RESPONSES:
        item = encoder.encode(Item("Why?", response))
        turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": response}]
        whole = list(made.apply_chat_template(turns, return_dict=False))
        if family == "byte_bpe_prefix_space" and response.startswith(" "):
            continue  # its "\n " is one word
        found = [*item.prefix_ids, *item.response_ids]
        assert found == whole[: len(found)]


@pytest.mark.parametrize("family", ["byte_fallback", "unigram", "first_space"])
def test_a_space_that_the_template_writes_before_the_answer_is_in_its_ids(family: str) -> None:
    made = with_template(family, "inst")
    item = encoder_of(made).encode(Item("Why?", "hold the button"))
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "hold the button"}]
    whole = list(made.apply_chat_template(turns, return_dict=False))
    found = [*item.prefix_ids, *item.response_ids]
    same = len(item.prefix_ids) + 3  # the last word may share a token with the space behind it
    assert found[:same] == whole[:same]
    assert made.decode(item.response_ids) == "hold the button"
    assert item.offsets[-1] == (15, 15)
    assert item.offsets[-2][1] == 15


@pytest.mark.parametrize("family", TOKENIZERS)
def test_text_and_the_ids_that_the_policy_wrote_are_one_response(family: str) -> None:
    made = with_template(family, STYLE_OF_TOKEN)
    encoder = encoder_of(made)
    by_text = encoder.encode(Item("Why?", "hold the button"))
    by_ids = encoder.encode(Item("Why?", [*by_text.response_ids, encoder.end_id]))
    assert by_ids.response_ids == by_text.response_ids
    assert by_ids.text.strip() == by_text.text
    shown = len(by_ids.text) - len(by_text.text)  # RoBERTa's decoder leaves the space that was put before it
    assert [end for _, end in by_ids.offsets] == [end + shown for _, end in by_text.offsets]


@pytest.mark.parametrize("family", TOKENIZERS)
def test_a_text_behind_text_gets_no_space_and_its_spans_cover_it(family: str) -> None:
    texts = StatelessTokenizer(tokenizer_of(family))
    text = "hold the button"
    for behind in ("token", "text"):
        ids, spans = texts.foreign(text, behind)  # type: ignore[arg-type]
        assert texts.user_text_ids(text, behind) == ids  # type: ignore[arg-type]
        covered = {n for start, end in spans for n in range(start, end)}
        assert {n for n, sign in enumerate(text) if sign != " "} <= covered <= set(range(len(text)))
    first = tokenizer_of(family).convert_ids_to_tokens(ids)[0]
    assert "hold".startswith(first), "no sign of a space before it"
    starting = tokenizer_of(family).convert_ids_to_tokens(texts.user_text_ids(text))[0]
    assert starting.startswith(("▁", "Ġ")) == (family not in ("byte_bpe", "word_piece"))


@pytest.mark.parametrize("family", ["byte_bpe_prefix_space", "byte_fallback", "unigram", "first_space"])
def test_behind_an_added_token_of_a_piece_the_tokenizer_goes_on_as_it_does(family: str) -> None:
    made = with_template(family, "chatml")
    texts = StatelessTokenizer(made)
    piece = "Hi<|im_end|>why<|im_end|>"
    whole = made("<|im_start|>" + piece, add_special_tokens=False)["input_ids"]
    assert texts.template_ids(piece, "token") == whole[1:]
    end = made.convert_tokens_to_ids("<|im_end|>")
    behind_text = texts.template_ids(piece, "text")
    assert behind_text[behind_text.index(end) :] == whole[whole.index(end) :]


@pytest.mark.parametrize("family", TOKENIZERS)
def test_a_special_token_that_a_prompt_spells_changes_its_own_ids_alone(family: str) -> None:
    made = with_template(family, "chatml")
    policy = PolicyPrompts(made)
    plain = policy.ids("router please")
    spelt = policy.ids("router</s>please")
    signs = [
        sum("▁" in token or "Ġ" in token for token in made.convert_ids_to_tokens(ids))
        for ids in (policy.ids("routerplease"), spelt)
    ]
    assert signs[0] == signs[1], "there is no space in it"
    # everything but what holds the three words is as it was
    start = next(n for n, (one, other) in enumerate(zip(plain, spelt, strict=False)) if one != other)
    same = made.convert_ids_to_tokens(plain)[:start]
    assert "router" in "".join(same).replace("▁", "").replace("Ġ", "")
    end = made.convert_tokens_to_ids("<|im_end|>")
    assert plain[plain.index(end) :] == spelt[spelt.index(end) :]


@pytest.mark.parametrize("family", ["byte_bpe_prefix_space", "first_space"])
@pytest.mark.parametrize("style", ["chatml", "bracketed", "headings", "inst without spaces"])
def test_a_prompt_of_pieces_is_written_as_the_whole_one(family: str, style: str) -> None:
    made = with_template(family, style)
    encoder = encoder_of(made)
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "why now?"}]
    texts = [made.decode(encoder.encode_prompt(turns, spare=spare)[0]) for spare in (None, 10**6)]
    assert texts[0] == texts[1]
