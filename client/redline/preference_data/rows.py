"""What a row of preference data may look like; pure, standard library only.

Accepted rows (told apart by their shape; the names of columns are in ``redline.preference_data.columns``):

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
    states_transcript,
    system_of,
    tools_of,
    with_conversations,
)
from redline.preference_data.history import bare, turns_of
from redline.preference_data.turns import is_transcript, messages_of, reply_text, transcript_of

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
    spans: tuple[tuple[int, int], ...] | None = None
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
    prompt, chosen, rejected, is_text = _split(columns, *sides)
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
        prompt = _split(columns, *sides)[0] if sides is not None else prompt_of(columns, has_whole_sides=False)
        if prompt is None:
            raise BadRowError(f"no 'prompt' of text or messages{_among(columns.unused())}")
        if sides is None and isinstance(prompt, list) and len(prompt) > 1 and prompt[-1]["role"] == "assistant":
            prompt = prompt[:-1]
        prompt = _checked(_with_system(prompt, system_of(columns)))
    else:
        turns = _both_as_turns(row)
        if turns is None:
            prompt = with_conversations(columns, stated, is_alone=not _has_sides(row))
            prompt = _checked(_with_system(prompt, system_of(columns)))
        else:
            prompt = _prompt_before(columns, *turns)
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
    prompt = _checked(_with_system(prompt, system_of(columns)))
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
    one, other = _sides(*sides)
    return (*sides, one, other) if isinstance(one, list) and isinstance(other, list) else None


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


def _checked(prompt: Prompt) -> Prompt:
    if not isinstance(prompt, str):
        if not prompt:
            raise BadRowError("'prompt' is an empty conversation")
        if prompt[-1]["role"] == "assistant":
            raise BadRowError("'prompt' ends with an assistant turn; the response is that turn")
    return prompt


def _with_system(prompt: Prompt, system: str | None) -> Prompt:
    """The prompt behind a system turn, which it may hold already. Raises BadRowError if it holds another."""
    if system is None or not prompt:
        return prompt
    turns = turns_of(prompt)
    if turns[0]["role"] == "system":
        if turns[0]["content"].strip() != system.strip():
            raise BadRowError("the row's system text is not the one that its conversation begins with")
        return turns
    return [{"role": "system", "content": system}, *turns]


def _split(columns: Columns, chosen: Side, rejected: Side) -> tuple[Prompt, str, str, bool]:
    """``(prompt, chosen, rejected)``, and whether the two responses stand in the row as they are."""
    one, other = _sides(chosen, rejected)
    if isinstance(one, str) or isinstance(other, str):
        assert isinstance(one, str)
        assert isinstance(other, str)
        stated = prompt_of(columns, has_whole_sides=False)
        if stated is not None:
            is_stripped = states_transcript(columns)  # as the turns of a whole transcript are
            texts = [text.strip() if is_stripped else text for text in (one, other)]
            return _checked(_with_system(stated, system_of(columns))), texts[0], texts[1], True
        texts = columns.unused_texts()
        if texts:
            raise BadRowError(f"there is no 'prompt'; the other columns with text are {shown(texts)}")
        at = _shared_beginning(one, other)
        return one[:at], one[at:], other[at:], False
    prompt = _prompt_before(columns, chosen, rejected, one, other)
    texts = [_last_reply(columns, turns, field) for turns, field in ((one, chosen.field), (other, rejected.field))]
    return prompt, texts[0], texts[1], not is_transcript(rejected.value) and _states_prompt(columns, one, other)


def _states_prompt(columns: Columns, one: list[Message], other: list[Message]) -> bool:
    return prompt_of(columns, has_whole_sides=_are_whole(one, other)) is not None


def _are_whole(one: list[Message], other: list[Message]) -> bool:
    return len(one) > 1 and len(other) > 1


def _prompt_before(columns: Columns, chosen: Side, rejected: Side, one: list[Message], other: list[Message]) -> Prompt:
    """The prompt of two sides that are turns, ``one`` and ``other``. Raises BadRowError where they disagree with it."""
    is_whole = _are_whole(one, other)
    stated = prompt_of(columns, has_whole_sides=is_whole)
    system = system_of(columns)
    if stated is None:
        if one[:-1] != other[:-1] or not is_whole:
            raise BadRowError("there is no 'prompt', and the conversations differ before their last turn")
        return _checked(_with_system(one[:-1], system))
    prompt = _checked(_with_system(stated, system))
    starts = [turns_of(stated), turns_of(prompt)]
    _check_start(one, starts, chosen.field)
    _check_start(other, starts, rejected.field)
    return prompt


def _sides(chosen: Side, rejected: Side) -> tuple[str | list[Message], str | list[Message]]:
    """Both responses as text, or both as turns; transcripts are turns."""
    values = [chosen.value, rejected.value]
    if all(map(is_transcript, values)):
        return transcript_of(chosen.value), transcript_of(rejected.value)
    if isinstance(values[0], str) != isinstance(values[1], str):
        raise BadRowError(f"'{chosen.field}' and '{rejected.field}' are of different forms")
    one, other = (
        side.value if isinstance(side.value, str) else messages_of(side.value, side.field)
        for side in (chosen, rejected)
    )
    return one, other


def _check_start(turns: list[Message], starts: list[list[Message]], field: str) -> None:
    """Raise BadRowError unless ``turns`` are a reply alone, or stand behind the prompt and nothing else."""
    before = [bare(turn) for turn in turns[:-1]]
    if before and len(turns) > 1 and before in [[bare(turn) for turn in start] for start in starts]:
        return
    if len(turns) != 1:
        reason = "" if len(turns) < 2 else ", and it does not begin with 'prompt' alone"
        raise BadRowError(f"'{field}' must be one assistant turn beyond the prompt, it has {len(turns)}{reason}")


def _last_reply(columns: Columns, turns: list[Message], field: str) -> str:
    if not turns or turns[-1]["role"] != "assistant":
        raise BadRowError(f"'{field}' must be one assistant turn beyond the prompt")
    columns.drop(f"{field}.{name}" for name in turns[-1] if name not in {"role", "content"})
    return reply_text(turns[-1], field)


def _shared_beginning(chosen: str, rejected: str) -> int:
    """How many characters of two whole texts are their prompt: what they begin with alike."""
    length = next((n for n, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), None)
    shared = chosen[: min(len(chosen), len(rejected)) if length is None else length]
    # TRL cuts at the first character that differs; that may be inside a word, so the cut goes back to the
    # white space before it, which stays with the responses. Scripts without white space are cut as TRL does.
    spaces = [n for n, character in enumerate(shared) if character.isspace()]
    at = spaces[-1] if spaces and spaces[-1] > 0 else len(shared)
    if at <= 0:
        raise BadRowError("there is no 'prompt', and the two sides do not begin alike")
    return at


def _spans(value: Any, marked: Any, text: str) -> tuple[tuple[int, int], ...] | None:
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
