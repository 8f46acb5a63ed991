"""A conversation that a caller has already rendered -> prompt and response; pure, standard library only.

RL loops that know one string send their policy's chat template along. It is the policy's, not the reward model's, so it
is taken off here and the bundle's own is put on. What cannot be told apart is refused: a border in the wrong place
would be a made-up reward.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from redline.text.marker_scan import end_before_marker, marker_at_end, overlap, start_of_content
from redline.text.unknown_markup import opens_unknown_turn
from redline.wire import ChatMessage, ScoreItem

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
    """Where the prompt ends and the response begins cannot be told."""


class ChatMarkup(NamedTuple):
    """How a family of chat templates marks turns. ``header`` has a group ``role``; ``ends`` close a turn.

    ``is_words``: made of words that any text may hold, so that it counts only where it makes a whole dialogue.
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
# what fills a sequence up, on either side
_PADS = ("<|endoftext|>", "<pad>", "<|pad|>", "[PAD]", "<|finetune_right_pad_id|>", "<｜▁pad▁｜>", "<PAD>")
# what ends a text without markup: any of all of them
KNOWN_ENDS = (*dict.fromkeys(end for markup in _MARKUPS.values() for end in markup.ends), "<EOS_TOKEN>", "[EOS]")

# an end token that is a word of HTML, too: a second one is text
_STRIKE = "</s>"

# what a template may write into the turn that it opens. An empty thought is nobody's; a begun one is the response's.
_CLOSED_THOUGHT = re.compile(r"\A\s*(?:<think>\s*)?</think>\s*")
_OPENER = re.compile(r"\A\s*(?:(?:<think>\s*)?</think>\s*|<think>\s*)?\Z")
# markup of a system prompt inside the user's first turn, and before it
_SYSTEM_WITHIN = ("<<SYS>>", "<</SYS>>")
_SYSTEM_BEFORE = ("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]")
# templates whose turns have parts of their own, which are not told apart here
_OTHER = re.compile(r"<\|START_(?:RESPONSE|THINKING)\|>|<\|start\|>\w+(?:<\|(?:channel|message)\|>|\s*\Z)")


class ParsedConversation(NamedTuple):
    """A prompt and the response to it. ``is_finished``: the policy ended the response itself.

    ``start``: where the response begins in the text that held both, 0 where it came alone.
    """

    prompt: str | list[ChatMessage]
    response: str
    is_finished: bool
    start: int = 0


def to_score_item(conversation: ParsedConversation, **more: Any) -> ScoreItem:
    """The exchange as an item; an empty response stands for a lone end token, which is what such a policy wrote."""
    if not conversation.response and conversation.is_finished:
        more = {"token_offsets": [(0, 0)], **more}
    return ScoreItem(
        prompt=conversation.prompt, response=conversation.response, finished=conversation.is_finished, **more
    )


def strip_ending(text: str, ends: Sequence[str], markup: ChatMarkup | None = None) -> tuple[str, bool]:
    """``text`` without padding and what ended it, and whether there was something.

    Args:
        ends: end tokens beyond those of ``markup``, or beyond all known ones where words or nothing mark the turns.
    """
    known = [*ends, *(KNOWN_ENDS if markup is None or markup.is_words else markup.ends)]
    is_ended = False
    end = len(text)
    while pad := marker_at_end(text, end, _PADS):
        end, is_ended = end_before_marker(text, end, pad), is_ended or pad in known
    if found := marker_at_end(text, end, known):
        end, is_ended = end_before_marker(text, end, found), True
        while found != _STRIKE and marker_at_end(text, end, [found]):  # end tokens as padding
            end = end_before_marker(text, end, found)
    return text[:end], is_ended


def content_start(text: str, ends: Sequence[str]) -> int:
    """Where ``text`` begins behind its begin token and the padding on its left."""
    known = [one for one in (*_BEGINNINGS, *_PADS, *ends, *KNOWN_ENDS) if one]
    at = 0
    while True:
        here = start_of_content(text, at)
        found = next((one for one in known if text.startswith(one, here)), None)
        if found is None:
            return at
        at = here + len(found)


