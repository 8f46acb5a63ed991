"""Texts rendered with the model's own chat template are parsed back; texts of unknown templates are refused."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import pytest

from redline.chat_template import ChatRenderer, ChatTemplateParser
from redline.text.chat_markup import PromptBoundaryError, parse_prompt, parse_query_and_prompt
from redline_model.encoding.encoder import Encoder
from redline_model.options import Template
from redline_service.compat.base import ConversationParser
from tests.chat_templates import STYLES, with_template

CHAT = [
    {"role": "user", "content": "Hi there"},
    {"role": "assistant", "content": "Hello!\n\nYou?"},
    {"role": "user", "content": "Why?\n\nReally, <b>why</b>."},
]
SYSTEM = [{"role": "system", "content": "Be brief."}, *CHAT]
ANSWER = "Because: a <b> c,\nand so on."
# all styles except one whose turns cannot be told apart
PARSED_STYLES = [style for style in sorted(STYLES) if style != "words"]


def conversations(style: str) -> list[list[dict[str, Any]]]:
    return [CHAT[:1], CHAT, *([SYSTEM[:2], SYSTEM] if STYLES[style].has_system else [])]


def parser_for(style: str) -> ConversationParser:
    tokenizer = with_template("byte_bpe", style)
    template = Template(style="chat", chat_kwargs={"date_string": "01 Jan 2025"})
    return ConversationParser(
        Encoder(tokenizer, template, arrangement="rewrite", vocab_size=len(tokenizer), max_tokens=None)
    )


def as_dicts(prompt: Any) -> list[dict[str, Any]]:
    return [message.model_dump() for message in prompt]


@pytest.mark.parametrize("style", PARSED_STYLES)
@pytest.mark.parametrize("is_finished", [True, False])
def test_a_query_in_the_model_s_own_template_is_parsed(style: str, is_finished: bool) -> None:
    conversation_parser = parser_for(style)
    chat = conversation_parser.encoder.layout.chat
    assert chat is not None
    for messages in conversations(style):
        prompt = chat.render(messages, opens_turn=True)
        conversation = chat.render([*messages, {"role": "assistant", "content": ANSWER}])
        closing = conversation[conversation.rindex(ANSWER) + len(ANSWER) :]
        for ending in [closing, closing.rstrip(), closing + "<pad><pad>"] if is_finished else ["", "<pad>"]:
            if is_finished and not closing.strip():
                continue  # the template writes nothing that marks the end
            exchange = conversation_parser.parse_query_and_prompt(prompt + ANSWER + ending, prompt)
            assert as_dicts(exchange.prompt) == messages
            assert (exchange.response, exchange.is_finished) == (ANSWER, is_finished)
            assert as_dicts(conversation_parser.parse_prompt_and_response(prompt, ANSWER + ending).prompt) == messages


@pytest.mark.parametrize("style", PARSED_STYLES)
def test_a_conversation_in_the_model_s_own_template_is_parsed(style: str) -> None:
    conversation_parser = parser_for(style)
    chat = conversation_parser.encoder.layout.chat
    assert chat is not None
    for messages in conversations(style):
        text = chat.render([*messages, {"role": "assistant", "content": ANSWER}])
        exchange = conversation_parser.parse_conversation(text)
        assert (as_dicts(exchange.prompt), exchange.response.strip()) == (messages, ANSWER)
        assert text[exchange.start :].startswith(exchange.response)


@pytest.mark.parametrize("style", ["trimmed and dated", "turns of a model"])
def test_the_begin_token_may_be_missing_or_follow_padding(style: str) -> None:
    conversation_parser = parser_for(style)
    chat = ChatRenderer(conversation_parser.encoder.tokenizer, {"date_string": "01 Jan 2025"})
    prompt = chat.render(SYSTEM, opens_turn=True)
    for query in (prompt, prompt.removeprefix("<s>"), "<pad><pad>" + prompt):
        exchange = conversation_parser.parse_query_and_prompt(query + ANSWER + "<eot_id>", query)
        assert as_dicts(exchange.prompt) == SYSTEM
        conversation = query + ANSWER
        exchange = conversation_parser.parse_conversation(conversation)
        assert (as_dicts(exchange.prompt), exchange.response) == (SYSTEM, ANSWER)
        assert conversation[exchange.start :] == ANSWER


def test_the_end_of_what_a_template_marks_as_generated_ends_an_answer() -> None:
    parser = ChatTemplateParser(ChatRenderer(with_template("byte_bpe", "marked as generated"), {}))
    assert "<|im_end|>" in parser.turn_ends
    assert parser.strip_turn_end("Yes<|im_end|>") == ("Yes", True)


@pytest.mark.parametrize("style", PARSED_STYLES)
def test_a_text_of_another_template_is_not_parsed(style: str) -> None:
    chat = parser_for(style).encoder.layout.chat
    assert chat is not None
    parser = ChatTemplateParser(chat)
    for text in ("How are you?", "<x>Hi<y>", "[USER] Hi [BOT]"):
        assert parser.parse_prompt(text) is None
        assert parser.parse_conversation(text) is None


UNKNOWN = {
    "brackets": "[|user|]Hi\n[|assistant|]",
    "brackets of another name": "[|Human|] Hi\n[|AI|] ",
    "a token and words": "<s>GPT4 Correct User: Hi<|end_of_turn|>GPT4 Correct Assistant:",
    "a token": "<|bot|>Hi<|reply|>",
    "tags": "<human>: Hi\n<bot>:",
    "reserved tokens": "<reserved_106>Hi<reserved_107>",
    "tags in capitals": "<\u7528\u6237>Hi<AI>",
    "numbered tokens": "<extra_id_0>System\n\n<extra_id_1>User\nHi\n<extra_id_1>Assistant\n",
    "headings": "### User:\nHi\n\n### Assistant:\n",
    "words": "User: Hi\n\nAssistant:",
    "words of an instruction": "Instruct: Hi\nOutput:",
    "without its special tokens": "system\nYou help.\nuser\nHi\nassistant\n",
    "of a model": "user\nHi\nmodel\n",
    "rounds": "[Round 1]\n\n\u95ee\uff1aHi\n\n\u7b54\uff1a",
}


@pytest.mark.parametrize("template", UNKNOWN)
def test_a_prompt_of_an_unknown_template_is_refused(template: str) -> None:
    prompt = UNKNOWN[template]
    for work in (lambda: parse_prompt(prompt), lambda: parse_query_and_prompt(prompt + " Hello", prompt)):
        with pytest.raises(PromptBoundaryError, match="unknown"):
            work()


@pytest.mark.parametrize(
    "prompt",
    [
        "Q: why?\nA:",
        "Question: 1 + 1\nAnswer:",
        "Input: a\nOutput:",
        "<p>Hello</p>",
        "<b>Hi</b> and <i>",
        "Explain what <|im_start|>assistant does",
        "The user said: hi. What should the assistant say?",
        "Write the AI",
        "[1] a\n[2]",
        "Who wins, human or model",
    ],
)
def test_prompts_without_a_template_are_unchanged(prompt: str) -> None:
    assert parse_prompt(prompt) == prompt


@pytest.mark.parametrize("style", ["chatml", "inst", "turns of a model"])
@pytest.mark.parametrize("fragment", ["{u}", "{a}", "{u}{a}", " ", "x", "<s>"])
def test_parsing_takes_linear_time(style: str, fragment: str) -> None:
    conversation_parser = parser_for(style)
    chat = conversation_parser.encoder.layout.chat
    assert chat is not None
    question = chat.render(CHAT[:1], opens_turn=True)
    answer = chat.render([*CHAT[:2]])[len(question) :]
    part = fragment.format(u=question, a=answer)
    for text in (part * (65536 // len(part)), question + part * (65536 // len(part))):
        started = time.process_time()
        with contextlib.suppress(PromptBoundaryError):
            conversation_parser.parse_conversation(text)
        with contextlib.suppress(PromptBoundaryError):
            conversation_parser.parse_query_and_prompt(text + "x", text)
        assert time.process_time() - started < 1.0


def test_end_tokens_as_padding_take_linear_time() -> None:
    chat = parser_for("chatml").encoder.layout.chat
    assert chat is not None
    parser = ChatTemplateParser(chat)
    end = parser.turn_ends[-1]
    started = time.perf_counter()
    assert parser.strip_turn_end("An answer." + end * 100_000) == ("An answer.", True)
    assert time.perf_counter() - started < 1.0
