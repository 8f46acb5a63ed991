"""Parses rendered conversations (texts with chat markup) into prompt and response; pure, standard library only.

Many RL frameworks send one string that was rendered with the policy's chat template. Its markup is removed here, so
that the reward model's own template can be applied. A text whose prompt boundary cannot be determined is refused,
because a wrong boundary gives wrong rewards.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from redline.text.marker_scan import overlap
from redline.text.markup_families import (
    KNOWN_ENDS,
    ChatMarkup,
    MarkupMatch,
    PromptBoundaryError,
    content_start,
    find_markups,
    messages_before_last,
    strip_ending,
)
from redline.text.unknown_markup import ends_with_unknown_turn
from redline.wire import ChatMessage, ScoreItem

__all__ = [
    "KNOWN_ENDS",
    "ChatMarkup",
    "ParsedConversation",
    "PromptBoundaryError",
    "content_start",
    "parse_conversation",
    "parse_prompt",
    "parse_prompt_and_response",
    "parse_query_and_prompt",
    "split_query",
    "strip_ending",
    "to_score_item",
]

# what a template may write into the opened turn: an empty thought, or the start of one that the response ends
_CLOSED_THOUGHT = re.compile(r"\A\s*(?:<think>\s*)?</think>\s*")
_OPENER = re.compile(r"\A\s*(?:(?:<think>\s*)?</think>\s*|<think>\s*)?\Z")
# templates whose turns have several parts, which is not supported
_UNSUPPORTED = re.compile(r"<\|START_(?:RESPONSE|THINKING)\|>|<\|start\|>\w+(?:<\|(?:channel|message)\|>|\s*\Z)")


class ParsedConversation(NamedTuple):
    """A prompt and the response to it. ``is_finished``: the policy ended the response itself.

    ``start``: index of the response in the text with both, 0 if the response was given separately.
    """

    prompt: str | list[ChatMessage]
    response: str
    is_finished: bool
    start: int = 0


def to_score_item(conversation: ParsedConversation, **more: Any) -> ScoreItem:
    """The conversation as a ScoreItem. An empty finished response is a lone end token."""
    if not conversation.response and conversation.is_finished:
        more = {"token_offsets": [(0, 0)], **more}
    return ScoreItem(
        prompt=conversation.prompt, response=conversation.response, finished=conversation.is_finished, **more
    )


def _open_assistant_turn(prompt: str) -> MarkupMatch | None:
    """The markup of a prompt that ends with an open assistant turn; None for a text without markup.

    Raises:
        PromptBoundaryError: the prompt has markup but no open assistant turn, or its template is unknown.
    """
    if _UNSUPPORTED.search(prompt):
        raise PromptBoundaryError(f"the chat template of the prompt is not supported; it ends with {prompt[-30:]!r}")
    marked = find_markups(prompt, is_words=False)
    for match in (*marked, *(words for words in find_markups(prompt, is_words=True) if words.is_dialogue)):
        is_rendered = len(match.headers) > 1 or not prompt[: match.headers[0].start()].strip()
        if match.is_open and is_rendered and _OPENER.match(prompt[match.headers[-1].end() :]):
            return match
    if any(not prompt[: match.headers[0].start()].strip() for match in marked):
        raise PromptBoundaryError("the prompt does not end with the start of an assistant turn")
    if ends_with_unknown_turn(prompt):
        raise PromptBoundaryError(f"the chat template of the prompt is not supported; it ends with {prompt[-30:]!r}")
    return None


def parse_prompt(rendered: str) -> str | list[ChatMessage]:
    """Parse a prompt, rendered or not, into messages; a text without markup is returned as text.

    Raises:
        PromptBoundaryError: it is empty, has an unknown template, or does not end with an open assistant turn.
    """
    text = rendered[content_start(rendered, ()) :]
    match = _open_assistant_turn(text)
    if match is not None:
        return messages_before_last(text, match.headers, match.markup, ())
    if not text:
        raise PromptBoundaryError("the prompt is empty")
    return text


def parse_prompt_and_response(
    prompt: str, response: str, *, has_ends: bool, ends: Sequence[str] = ()
) -> ParsedConversation:
    """Parse a prompt, rendered or not, and the response to it.

    Args:
        has_ends: whether the caller keeps end tokens in its texts. If so, an end token is removed, and a response
            without one is unfinished; otherwise nothing is removed.

    Raises:
        PromptBoundaryError: as ``parse_prompt``.
    """
    text = prompt[content_start(prompt, ends) :]
    match = _open_assistant_turn(text)
    markup = None
    if match is not None:
        markup = match.markup
        response = _response_after(match, text, response)
    response, is_ended = strip_ending(response, ends, markup) if has_ends else (response, True)
    if match is not None:
        return ParsedConversation(messages_before_last(text, match.headers, match.markup, ends), response, is_ended)
    if not text:
        raise PromptBoundaryError("the prompt is empty")
    return ParsedConversation(text, response, is_ended)


def _response_after(match: MarkupMatch, prompt: str, response: str) -> str:
    """The text of the assistant turn that ``prompt`` opens and ``response`` continues."""
    opener = prompt[match.headers[-1].end() :]
    if opener.strip() and not _CLOSED_THOUGHT.match(opener):
        return opener + response
    # a part of the header may be at the start of the response
    header = match.markup.header.match(prompt + response, match.headers[-1].start())
    assert header is not None
    return (prompt + response)[max(header.end(), len(prompt)) :]


def parse_conversation(text: str, ends: Sequence[str] = ()) -> ParsedConversation:
    """Parse a rendered conversation whose last turn is the assistant's response.

    Raises:
        PromptBoundaryError: there is no known markup, there are two kinds of it, or the last turn is not the
            assistant's.
    """
    begin = content_start(text, ends)
    conversation = text[begin:]
    if _UNSUPPORTED.search(conversation):
        raise PromptBoundaryError("the chat template of the text is not supported")
    marked = find_markups(conversation, is_words=False)
    matches = [
        match
        for match in marked or find_markups(conversation, is_words=True)
        if match.is_open and (marked or match.is_dialogue)
    ]
    if not matches:
        reason = "the last turn is not the assistant's: there is no response to score" if marked else ""
        raise PromptBoundaryError(reason or "the prompt boundary is unknown: the text has no known markup")
    if len(matches) > 1:
        raise PromptBoundaryError("the text has two kinds of markup with different prompt boundaries")
    [match] = matches
    start = match.headers[-1].end()
    if thought := _CLOSED_THOUGHT.match(conversation[start:]):
        start += thought.end()
    response, is_ended = strip_ending(conversation[start:], ends, match.markup)
    return ParsedConversation(
        messages_before_last(conversation, match.headers, match.markup, ends), response, is_ended, begin + start
    )


def parse_query_and_prompt(query: str, prompt: str, ends: Sequence[str] = ()) -> ParsedConversation:
    """Parse a prompt, and a query: the prompt (possibly cut on the left) followed by the response.

    White space is ignored in the comparison, because decoders add some around special tokens.

    Raises:
        PromptBoundaryError: the query does not begin with the end of the prompt, or as ``parse_prompt_and_response``.
    """
    return parse_prompt_and_response(*split_query(query, prompt, ends), has_ends=True, ends=ends)


def split_query(query: str, prompt: str, ends: Sequence[str] = ()) -> tuple[str, str]:
    """Prompt and response of ``parse_query_and_prompt``, not parsed further. Raises PromptBoundaryError."""
    text, prompt_text = query[content_start(query, ends) :], prompt[content_start(prompt, ends) :]
    if text.startswith(prompt_text):
        response = text[len(prompt_text) :]
    else:
        end = _overlap_end(prompt_text, text)
        if end is None:
            raise PromptBoundaryError("the query does not begin with its prompt")
        response = text[end:]
        if not prompt_text.endswith(text[:end]):
            # white space from the decoder, not from the policy
            response = response.removeprefix(" ")
    return prompt_text, response


def _overlap_end(prompt: str, text: str) -> int | None:
    """Length of the longest prefix of ``text`` that ends ``prompt``, ignoring white space; None if too short."""
    prompt_characters = "".join(prompt.split())
    positions = [n for n, character in enumerate(text) if not character.isspace()]
    query_characters = "".join(text[n] for n in positions)
    shared = overlap(prompt_characters, query_characters)
    if shared == 0 or shared < min(40, len(prompt_characters), len(query_characters)):
        return None
    end = positions[shared - 1] + 1
    tail = prompt[len(prompt.rstrip()) :]
    return end + len(tail) if text.startswith(tail, end) else end