def _system_within(content: str) -> tuple[str, int] | None:
    """The system prompt that a user's turn opens with, and where the turn goes on behind it; None if there is none."""
    opening, closing = _SYSTEM_WITHIN
    start = start_of_content(content, 0)
    if not content.startswith(opening, start):
        return None
    start += len(opening)
    end = content.find(closing, start)
    if end < 0:
        return None
    return content[start:end].strip(), start_of_content(content, end + len(closing))


def _system_before(text: str) -> str:
    """``text`` without the markup of a system prompt, where it is one."""
    opening, closing = _SYSTEM_BEFORE
    is_marked = text.startswith(opening) and text.endswith(closing) and len(text) >= len(opening) + len(closing)
    return text[len(opening) : -len(closing)] if is_marked else text


def _role(header: re.Match[str]) -> str:
    return _ROLES.get(header["role"].lower(), header["role"].lower())


def _messages(
    text: str, headers: Sequence[re.Match[str]], markup: ChatMarkup, ends: Sequence[str]
) -> list[ChatMessage]:
    """The turns in front of the last header."""
    messages: list[ChatMessage] = []
    # a system prompt without a header of its own, or the rest of a turn that was cut
    if before := strip_ending(text[: headers[0].start()], ends, markup)[0].strip():
        messages.append(ChatMessage(role="system", content=_system_before(before)))
    for header, following in itertools.pairwise(headers):
        content = text[header.end() : following.start()]
        end = len(content)
        while begin := marker_at_end(content, end, _BEGINNINGS):  # a begin token for every exchange
            end = end_before_marker(content, end, begin)
        content = strip_ending(content[:end], ends, markup)[0]
        within = _system_within(content) if _role(header) == "user" else None
        if within:
            messages.append(ChatMessage(role="system", content=within[0]))
            content = content[within[1] :]
        messages.append(ChatMessage(role=_role(header), content=content.strip()))
    if not messages:
        raise PromptBoundaryError("the prompt is empty")
    return messages


class _MarkupMatch(NamedTuple):
    markup: ChatMarkup
    headers: list[re.Match[str]]

    @property
    def is_open(self) -> bool:
        """Whether the last turn is the assistant's, behind another one."""
        return _role(self.headers[-1]) == "assistant"

    @property
    def is_dialogue(self) -> bool:
        """Whether it begins with somebody else than the assistant."""
        return len(self.headers) > 1 and _role(self.headers[0]) != "assistant"


def _markups_in(text: str, *, is_words: bool) -> list[_MarkupMatch]:
    every = [_MarkupMatch(m, list(m.header.finditer(text))) for m in _MARKUPS.values() if m.is_words == is_words]
    return [one for one in every if one.headers]


def _opened(prompt: str) -> _MarkupMatch | None:
    """The markup of a prompt that leaves the turn to the assistant; None for a text without any.

    Raises:
        PromptBoundaryError: it has markup and does not, or its template is unknown.
    """
    if _OTHER.search(prompt):
        raise PromptBoundaryError(f"the prompt's chat template is unknown here; it ends with {prompt[-30:]!r}")
    marked = _markups_in(prompt, is_words=False)
    for one in (*marked, *(words for words in _markups_in(prompt, is_words=True) if words.is_dialogue)):
        is_rendered = len(one.headers) > 1 or not prompt[: one.headers[0].start()].strip()
        if one.is_open and is_rendered and _OPENER.match(prompt[one.headers[-1].end() :]):
            return one
    if any(not prompt[: one.headers[0].start()].strip() for one in marked):
        raise PromptBoundaryError("the prompt does not end where the assistant's turn begins")
    if opens_unknown_turn(prompt):
        raise PromptBoundaryError(f"the prompt's chat template is unknown here; it ends with {prompt[-30:]!r}")
    return None


def parse_prompt(rendered: str) -> str | list[ChatMessage]:
    """A prompt, rendered or not, as what it was rendered from; a text without markup is one.

    Raises:
        PromptBoundaryError: it is empty, of an unknown template, or does not leave the turn to the assistant.
    """
    text = rendered[content_start(rendered, ()) :]
    found = _opened(text)
    if found is not None:
        return _messages(text, found.headers, found.markup, ())
    if not text:
        raise PromptBoundaryError("the prompt is empty")
    return text


