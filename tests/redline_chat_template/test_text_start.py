"""Parts of a text that are tokenised separately have the same ids as in the whole text, for every tokenizer."""

from __future__ import annotations

from typing import Any

import pytest

from redline.chat_template import PolicyPrompts, StatelessTokenizer
from redline_model.encoding.encoder import Encoder
from redline_model.encoding.items import Item
from redline_model.options import Template
from tests.chat_templates import with_template
from tests.tokenizer_families import TOKENIZERS, tokenizer_of

RESPONSES = ["Hold the button", " Hold it.", "1,024 don'ts"]
# a template in which no token spans the start of the answer
STYLE_WITH_TOKENS = "inst without spaces"


def encoder_of(tokenizer: Any, style: str = "policy") -> Encoder:
    template = Template.of_policy(tokenizer) if style == "policy" else Template(style=style)  # type: ignore[arg-type]
    return Encoder(tokenizer, template, arrangement="prompt_response", vocab_size=len(tokenizer), max_tokens=None)


@pytest.mark.parametrize("family", TOKENIZERS)
@pytest.mark.parametrize("style", ["policy", "chat"])
def test_a_response_after_a_special_token_has_its_ids_in_the_whole_conversation(family: str, style: str) -> None:
    tokenizer = with_template(family, STYLE_WITH_TOKENS)
    encoder = encoder_of(tokenizer, style)
    for response in RESPONSES:
        item = encoder.encode(Item("Why?", response))
        turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": response}]
        conversation_ids = tokenizer.apply_chat_template(turns, return_dict=False)
        encoded = [*item.prefix_ids, *item.response_ids]
        assert encoded == list(conversation_ids)[: len(encoded)]


@pytest.mark.parametrize("family", ["byte_bpe", "byte_bpe_prefix_space", "first_space", "word_piece"])
def test_a_response_after_ordinary_text_has_its_ids_in_the_whole_conversation(family: str) -> None:
    tokenizer = with_template(family, "chatml")
    encoder = encoder_of(tokenizer)
    for response in RESPONSES:
        item = encoder.encode(Item("Why?", response))
        turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": response}]
        conversation_ids = list(tokenizer.apply_chat_template(turns, return_dict=False))
        if family == "byte_bpe_prefix_space" and response.startswith(" "):
            continue  # its "\n " is one word
        encoded = [*item.prefix_ids, *item.response_ids]
        assert encoded == conversation_ids[: len(encoded)]


@pytest.mark.parametrize("family", ["byte_fallback", "unigram", "first_space"])
def test_a_space_that_the_template_writes_before_an_answer_is_in_its_ids(family: str) -> None:
    tokenizer = with_template(family, "inst")
    item = encoder_of(tokenizer).encode(Item("Why?", "hold the button"))
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "hold the button"}]
    conversation_ids = list(tokenizer.apply_chat_template(turns, return_dict=False))
    encoded = [*item.prefix_ids, *item.response_ids]
    common = len(item.prefix_ids) + 3  # the last word may share a token with the space after it
    assert encoded[:common] == conversation_ids[:common]
    assert tokenizer.decode(item.response_ids) == "hold the button"
    assert item.offsets[-1] == (15, 15)
    assert item.offsets[-2][1] == 15


@pytest.mark.parametrize("family", TOKENIZERS)
def test_a_response_as_text_and_as_sampled_ids_is_encoded_equally(family: str) -> None:
    tokenizer = with_template(family, STYLE_WITH_TOKENS)
    encoder = encoder_of(tokenizer)
    by_text = encoder.encode(Item("Why?", "hold the button"))
    by_ids = encoder.encode(Item("Why?", [*by_text.response_ids, encoder.end_id]))
    assert by_ids.response_ids == by_text.response_ids
    assert by_ids.text.strip() == by_text.text
    extra = len(by_ids.text) - len(by_text.text)  # RoBERTa's decoder keeps the space that was added
    assert [end for _, end in by_ids.offsets] == [end + extra for _, end in by_text.offsets]


@pytest.mark.parametrize("family", TOKENIZERS)
def test_a_text_after_other_text_gets_no_space_and_its_spans_cover_it(family: str) -> None:
    text_tokenizer = StatelessTokenizer(tokenizer_of(family))
    text = "hold the button"
    for preceding in ("token", "text"):
        ids, spans = text_tokenizer.encode_user_text(text, preceding)  # type: ignore[arg-type]
        assert text_tokenizer.user_text_ids(text, preceding) == ids  # type: ignore[arg-type]
        covered = {n for start, end in spans for n in range(start, end)}
        assert {n for n, letter in enumerate(text) if letter != " "} <= covered <= set(range(len(text)))
    first = tokenizer_of(family).convert_ids_to_tokens(ids)[0]
    assert "hold".startswith(first), "there must be no added space"
    first_of_text = tokenizer_of(family).convert_ids_to_tokens(text_tokenizer.user_text_ids(text))[0]
    assert first_of_text.startswith(("▁", "Ġ")) == (family not in ("byte_bpe", "word_piece"))


@pytest.mark.parametrize("family", ["byte_bpe_prefix_space", "byte_fallback", "unigram", "first_space"])
def test_text_after_an_added_token_within_a_part_is_tokenised_as_in_the_whole_text(family: str) -> None:
    tokenizer = with_template(family, "chatml")
    text_tokenizer = StatelessTokenizer(tokenizer)
    part = "Hi<|im_end|>why<|im_end|>"
    conversation_ids = tokenizer("<|im_start|>" + part, add_special_tokens=False)["input_ids"]
    assert text_tokenizer.template_ids(part, "token") == conversation_ids[1:]
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    after_text = text_tokenizer.template_ids(part, "text")
    assert after_text[after_text.index(end) :] == conversation_ids[conversation_ids.index(end) :]


@pytest.mark.parametrize("family", TOKENIZERS)
def test_a_special_token_in_a_prompt_changes_only_its_own_ids(family: str) -> None:
    tokenizer = with_template(family, "chatml")
    policy = PolicyPrompts(tokenizer)
    without_special = policy.ids("router please")
    with_special = policy.ids("router</s>please")
    space_counts = [
        sum("▁" in token or "Ġ" in token for token in tokenizer.convert_ids_to_tokens(ids))
        for ids in (policy.ids("routerplease"), with_special)
    ]
    assert space_counts[0] == space_counts[1], "no space may be added"
    # everything except these words is unchanged
    start = next(
        n for n, (first, other) in enumerate(zip(without_special, with_special, strict=False)) if first != other
    )
    common = tokenizer.convert_ids_to_tokens(without_special)[:start]
    assert "router" in "".join(common).replace("▁", "").replace("Ġ", "")
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert without_special[without_special.index(end) :] == with_special[with_special.index(end) :]


@pytest.mark.parametrize("family", ["byte_bpe_prefix_space", "first_space"])
@pytest.mark.parametrize("style", ["chatml", "bracketed", "headings", "inst without spaces"])
def test_a_prompt_encoded_in_parts_decodes_like_the_whole_prompt(family: str, style: str) -> None:
    tokenizer = with_template(family, style)
    encoder = encoder_of(tokenizer)
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "why now?"}]
    texts = [
        tokenizer.decode(encoder.encode_prompt(turns, max_prefix_tokens=max_prefix_tokens)[0])
        for max_prefix_tokens in (None, 10**6)
    ]
    assert texts[0] == texts[1]
