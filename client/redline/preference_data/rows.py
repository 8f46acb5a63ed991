"""What a row of preference data may look like; pure, standard library only.

Accepted rows (distinguished by their shape; the names of columns are in ``redline.preference_data.columns``):

- ``{"prompt": text or messages, "chosen": text, "rejected": text}``, and ``"spans"``: ``[{"start", "end"}, ...]``,
  characters of ``rejected`` that are marked as wrong;
- TRL's preference format, explicit prompt: the same with ``chosen``/``rejected`` as messages, one assistant turn or
  whole conversations that begin with the prompt;
- TRL's implicit prompt: no ``prompt``; ``chosen`` and ``rejected`` are whole texts or whole conversations;
- HH-RLHF transcripts: texts with ``\\n\\nHuman:`` and ``\\n\\nAssistant:`` turns;
- the prompt in ``question``, ``query``, ``instruction`` (with ``input``) or ``messages``, with a ``system`` column or
  without; earlier turns of it in ``history`` or ``messages``, where it is certain that they are;
- two responses by number or letter (``response_a``, ``response_0``) and a column that names the better one.

A row whose prompt or preferred response would be a guess is refused, as are fields that carry content which a pair
cannot hold. Other columns are counted as ignored.
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
    prompt_of,
    shown,
    sides_of,
    system_of,
    tools_of,
    with_conversations,
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

__all__ = ["BadRowError", "Message", "Pair", "Prompt", "parse_asked", "parse_prompt", "parse_row"]

Ignore = Callable[[Iterable[str]], None]


@dataclass(frozen=True)
class Pair:
    """One comparison; ``where`` names file and line, or whatever else the pair came from.

    ``spans``: what humans marked as wrong, in characters into ``rejected``, end exclusive; None where nobody looked.
    ``tools``: what the model may call, for its chat template; None where the row has none.
    """

    prompt: Prompt
    chosen: str
    rejected: str
    where: str
    spans: tuple[Span, ...] | None = None
    tools: list[Any] | None = None

    @property
    def prompt_key(self) -> str:
        """What makes two prompts the same prompt."""
        key = self.prompt if self.tools is None else [self.prompt, self.tools]
        return json.dumps(key, sort_keys=True, ensure_ascii=False)


def parse_row(row: Any, where: str, *, teaches: bool = True, ignore: Ignore | None = None) -> Pair:
    """One row of any accepted form. Raises BadRowError.

    Args:
        teaches: equal sides and empty replies are refused.
        ignore: called with the columns of the row that are not used.
    """
    columns = _columns(row)
    sides = sides_of(columns)
    if sides is None:
        raise BadRowError(f"'chosen' is missing{_among(columns.unused())}")
    prompt, chosen, rejected, is_text = prompt_and_responses(columns, *sides)
    # a text that lends its beginning to an implicit prompt is no longer the one that was marked
    has_spans = is_text and "rejected" in sides[1].field and isinstance(columns.look("spans"), list)
    spans = _spans(columns.look("spans"), sides[1].value, rejected) if has_spans else None
    if spans is not None:
        columns.take("spans")
    tools = tools_of(columns)
    _check_unicode([prompt, chosen, rejected, tools])
    if teaches:
        for side, text in zip(sides, (chosen, rejected), strict=True):
            if not text.strip():
                raise BadRowError(f"'{side.field}' is empty")
        if chosen == rejected:
            raise BadRowError(f"'{sides[0].field}' and '{sides[1].field}' are the same")
    if ignore is not None:
        ignore(columns.unused())
    return Pair(prompt, chosen, rejected, where, spans, tools)


def parse_prompt(row: Any, *, ignore: Ignore | None = None) -> Prompt:
    """The prompt of a row that has one, or of a pair in any accepted form; of ``messages``, what precedes the last
    assistant turn. Raises BadRowError, also where ``parse_row`` finds the prompt in conflict with the pair's sides.
    """
    columns = _columns(row)
    stated = prompt_of(columns, has_whole_sides=True)
    if stated is None:
        sides = sides_of(columns)
        prompt = (
            prompt_and_responses(columns, *sides)[0] if sides is not None else prompt_of(columns, has_whole_sides=False)
        )
        if prompt is None:
            raise BadRowError(f"no 'prompt' of text or messages{_among(columns.unused())}")
        if sides is None and isinstance(prompt, list) and len(prompt) > 1 and prompt[-1]["role"] == "assistant":
            prompt = prompt[:-1]
        prompt = checked_prompt(with_system(prompt, system_of(columns)))
    else:
        turns = _both_as_turns(row)
        if turns is None:
            prompt = with_conversations(columns, stated, is_alone=not _has_sides(row))
            prompt = checked_prompt(with_system(prompt, system_of(columns)))
        else:
            prompt = prompt_before(columns, *turns)
    if tools_of(columns) is not None:
        raise BadRowError("'tools' cannot be given to a policy")
    _check_unicode(prompt)
    if ignore is not None:
        ignore(columns.unused())
    return prompt


def parse_asked(
    row: Any, response: str | None, *, known: Iterable[str] = (), ignore: Ignore | None = None
) -> tuple[Prompt, list[Any] | None]:
    """``(prompt, tools)`` of a row that holds one response, read as those of a pair. Raises BadRowError.

    Args:
        response: the row's own; ``messages`` may end with it.
        known: columns that the caller uses.
        ignore: called with the columns of the row that are not used.
    """
    columns = _columns(row)
    for name in known:
        columns.take(name)
    prompt = prompt_of(columns, has_whole_sides=False)
    if prompt is None:
        raise BadRowError(f"no 'prompt' of text or messages{_among(columns.unused())}")
    if "prompt" not in columns and isinstance(prompt, list) and len(prompt) > 1:
        last = prompt[-1]
        if last["role"] == "assistant" and response is not None and last["content"] == response:
            prompt = prompt[:-1]
    prompt = checked_prompt(with_system(prompt, system_of(columns)))
    tools = tools_of(columns)
    _check_unicode([prompt, tools])
    if ignore is not None:
        ignore(columns.unused())
    return prompt, tools


def _has_sides(row: Any) -> bool:
    try:
        return sides_of(_columns(row)) is not None
    except BadRowError:
        return True


def _both_as_turns(row: Any) -> tuple[Side, Side, list[Message], list[Message]] | None:
    """The sides of a pair that are conversations or transcripts, and their turns; None for any other row."""
    try:
        sides = sides_of(_columns(row))
    except BadRowError:  # the row is no pair, but has a prompt
        return None
    if sides is None or not all(side.value and (is_transcript(side.value) or _is_turns(side.value)) for side in sides):
        return None
    won, lost = texts_or_turns(*sides)
    return (*sides, won, lost) if isinstance(won, list) and isinstance(lost, list) else None


def _is_turns(value: Any) -> bool:
    return isinstance(value, (list, dict))


def _columns(row: Any) -> Columns:
    if not isinstance(row, dict):
        raise BadRowError(f"a row must be an object, this is a {type(row).__name__}")
    return Columns(row)


def _among(names: list[str]) -> str:
    return f"; the columns are {shown(names)}" if names else ""


def _check_unicode(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise BadRowError("is not valid Unicode: it holds half a surrogate pair") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise BadRowError(f"holds what JSON cannot: {error}") from error


def _spans(value: Any, marked: Any, text: str) -> tuple[Span, ...] | None:
    """Error spans in ``text``, which is ``marked`` (if that is text) without the white space around it, or all of it.

    None where there are none or the field is another thing. Raises BadRowError for one in disorder.
    """
    whole = [isinstance(span, dict) and "start" in span and "end" in span for span in value]
    if not all(whole):
        if any(whole):
            raise BadRowError("'spans' holds one without 'start' or 'end' among others that have both")
        return None
    spans = tuple((span["start"], span["end"]) for span in value)
    whole_text = marked if isinstance(marked, str) else text
    for start, end in spans:
        if type(start) is not int or type(end) is not int or not 0 <= start <= end <= len(whole_text):
            raise BadRowError(
                f"a span from {start!r} to {end!r} does not lie in 'rejected' ({len(whole_text)} characters)"
            )
    before = 0 if whole_text == text else len(whole_text) - len(whole_text.lstrip())
    return tuple((_within(start - before, text), _within(end - before, text)) for start, end in spans)


def _within(place: int, text: str) -> int:
    return min(max(place, 0), len(text))
