"""Parses rows of preference data in every accepted format; pure, standard library only.

Accepted rows (recognised by their shape; the column names are in ``redline.preference_data.columns``):

- ``{"prompt": text or messages, "chosen": text, "rejected": text}``, and ``"spans"``: ``[{"start", "end"}, ...]``,
  characters of ``rejected`` that are marked as wrong;
- TRL's preference format, explicit prompt: the same with ``chosen``/``rejected`` as messages, one assistant turn or
  whole conversations that begin with the prompt;
- TRL's implicit prompt: no ``prompt``; ``chosen`` and ``rejected`` are whole texts or whole conversations;
- HH-RLHF transcripts: texts with ``\\n\\nHuman:`` and ``\\n\\nAssistant:`` turns;
- the prompt in ``question``, ``query``, ``instruction`` (with ``input``) or ``messages``, with a ``system`` column or
  without; earlier turns in ``history`` or ``messages``, if they certainly belong to this prompt;
- two responses by number or letter (``response_a``, ``response_0``) and a column that names the better one.

A row is refused if its prompt or its preferred response would be a guess, or if a field has content that a pair cannot
hold. Other columns are counted as ignored.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from redline.files.row_files import BadRowError
from redline.messages import Message, Prompt
from redline.preference_data.columns import (
    Columns,
    Side,
    find_prompt,
    find_sides,
    find_system,
    find_tools,
    quote_names,
    with_earlier_turns,
)
from redline.preference_data.sides import (
    checked_prompt,
    prompt_and_responses,
    prompt_before,
    texts_or_turns,
    with_system,
)
from redline.preference_data.turns import is_transcript
from redline.spans import Span

__all__ = ["BadRowError", "Message", "Pair", "Prompt", "parse_prompt", "parse_prompt_and_tools", "parse_row"]

Ignore = Callable[[Iterable[str]], None]


@dataclass(frozen=True)
class Pair:
    """One comparison; ``where`` is the file and line, or the row of the data set, that it came from.

    ``spans``: what humans marked as wrong, in characters into ``rejected``, end exclusive; None if the row was not
    annotated. ``tools``: what the model may call, for its chat template; None if the row has none.
    """

    prompt: Prompt
    chosen: str
    rejected: str
    where: str
    spans: tuple[Span, ...] | None = None
    tools: list[Any] | None = None

    @property
    def prompt_key(self) -> str:
        """Equal for two pairs with the same prompt and tools."""
        key = self.prompt if self.tools is None else [self.prompt, self.tools]
        return json.dumps(key, sort_keys=True, ensure_ascii=False)


def parse_row(row: Any, location: str, *, teaches: bool = True, ignore: Ignore | None = None) -> Pair:
    """Parse one row in any accepted format. Raises BadRowError.

    Args:
        teaches: for training: refuse pairs with equal sides or an empty reply.
        ignore: called with the columns of the row that are not used.
    """
    columns = _columns(row)
    sides = find_sides(columns)
    if sides is None:
        raise BadRowError(f"'chosen' is missing{_list_columns(columns.unused())}")
    prompt, chosen, rejected, is_text = prompt_and_responses(columns, *sides)
    # an implicit prompt is cut off the text, so that spans into the whole text no longer fit
    has_spans = is_text and "rejected" in sides[1].field and isinstance(columns.look("spans"), list)
    spans = _spans(columns.look("spans"), sides[1].value, rejected) if has_spans else None
    if spans is not None:
        columns.take("spans")
    tools = find_tools(columns)
    _check_unicode([prompt, chosen, rejected, tools])
    if teaches:
        for side, text in zip(sides, (chosen, rejected), strict=True):
            if not text.strip():
                raise BadRowError(f"'{side.field}' is empty")
        if chosen == rejected:
            raise BadRowError(f"'{sides[0].field}' and '{sides[1].field}' are the same")
    if ignore is not None:
        ignore(columns.unused())
    return Pair(prompt, chosen, rejected, location, spans, tools)


def parse_prompt(row: Any, *, ignore: Ignore | None = None) -> Prompt:
    """The prompt of a row with a prompt column, or of a pair in any accepted format.

    Of ``messages`` it is what precedes the last assistant turn. Raises BadRowError, also if ``parse_row`` would refuse
    the row because its prompt contradicts its responses.
    """
    columns = _columns(row)
    stated = find_prompt(columns, has_conversation_sides=True)
    if stated is None:
        sides = find_sides(columns)
        prompt = (
            prompt_and_responses(columns, *sides)[0]
            if sides is not None
            else find_prompt(columns, has_conversation_sides=False)
        )
        if prompt is None:
            raise BadRowError(f"no 'prompt' of text or messages{_list_columns(columns.unused())}")
        if sides is None and isinstance(prompt, list) and len(prompt) > 1 and prompt[-1]["role"] == "assistant":
            prompt = prompt[:-1]
        prompt = checked_prompt(with_system(prompt, find_system(columns)))
    else:
        turns = _conversation_sides(row)
        if turns is None:
            prompt = with_earlier_turns(columns, stated, has_no_response=not _has_sides(row))
            prompt = checked_prompt(with_system(prompt, find_system(columns)))
        else:
            prompt = prompt_before(columns, *turns)
    if find_tools(columns) is not None:
        raise BadRowError("'tools' are not supported in prompts for a policy")
    _check_unicode(prompt)
    if ignore is not None:
        ignore(columns.unused())
    return prompt


def parse_prompt_and_tools(
    row: Any, response: str | None, *, known: Iterable[str] = (), ignore: Ignore | None = None
) -> tuple[Prompt, list[Any] | None]:
    """``(prompt, tools)`` of a row with one response, parsed as those of a pair are. Raises BadRowError.

    Args:
        response: the row's response; ``messages`` may end with it.
        known: columns that the caller uses.
        ignore: called with the columns of the row that are not used.
    """
    columns = _columns(row)
    for name in known:
        columns.take(name)
    prompt = find_prompt(columns, has_conversation_sides=False)
    if prompt is None:
        raise BadRowError(f"no 'prompt' of text or messages{_list_columns(columns.unused())}")
    if "prompt" not in columns and isinstance(prompt, list) and len(prompt) > 1:
        last = prompt[-1]
        if last["role"] == "assistant" and response is not None and last["content"] == response:
            prompt = prompt[:-1]
    prompt = checked_prompt(with_system(prompt, find_system(columns)))
    tools = find_tools(columns)
    _check_unicode([prompt, tools])
    if ignore is not None:
        ignore(columns.unused())
    return prompt, tools


def _has_sides(row: Any) -> bool:
    try:
        return find_sides(_columns(row)) is not None
    except BadRowError:
        return True


def _conversation_sides(row: Any) -> tuple[Side, Side, list[Message], list[Message]] | None:
    """The two sides of a pair and their turns, if both are conversations or transcripts; else None."""
    try:
        sides = find_sides(_columns(row))
    except BadRowError:  # the row is not a pair, but it has a prompt
        return None
    if sides is None or not all(side.value and (is_transcript(side.value) or _is_turns(side.value)) for side in sides):
        return None
    won, lost = texts_or_turns(*sides)
    return (*sides, won, lost) if isinstance(won, list) and isinstance(lost, list) else None


def _is_turns(value: Any) -> bool:
    return isinstance(value, (list, dict))


def _columns(row: Any) -> Columns:
    if not isinstance(row, dict):
        raise BadRowError(f"a row must be an object, not {type(row).__name__}")
    return Columns(row)


def _list_columns(names: list[str]) -> str:
    return f"; the columns are {quote_names(names)}" if names else ""


def _check_unicode(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise BadRowError("is not valid Unicode: it holds half a surrogate pair") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise BadRowError(f"holds a value that is not JSON: {error}") from error


def _spans(value: Any, marked: Any, text: str) -> tuple[Span, ...] | None:
    """Error spans as offsets into ``text``: ``marked`` (if that is text), possibly without the white space around it.

    None if there are none, or if the field holds something else. Raises BadRowError for an invalid span.
    """
    is_span = [isinstance(span, dict) and "start" in span and "end" in span for span in value]
    if not all(is_span):
        if any(is_span):
            raise BadRowError("some entries of 'spans' have no 'start' or 'end'")
        return None
    spans = tuple((span["start"], span["end"]) for span in value)
    marked_text = marked if isinstance(marked, str) else text
    for start, end in spans:
        if type(start) is not int or type(end) is not int or not 0 <= start <= end <= len(marked_text):
            raise BadRowError(
                f"a span from {start!r} to {end!r} does not lie in 'rejected' ({len(marked_text)} characters)"
            )
    removed = 0 if marked_text == text else len(marked_text) - len(marked_text.lstrip())
    return tuple((_clamp(start - removed, text), _clamp(end - removed, text)) for start, end in spans)


def _clamp(position: int, text: str) -> int:
    return min(max(position, 0), len(text))
