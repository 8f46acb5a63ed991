"""The turn markers of known families of chat templates, and the parsing of texts by them; pure."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import NamedTuple

from redline.text.marker_scan import end_before_marker, marker_at_end, skip_leading_space
from redline.wire import ChatMessage

_ROLES = {
    "human": "user",
    "prompter": "user",
    "instruction": "user",
    "input": "user",
    "[inst]": "user",
    "response": "assistant",
    "chatbot": "assistant",
    "model": "assistant",
    "[/inst]": "assistant",
    "developer": "system",
}


class PromptBoundaryError(ValueError):
    """The boundary between prompt and response cannot be determined."""


class ChatMarkup(NamedTuple):
    """How a family of chat templates marks turns. ``header`` has a group ``role``; ``ends`` close a turn.

    ``is_words``: the markers are plain words, so that they count only if they form a complete dialogue.
    """

    header: re.Pattern[str]
    ends: tuple[str, ...]
    is_words: bool


def _markup(header: str, *ends: str, is_words: bool = False) -> ChatMarkup:
    return ChatMarkup(re.compile(header), ends, is_words)


_MARKUPS = {
    "chatml": _markup(r"<\|im_start\|>(?P<role>\w+)(?:<\|im_sep\|>|\n)?", "<|im_end|>"),
    "llama3": _markup(r"<\|start_header_id\|>(?P<role>\w+)<\|end_header_id\|>\n{0,2}", "<|eot_id|>", "<|eom_id|>"),
    "llama4": _markup(r"<\|header_start\|>(?P<role>\w+)<\|header_end\|>\n{0,2}", "<|eot|>", "<|eom|>"),
    "gemma": _markup(r"<start_of_turn>(?P<role>\w+)\n?", "<end_of_turn>", "<eos>"),
    "granite": _markup(r"<\|start_of_role\|>(?P<role>\w+)<\|end_of_role\|>", "<|end_of_text|>"),
    "command": _markup(r"<\|START_OF_TURN_TOKEN\|><\|(?P<role>USER|SYSTEM|CHATBOT)_TOKEN\|>", "<|END_OF_TURN_TOKEN|>"),
    "deepseek": _markup(r"<｜(?P<role>User|Assistant)｜>", "<｜end▁of▁sentence｜>"),
    "named": _markup(r"<\|(?P<role>system|user|assistant|prompter)\|>\n?", "<|end|>", "<|endoftext|>", "</s>"),
    "inst": _markup(r"(?P<role>\[/?INST\]) ?", "</s>"),
    "human": _markup(r"(?:\A|\n\n)(?P<role>Human|Assistant): ?", is_words=True),
    "vicuna": _markup(r"(?:\A|(?<=[\s.!?])|(?<=</s>))(?P<role>USER|ASSISTANT): ?", is_words=True),
    "alpaca": _markup(r"(?:\A|\n\n)### (?P<role>Instruction|Input|Response):\n?", is_words=True),
}
_BEGINNINGS = (
    *("<|begin_of_text|>", "<s>", "<bos>", "<｜begin▁of▁sentence｜>", "<|startoftext|>", "<BOS_TOKEN>"),
    "[gMASK]<sop>",
)
# padding, on either side
_PADS = ("<|endoftext|>", "<pad>", "<|pad|>", "[PAD]", "<|finetune_right_pad_id|>", "<｜▁pad▁｜>", "<PAD>")
# end tokens of all families, for texts without markup
KNOWN_ENDS = (*dict.fromkeys(end for markup in _MARKUPS.values() for end in markup.ends), "<EOS_TOKEN>", "[EOS]")

# an end token that is also an HTML tag: a second one is text
_STRIKE = "</s>"

# markup of a system prompt inside the first user turn, and before it
_SYSTEM_WITHIN = ("<<SYS>>", "<</SYS>>")
_SYSTEM_BEFORE = ("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]")


def strip_ending(text: str, ends: Sequence[str], markup: ChatMarkup | None = None) -> tuple[str, bool]:
    """``text`` without padding and its end token, and whether there was an end token.

    Args:
        ends: end tokens in addition to those of ``markup``, or to all known ones if the markup is words or None.
    """
    known = [*ends, *(KNOWN_ENDS if markup is None or markup.is_words else markup.ends)]
    is_ended = False
    end = len(text)
    while pad := marker_at_end(text, end, _PADS):
        end, is_ended = end_before_marker(text, end, pad), is_ended or pad in known
    if marker := marker_at_end(text, end, known):
        end, is_ended = end_before_marker(text, end, marker), True
        while marker != _STRIKE and marker_at_end(text, end, [marker]):  # end tokens as padding
            end = end_before_marker(text, end, marker)
    return text[:end], is_ended


def content_start(text: str, ends: Sequence[str]) -> int:
    """Index of the text after left padding and begin tokens."""
    known = [marker for marker in (*_BEGINNINGS, *_PADS, *ends, *KNOWN_ENDS) if marker]
    at = 0
    while True:
        start = skip_leading_space(text, at)
        marker = next((marker for marker in known if text.startswith(marker, start)), None)
        if marker is None:
            return at
        at = start + len(marker)


def _system_within(content: str) -> tuple[str, int] | None:
    """The system prompt at the start of a user turn, and the index after it; None if there is none."""
    opening, closing = _SYSTEM_WITHIN
    start = skip_leading_space(content, 0)
    if not content.startswith(opening, start):
        return None
    start += len(opening)
    end = content.find(closing, start)
    if end < 0:
        return None
    return content[start:end].strip(), skip_leading_space(content, end + len(closing))


def _system_before(text: str) -> str:
    """``text`` without the markup of a system prompt, if it has it."""
    opening, closing = _SYSTEM_BEFORE
    is_marked = text.startswith(opening) and text.endswith(closing) and len(text) >= len(opening) + len(closing)
    return text[len(opening) : -len(closing)] if is_marked else text


def message_role(header: re.Match[str]) -> str:
    """The role of a header, as in messages."""
    return _ROLES.get(header["role"].lower(), header["role"].lower())


def messages_before_last(
    text: str, headers: Sequence[re.Match[str]], markup: ChatMarkup, ends: Sequence[str]
) -> list[ChatMessage]:
    """The turns before the last header."""
    messages: list[ChatMessage] = []
    # a system prompt without a header, or the rest of a turn that was cut on the left
    if preamble := strip_ending(text[: headers[0].start()], ends, markup)[0].strip():
        messages.append(ChatMessage(role="system", content=_system_before(preamble)))
    for header, following in itertools.pairwise(headers):
        content = text[header.end() : following.start()]
        end = len(content)
        while begin := marker_at_end(
            content, end, _BEGINNINGS
        ):  # some templates write a begin token for every exchange
            end = end_before_marker(content, end, begin)
        content = strip_ending(content[:end], ends, markup)[0]
        within = _system_within(content) if message_role(header) == "user" else None
        if within:
            messages.append(ChatMessage(role="system", content=within[0]))
            content = content[within[1] :]
        messages.append(ChatMessage(role=message_role(header), content=content.strip()))
    if not messages:
        raise PromptBoundaryError("the prompt is empty")
    return messages


class MarkupMatch(NamedTuple):
    """A markup and its headers in a text (at least one)."""

    markup: ChatMarkup
    headers: list[re.Match[str]]

    @property
    def is_open(self) -> bool:
        """Whether the last turn is the assistant's."""
        return message_role(self.headers[-1]) == "assistant"

    @property
    def is_dialogue(self) -> bool:
        """Whether there are several turns and the first is not the assistant's."""
        return len(self.headers) > 1 and message_role(self.headers[0]) != "assistant"


def find_markups(text: str, *, is_words: bool) -> list[MarkupMatch]:
    """All markups with a header in ``text``: only those with ``is_words``, or only the others."""
    matches = [MarkupMatch(m, list(m.header.finditer(text))) for m in _MARKUPS.values() if m.is_words == is_words]
    return [match for match in matches if match.headers]
