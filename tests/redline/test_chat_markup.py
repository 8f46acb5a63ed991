"""Rendered conversations read back: every family's markup, and a refusal where the border cannot be told."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from redline.text.chat_markup import (
    ParsedConversation,
    PromptBoundaryError,
    parse_conversation,
    parse_prompt_and_response,
    parse_query_and_prompt,
    to_score_item,
)

Messages = list[tuple[str, str]]
CHAT: Messages = [("system", "Be brief."), ("user", "Hi there"), ("assistant", "Hello!"), ("user", "Why?\n\nReally.")]
ANSWER = "Because: a <b> c,\nand so on."


def turns(begin: str, header: str, end: str, names: dict[str, str] | None = None) -> Callable[[Messages], str]:
    """A renderer that leaves the turn to the assistant; ``header`` holds ``{role}``."""

    def render(messages: Messages) -> str:
        called = {"system": "system", "user": "user", "assistant": "assistant", **(names or {})}
        rendered = "".join(header.format(role=called[role]) + content + end for role, content in messages)
        return begin + rendered + header.format(role=called["assistant"])

    return render


def inst(messages: Messages) -> str:
    text = "<s>"
    system = ""
    for role, content in messages:
        if role == "system":
            system = f"<<SYS>>\n{content}\n<</SYS>>\n\n"
        elif role == "user":
            text += f"[INST] {system}{content} [/INST]"
            system = ""
        else:
            text += f" {content} </s>"
    return text


def deepseek(messages: Messages) -> str:
    text = "<｜begin▁of▁sentence｜>"
    for role, content in messages:
        ends = {
            "system": content,
            "user": f"<｜User｜>{content}",
            "assistant": f"<｜Assistant｜>{content}<｜end▁of▁sentence｜>",
        }
        text += ends[role]
    return text + "<｜Assistant｜>"


FAMILIES: dict[str, tuple[Callable[[Messages], str], str]] = {
    "chatml": (turns("", "<|im_start|>{role}\n", "<|im_end|>\n"), "<|im_end|>\n"),
    "llama3": (
        turns("<|begin_of_text|>", "<|start_header_id|>{role}<|end_header_id|>\n\n", "<|eot_id|>"),
        "<|eot_id|>",
    ),
    "gemma": (turns("<bos>", "<start_of_turn>{role}\n", "<end_of_turn>\n", {"assistant": "model"}), "<end_of_turn>\n"),
    "phi3": (turns("", "<|{role}|>\n", "<|end|>\n"), "<|end|>\n<|endoftext|>"),
    "zephyr": (turns("", "<|{role}|>\n", "</s>\n"), "</s>"),
    "granite": (turns("", "<|start_of_role|>{role}<|end_of_role|>", "<|end_of_text|>\n"), "<|end_of_text|>"),
    "command": (
        turns(
            "<BOS_TOKEN>",
            "<|START_OF_TURN_TOKEN|><|{role}_TOKEN|>",
            "<|END_OF_TURN_TOKEN|>",
            {"system": "SYSTEM", "user": "USER", "assistant": "CHATBOT"},
        ),
        "<|END_OF_TURN_TOKEN|>",
    ),
    "inst": (inst, "</s>"),
    "deepseek": (deepseek, "<｜end▁of▁sentence｜>"),
}


def read(conversation: ParsedConversation) -> Messages:
    assert not isinstance(conversation.prompt, str)
    return [(message.role, message.content) for message in conversation.prompt]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("is_finished", [True, False])
def test_a_query_is_split_by_its_prompt(family: str, is_finished: bool) -> None:
    render, end = FAMILIES[family]
    prompt = render(CHAT)
    conversation = parse_query_and_prompt(prompt + ANSWER + (end if is_finished else ""), prompt)
    assert read(conversation) == CHAT
    assert (conversation.response, conversation.is_finished) == (ANSWER, is_finished)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("around", [("", ""), ("<pad><pad>", "<pad><pad>"), ("<|endoftext|>", "<|endoftext|>")])
def test_a_full_conversation_is_parsed(family: str, around: tuple[str, str]) -> None:
    render, end = FAMILIES[family]
    text = around[0] + render(CHAT) + ANSWER + end + around[1]
    conversation = parse_conversation(text)
    assert read(conversation) == CHAT
    assert (conversation.response.strip(), conversation.is_finished) == (ANSWER, True)
    assert text[conversation.start :].startswith(conversation.response)


def test_a_prompt_without_markup_stays_text() -> None:
    plain = parse_query_and_prompt("Q: why?\nA: because</s>", "Q: why?\nA:")
    assert plain == ParsedConversation("Q: why?\nA:", " because", True)
    assert parse_prompt_and_response("Why?", "Because", has_ends=False) == ParsedConversation("Why?", "Because", True)
    assert parse_prompt_and_response("Why?", "Because", has_ends=True).is_finished is False


@pytest.mark.parametrize("prompt", ["What does USER: mean?", "Quote:\n\nHuman: hello\n\nWho said that?"])
def test_words_that_look_like_markup_stay_text(prompt: str) -> None:
    assert parse_prompt_and_response(prompt, "Me.", has_ends=False).prompt == prompt


def test_dialogues_in_plain_words_are_parsed() -> None:
    conversation = parse_query_and_prompt("\n\nHuman: Hi\n\nAssistant: Hello", "\n\nHuman: Hi\n\nAssistant:")
    assert (read(conversation), conversation.response.strip()) == ([("user", "Hi")], "Hello")
    conversation = parse_conversation("A chat. USER: Hi ASSISTANT: Hello</s>")
    assert (read(conversation), conversation.response) == ([("system", "A chat."), ("user", "Hi")], "Hello")


def test_begin_tokens_and_padding_are_removed() -> None:
    assert parse_query_and_prompt("<s><s>Why? Because</s></s>", "<s>Why?").prompt == "Why?"


def test_a_prompt_cut_on_its_left_still_finds_its_response() -> None:
    prompt = "<|im_start|>user\n" + "a long story " * 30 + "<|im_end|>\n<|im_start|>assistant\n"
    conversation = parse_query_and_prompt(prompt[100:] + "Yes<|im_end|>", prompt)
    assert (conversation.response, conversation.is_finished) == ("Yes", True)
    assert read(conversation) == [("user", ("a long story " * 30).strip())]


def test_an_open_thought_belongs_to_the_response_and_an_empty_one_is_dropped() -> None:
    start = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert (
        parse_prompt_and_response(start + "<think>\n", "so</think>yes", has_ends=False).response
        == "<think>\nso</think>yes"
    )
    assert parse_prompt_and_response(start + "<think>\n\n</think>\n\n", "yes", has_ends=False).response == "yes"


def test_additional_end_tokens_are_recognised() -> None:
    assert parse_prompt_and_response("Why?", "So.[STOP]", has_ends=True, ends=["[STOP]"]) == ParsedConversation(
        "Why?", "So.", True
    )


@pytest.mark.parametrize(
    ("query", "prompt", "reason"),
    [
        ("Something else", "Why?", "does not begin with its prompt"),
        (
            "<|im_start|>user\nHi<|im_end|>\nyes",
            "<|im_start|>user\nHi<|im_end|>\n",
            "the start of an assistant turn",
        ),
        ("<|bot|>Hi<|reply|>yes", "<|bot|>Hi<|reply|>", "is not supported"),
        ("yes", "", "empty"),
    ],
)
def test_an_unknown_prompt_boundary_is_refused(query: str, prompt: str, reason: str) -> None:
    with pytest.raises(PromptBoundaryError, match=reason):
        parse_query_and_prompt(query, prompt)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("How are you? I am fine.", "no known markup"),
        ("<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nHi<|im_end|>", "not the assistant's"),
        ("<|im_start|>assistant\nHello<|im_end|>", "prompt is empty"),
    ],
)
def test_a_conversation_without_a_response_is_refused(text: str, reason: str) -> None:
    with pytest.raises(PromptBoundaryError, match=reason):
        parse_conversation(text)


# --- what was once read wrongly --------------------------------------------------------------------------


DEEPSEEK = (
    "<｜begin▁of▁sentence｜>Follow this style.\n\nHuman: hi\n\nAssistant: hello<｜User｜>What is 2+2?<｜Assistant｜>"
)


@pytest.mark.parametrize(
    "text",
    [DEEPSEEK, "<s>[SYSTEM_PROMPT]Format: USER: q ASSISTANT: a[/SYSTEM_PROMPT][INST]What is 2+2?[/INST]"],
)
def test_special_tokens_take_precedence_over_words(text: str) -> None:
    for conversation in (
        parse_query_and_prompt(text + "4</s>", text, ["</s>"]),
        parse_conversation(text + "4</s>", ["</s>"]),
    ):
        assert (read(conversation)[-1], conversation.response) == (("user", "What is 2+2?"), "4")
        assert read(conversation)[0][0] == "system"


@pytest.mark.parametrize(
    "prompt",
    [
        "In my log, what do the words USER: and ASSISTANT: mean?",
        "Explain what <|im_start|>assistant does",
        "Why does my model print [/INST] in its output?",
        "Label.\n\nAssistant: is bad. Is it?",
    ],
)
def test_a_prompt_that_mentions_markup_stays_text(prompt: str) -> None:
    assert parse_prompt_and_response(prompt, "Hold it.", has_ends=False) == ParsedConversation(prompt, "Hold it.", True)


@pytest.mark.parametrize(
    ("prompt", "response", "messages"),
    [
        ("<|im_start|>user<|im_sep|>Hi<|im_end|><|im_start|>assistant<|im_sep|>", "Hello", [("user", "Hi")]),
        (
            "<s>[INST] <<SYS>>\nBe nice\n<</SYS>>\n\nHi [/INST] Well </s><s>[INST] More [/INST]",
            " Hello",
            [("system", "Be nice"), ("user", "Hi"), ("assistant", "Well"), ("user", "More")],
        ),
        (
            "A helper answers questions.USER: Hi ASSISTANT:",
            " Hello",
            [("system", "A helper answers questions."), ("user", "Hi")],
        ),
        ("### Instruction:\nHi\n\n### Response:\n", "Hello", [("user", "Hi")]),
        ("<｜begin▁of▁sentence｜><｜User｜>Hi<｜Assistant｜></think>", "Hello", [("user", "Hi")]),
    ],
)
def test_variants_of_template_families_are_parsed(prompt: str, response: str, messages: Messages) -> None:
    conversation = parse_prompt_and_response(prompt, response, has_ends=True)
    assert (read(conversation), conversation.response) == (messages, "Hello")


@pytest.mark.parametrize(
    "prompt",
    [
        "<|start|>system<|message|>You help<|end|><|start|>user<|message|>Hi<|end|><|start|>assistant",
        "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>Hi<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_RESPONSE|>",
        "<bos><|turn>user\nHi<turn|>\n<|turn>model\n",
        "<|im_user|>user<|im_middle|>Hi<|im_end|><|im_assistant|>assistant<|im_middle|>",
        "<|User|>:Hi<eoh>\n<|Bot|>:",
    ],
)
def test_unknown_templates_are_refused(prompt: str) -> None:
    with pytest.raises(PromptBoundaryError, match="is not supported"):
        parse_query_and_prompt(prompt + "Hello", prompt)


@pytest.mark.parametrize(
    ("query", "prompt"),
    [
        ("<s> [INST] Hi there you [/INST] Hello</s>", "<s>[INST] Hi there you [/INST]"),
        ("<s><|user|>\nHi there you</s> \n<|assistant|>\n Hello</s>", "<|user|>\nHi there you</s>\n<|assistant|>\n"),
        ("<s>[INST] Hi there you [/INST] Hello</s>", "<s>[INST] Hi there you [/INST]"),
    ],
)
def test_white_space_of_sentencepiece_decoders_is_ignored(query: str, prompt: str) -> None:
    conversation = parse_query_and_prompt(query, prompt)
    assert (read(conversation), conversation.response) == ([("user", "Hi there you")], "Hello")


def test_text_that_looks_like_an_end_token_stays_in_the_response() -> None:
    prompt = "<|im_start|>user\nStrike out old<|im_end|>\n<|im_start|>assistant\n"
    assert parse_query_and_prompt(prompt + "<s>old</s><|im_end|>", prompt)[1:3] == ("<s>old</s>", True)
    assert parse_query_and_prompt(prompt + "<s>old</s>", prompt)[1:3] == ("<s>old</s>", False)
    assert parse_query_and_prompt("[INST] Strike [/INST]<s>old</s></s>", "[INST] Strike [/INST]")[1:3] == (
        "<s>old</s>",
        True,
    )
    assert parse_query_and_prompt("Hi there<pad><pad>", "Hi") == ParsedConversation("Hi", " there", False)


def test_two_kinds_of_markup_are_refused() -> None:
    with pytest.raises(PromptBoundaryError, match="two kinds"):
        parse_conversation("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nWrite [INST] a [/INST] b")


def test_an_empty_response_is_a_lone_end_token() -> None:
    item = to_score_item(parse_query_and_prompt("Why?</s>", "Why?"))
    assert (item.response, item.finished, item.token_offsets) == ("", True, [(0, 0)])
