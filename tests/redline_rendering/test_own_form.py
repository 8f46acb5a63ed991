"""Texts rendered with the model's own chat template are read back by what it writes; unknown ones are refused."""

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
# styles that write an earlier answer otherwise than it was given, or nothing around turns
READ = [style for style in sorted(STYLES) if style != "words"]


def conversations(style: str) -> list[list[dict[str, Any]]]:
    return [CHAT[:1], CHAT, *([SYSTEM[:2], SYSTEM] if STYLES[style].has_system else [])]


def reader_of(style: str) -> ConversationParser:
    made = with_template("byte_bpe", style)
    template = Template(style="chat", chat_kwargs={"date_string": "01 Jan 2025"})
    return ConversationParser(Encoder(made, template, arrangement="rewrite", vocab_size=len(made), max_tokens=None))


def read(prompt: Any) -> list[dict[str, Any]]:
    return [message.model_dump() for message in prompt]


@pytest.mark.parametrize("style", READ)
@pytest.mark.parametrize("is_finished", [True, False])
def test_a_query_in_the_own_form_is_taken_apart(style: str, is_finished: bool) -> None:
    reader = reader_of(style)
    chat = reader.encoder.layout.chat
    assert chat is not None
    for messages in conversations(style):
        prompt = chat.render(messages, opens_turn=True)
        whole = chat.render([*messages, {"role": "assistant", "content": ANSWER}])
        closing = whole[whole.rindex(ANSWER) + len(ANSWER) :]
        for after in [closing, closing.rstrip(), closing + "<pad><pad>"] if is_finished else ["", "<pad>"]:
            if is_finished and not closing.strip():
                continue  # nothing says that it is finished
            exchange = reader.parse_query_and_prompt(prompt + ANSWER + after, prompt)
            assert read(exchange.prompt) == messages
            assert (exchange.response, exchange.is_finished) == (ANSWER, is_finished)
            assert read(reader.parse_prompt_and_response(prompt, ANSWER + after).prompt) == messages


@pytest.mark.parametrize("style", READ)
def test_a_whole_conversation_in_the_own_form_is_taken_apart(style: str) -> None:
    reader = reader_of(style)
    chat = reader.encoder.layout.chat
    assert chat is not None
    for messages in conversations(style):
        text = chat.render([*messages, {"role": "assistant", "content": ANSWER}])
        exchange = reader.parse_conversation(text)
        assert (read(exchange.prompt), exchange.response.strip()) == (messages, ANSWER)
        assert text[exchange.start :].startswith(exchange.response)


@pytest.mark.parametrize("style", ["trimmed and dated", "turns of a model"])
def test_the_begin_token_may_be_missing_or_behind_padding(style: str) -> None:
    reader = reader_of(style)
    chat = ChatRenderer(reader.encoder.tokenizer, {"date_string": "01 Jan 2025"})
    prompt = chat.render(SYSTEM, opens_turn=True)
    for given in (prompt, prompt.removeprefix("<s>"), "<pad><pad>" + prompt):
        exchange = reader.parse_query_and_prompt(given + ANSWER + "<eot_id>", given)
        assert read(exchange.prompt) == SYSTEM
        whole = given + ANSWER
        exchange = reader.parse_conversation(whole)
        assert (read(exchange.prompt), exchange.response) == (SYSTEM, ANSWER)
        assert whole[exchange.start :] == ANSWER


def test_what_the_template_marks_as_generated_ends_an_answer() -> None:
    form = ChatTemplateParser(ChatRenderer(with_template("byte_bpe", "marked as generated"), {}))
    assert "<|im_end|>" in form.ends
    assert form.answer("Yes<|im_end|>") == ("Yes", True)


@pytest.mark.parametrize("style", READ)
def test_a_text_of_another_form_is_none_of_the_own(style: str) -> None:
    chat = reader_of(style).encoder.layout.chat
    assert chat is not None
    form = ChatTemplateParser(chat)
    for text in ("How are you?", "<x>Hi<y>", "[USER] Hi [BOT]"):
        assert form.prompt(text) is None
        assert form.whole(text) is None


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


@pytest.mark.parametrize("form", UNKNOWN)
def test_a_prompt_of_an_unknown_template_is_refused(form: str) -> None:
    prompt = UNKNOWN[form]
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
def test_plain_prompts_stay_plain(prompt: str) -> None:
    assert parse_prompt(prompt) == prompt


@pytest.mark.parametrize("style", ["chatml", "inst", "turns of a model"])
@pytest.mark.parametrize("fragment", ["{u}", "{a}", "{u}{a}", " ", "x", "<s>"])
def test_reading_the_own_form_is_linear(style: str, fragment: str) -> None:
    reader = reader_of(style)
    chat = reader.encoder.layout.chat
    assert chat is not None
    question = chat.render(CHAT[:1], opens_turn=True)
    answer = chat.render([*CHAT[:2]])[len(question) :]
    part = fragment.format(u=question, a=answer)
    for text in (part * (65536 // len(part)), question + part * (65536 // len(part))):
        started = time.process_time()
        with contextlib.suppress(PromptBoundaryError):
            reader.parse_conversation(text)
        with contextlib.suppress(PromptBoundaryError):
            reader.parse_query_and_prompt(text + "x", text)
        assert time.process_time() - started < 1.0


def test_end_tokens_as_padding_cost_linear_time() -> None:
    chat = reader_of("chatml").encoder.layout.chat
    assert chat is not None
    form = ChatTemplateParser(chat)
    end = form.ends[-1]
    started = time.perf_counter()
    assert form.answer("An answer." + end * 100_000) == ("An answer.", True)
    assert time.perf_counter() - started < 1.0