def parse_prompt_and_response(
    prompt: str, response: str, *, has_ends: bool, ends: Sequence[str] = ()
) -> ParsedConversation:
    """A prompt, rendered or not, and the response that follows it.

    Args:
        has_ends: whether the caller leaves end tokens in its texts; then a response without one is unfinished, and
            without it nothing is taken off.

    Raises:
        PromptBoundaryError: as ``parse_prompt``.
    """
    text = prompt[content_start(prompt, ends) :]
    found = _opened(text)
    markup = None
    if found is not None:
        markup = found.markup
        response = _behind(found, text, response)
    response, is_ended = strip_ending(response, ends, markup) if has_ends else (response, True)
    if found is not None:
        return ParsedConversation(_messages(text, found.headers, found.markup, ends), response, is_ended)
    if not text:
        raise PromptBoundaryError("the prompt is empty")
    return ParsedConversation(text, response, is_ended)


def _behind(found: _MarkupMatch, prompt: str, response: str) -> str:
    """The assistant's turn that ``prompt`` opens and ``response`` fills."""
    opener = prompt[found.headers[-1].end() :]
    if opener.strip() and not _CLOSED_THOUGHT.match(opener):
        return opener + response
    # what belongs to the header may have come with the response
    header = found.markup.header.match(prompt + response, found.headers[-1].start())
    assert header is not None
    return (prompt + response)[max(header.end(), len(prompt)) :]


def parse_conversation(text: str, ends: Sequence[str] = ()) -> ParsedConversation:
    """A whole rendered conversation that ends with the assistant's turn, the response.

    Raises:
        PromptBoundaryError: there is no markup to find the boundary by, two kinds of it disagree, or the last turn is
            not the assistant's.
    """
    begin = content_start(text, ends)
    whole = text[begin:]
    if _OTHER.search(whole):
        raise PromptBoundaryError("the text's chat template is unknown here")
    marked = _markups_in(whole, is_words=False)
    found = [one for one in marked or _markups_in(whole, is_words=True) if one.is_open and (marked or one.is_dialogue)]
    if not found:
        why = "the last turn is not the assistant's: there is no response to score" if marked else ""
        raise PromptBoundaryError(
            why or "where the prompt ends and the response begins cannot be told: the text has no known markup"
        )
    if len(found) > 1:
        raise PromptBoundaryError("the text has two kinds of markup, which put the response in different places")
    [one] = found
    start = one.headers[-1].end()
    if thought := _CLOSED_THOUGHT.match(whole[start:]):
        start += thought.end()
    response, is_ended = strip_ending(whole[start:], ends, one.markup)
    return ParsedConversation(_messages(whole, one.headers, one.markup, ends), response, is_ended, begin + start)


def parse_query_and_prompt(query: str, prompt: str, ends: Sequence[str] = ()) -> ParsedConversation:
    """A prompt, and a query: this prompt, or as much of its end as the caller had room for, and the response to it.

    Decoders write white space around special tokens that was not there; it is not looked at.

    Raises:
        PromptBoundaryError: the query does not begin with the prompt's end, or as ``parse_prompt_and_response``.
    """
    return parse_prompt_and_response(*split_query(query, prompt, ends), has_ends=True, ends=ends)


def split_query(query: str, prompt: str, ends: Sequence[str] = ()) -> tuple[str, str]:
    """Prompt and response of ``parse_query_and_prompt``, as they stand. Raises PromptBoundaryError."""
    whole, start = query[content_start(query, ends) :], prompt[content_start(prompt, ends) :]
    if whole.startswith(start):
        response = whole[len(start) :]
    else:
        end = _end_of(start, whole)
        if end is None:
            raise PromptBoundaryError("the query does not begin with its prompt")
        response = whole[end:]
        if not start.endswith(whole[:end]):
            # the decoder's white space, not the policy's
            response = response.removeprefix(" ")
    return start, response


def _end_of(prompt: str, whole: str) -> int | None:
    """Where the longest end of ``prompt`` that ``whole`` begins with ends there, white space aside; None below a few
    words."""
    wanted = "".join(prompt.split())
    places = [n for n, character in enumerate(whole) if not character.isspace()]
    given = "".join(whole[n] for n in places)
    shared = overlap(wanted, given)
    if shared == 0 or shared < min(40, len(wanted), len(given)):
        return None
    end = places[shared - 1] + 1
    tail = prompt[len(prompt.rstrip()) :]
    return end + len(tail) if whole.startswith(tail, end) else end
