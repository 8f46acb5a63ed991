"""A conversation that a caller has already rendered -> prompt and response; pure, standard library only.

RL loops that know one string send their policy's chat template along. It is the policy's, not the reward model's, so it
is taken off here and the bundle's own is put on. A text in which the two cannot be distinguished is refused: a prompt
boundary in the wrong place would give wrong rewards.
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
    markups_in,
    messages_before_last,
    strip_ending,
)
from redline.text.unknown_markup import opens_unknown_turn
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

# what a template may write into the turn that it opens: an empty thought, or the begin of one that the response ends
_CLOSED_THOUGHT = re.compile(r"\A\s*(?:<think>\s*)?</think>\s*")
_OPENER = re.compile(r"\A\s*(?:(?:<think>\s*)?</think>\s*|<think>\s*)?\Z")
# templates whose turns have parts of their own, which are not distinguished here
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


def _opened(prompt: str) -> MarkupMatch | None:
    """The markup of a prompt that leaves the turn to the assistant; None for a text without any.

    Raises:
        PromptBoundaryError: it has markup and does not, or its template is unknown.
    """
    if _OTHER.search(prompt):
        raise PromptBoundaryError(f"the prompt's chat template is unknown here; it ends with {prompt[-30:]!r}")
    marked = markups_in(prompt, is_words=False)
    for one in (*marked, *(words for words in markups_in(prompt, is_words=True) if words.is_dialogue)):
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
        return messages_before_last(text, found.headers, found.markup, ())
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
        return ParsedConversation(messages_before_last(text, found.headers, found.markup, ends), response, is_ended)
    if not text:
        raise PromptBoundaryError("the prompt is empty")
    return ParsedConversation(text, response, is_ended)


def _behind(found: MarkupMatch, prompt: str, response: str) -> str:
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
    marked = markups_in(whole, is_words=False)
    found = [one for one in marked or markups_in(whole, is_words=True) if one.is_open and (marked or one.is_dialogue)]
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
    return ParsedConversation(
        messages_before_last(whole, one.headers, one.markup, ends), response, is_ended, begin + start
    )


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
