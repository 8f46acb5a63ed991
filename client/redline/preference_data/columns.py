"""Finds the prompt, the responses and the preferred side among a row's columns, by name and shape. Pure.

A row whose columns allow more than one reading is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from redline.files.row_files import BadRowError
from redline.messages import Prompt
from redline.preference_data.history import with_conversation, with_history
from redline.preference_data.turns import is_transcript, parse_messages, parse_transcript, single_reply

# (chosen, rejected); the last is ms-swift's
_SIDE_COLUMNS = (
    ("chosen", "rejected"),
    ("chosen_response", "rejected_response"),
    ("response_chosen", "response_rejected"),
    ("response", "rejected_response"),
)
_QUESTION_COLUMNS = ("question", "instruction", "query")
_CONVERSATION_COLUMNS = ("messages", "conversations", "conversation", "context")
_SYSTEM_COLUMNS = ("system", "system_prompt", "system_message")
_MEDIA_COLUMNS = ("images", "image", "audios", "audio", "videos", "video")
# columns that may hold the prompt, and columns that belong to it
PROMPT_COLUMNS = ("prompt", *_QUESTION_COLUMNS, *_CONVERSATION_COLUMNS)
PROMPT_CONTEXT_COLUMNS = ("input", "history", "tools", *_SYSTEM_COLUMNS, *_MEDIA_COLUMNS)
_LIST_COLUMNS = ("completions", "answers", "responses", "generations", "output")
_NUMBERED = re.compile(r"(response|answer|completion|output|conversation|generation|candidate)_?([abAB012])")
_SUFFIXES = ({"a", "b"}, {"0", "1"}, {"1", "2"})
# columns that may name the better response; a number is accepted only in the first group
_PREFERENCE_ID_COLUMNS = (
    "better_response_id",
    "safer_response_id",
    "preferred_response_id",
    "winner",
    "better",
    "choice",
)
_PREFERENCE_COLUMNS = (
    *_PREFERENCE_ID_COLUMNS,
    "better_response",
    "preferred_response",
    "preferred",
    "preference",
    "label",
)
_IDENTIFIER = re.compile(r"(.*_)?(id|ids|idx|uuid|index|hash)", re.IGNORECASE)
_MAX_NAMES = 10


class Side(NamedTuple):
    """One response of a pair: the name of its column, and the value."""

    field: str
    value: Any


class Columns:
    """The columns of one row that have a value, and which of them were used."""

    def __init__(self, row: dict[str, Any]) -> None:
        self._row = {name: value for name, value in row.items() if value is not None}
        self._used: set[str] = set()
        self._dropped: list[str] = []

    def __contains__(self, name: str) -> bool:
        return name in self._row

    def __iter__(self) -> Iterator[str]:
        return iter(self._row)

    def look(self, name: str) -> Any:
        """The value of a column, None if there is none."""
        return self._row.get(name)

    def take(self, name: str) -> Any:
        """The value of a column, which is marked as used."""
        self._used.add(name)
        return self._row.get(name)

    def is_used(self, name: str) -> bool:
        """Whether a column was marked as used."""
        return name in self._used

    def drop(self, fields: Iterable[str]) -> None:
        """Report fields inside a column as unused."""
        self._dropped += fields

    def texts(self, *names: str) -> list[str]:
        """The columns among ``names`` with text other than white space."""
        return [name for name in names if isinstance(value := self.look(name), str) and value.strip()]

    def unused(self) -> list[str]:
        """Columns with a value that were not used, and dropped fields of used columns."""
        unused = [name for name, value in self._row.items() if name not in self._used and value not in ("", [], {})]
        return [*unused, *self._dropped]

    def unused_text_columns(self) -> list[str]:
        """Unused columns with text or messages, without identifiers: one of them may be the prompt."""
        return [
            name
            for name in self.unused()
            if name != "spans"
            and not _IDENTIFIER.fullmatch(name)
            and (isinstance(value := self.look(name), str) or (isinstance(value, list) and _holds_text(value[0])))
        ]


def _holds_text(value: Any) -> bool:
    return isinstance(value, (str, dict))


def quote_names(names: list[str]) -> str:
    """The first ten column names, quoted, for an error message."""
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(repr(name[:40]) for name in names[:_MAX_NAMES]) + more


def find_sides(columns: Columns) -> tuple[Side, Side] | None:
    """The preferred and the rejected response; None if there is no column with either.

    Raises:
        BadRowError: one of the two is missing, or no column says which response is preferred.
    """
    for first, second in _SIDE_COLUMNS:
        if first in columns and second in columns:
            return Side(first, columns.take(first)), Side(second, columns.take(second))
    if "rejected_response" in columns and "messages" in columns:
        return _ms_swift_sides(columns)
    for first, second in _SIDE_COLUMNS[:-1]:
        if first in columns or second in columns:
            raise BadRowError(f"'{second if first in columns else first}' is missing")
    return _numbered_sides(columns)


def _ms_swift_sides(columns: Columns) -> tuple[Side, Side]:
    """ms-swift's format: a conversation that ends with the chosen reply, and a rejected reply."""
    chosen = parse_messages(columns.take("messages"), "messages")
    reply = single_reply(columns.take("rejected_response"), "rejected_response")
    rejected = [*chosen[:-1], {"role": "assistant", "content": reply}]
    return Side("messages", chosen), Side("rejected_response", rejected)


def _numbered_sides(columns: Columns) -> tuple[Side, Side] | None:
    """Numbered or lettered responses (``response_a``, ``response_b``), the preferred one first."""
    by_stem: dict[str, dict[str, str]] = {}
    for name in columns:
        match = _NUMBERED.fullmatch(name) if isinstance(name, str) else None
        if match is not None:
            by_stem.setdefault(match[1], {})[match[2].lower()] = name
    pairs = [(stem, by_suffix) for stem, by_suffix in by_stem.items() if set(by_suffix) in _SUFFIXES]
    if not pairs:
        for name in _LIST_COLUMNS:
            if isinstance(columns.look(name), list):
                raise BadRowError(f"'{name}' is a list of responses, and no column says which of them is 'chosen'")
        return None
    if len(pairs) > 1:
        raise BadRowError(
            f"there are several pairs of responses: {quote_names([n for _, p in pairs for n in p.values()])}"
        )
    stem, by_suffix = pairs[0]
    suffixes = sorted(by_suffix)
    names = [by_suffix[suffix] for suffix in suffixes]
    preferred = {
        name: _preferred_index(columns, name, stem, suffixes) for name in _PREFERENCE_COLUMNS if name in columns
    }
    if not preferred:
        raise BadRowError(f"'chosen' is missing, and no known column says which of {quote_names(names)} is better")
    if len(set(preferred.values())) > 1:
        raise BadRowError(f"{quote_names(list(preferred))} disagree on which of {quote_names(names)} is better")
    better = next(iter(preferred.values()))
    first, second = (Side(names[index], columns.take(names[index])) for index in (better, 1 - better))
    return first, second


def _preferred_index(columns: Columns, name: str, stem: str, suffixes: list[str]) -> int:
    """Index (0 or 1) of the better response, by the column ``name``. Raises BadRowError if that would be a guess."""
    value = columns.take(name)
    is_number = type(value) is int and (
        name in _PREFERENCE_ID_COLUMNS or (name == "preference" and suffixes == ["1", "2"])
    )
    if isinstance(value, str) or is_number:
        text = str(value).strip().lower()
        for index, suffix in enumerate(suffixes):
            if text in {suffix, f"{stem}_{suffix}", f"{stem}{suffix}", f"{stem} {suffix}", f"model_{suffix}"}:
                return index
    raise BadRowError(f"'{name}' is {str(value)[:40]!r}, which does not name one of the two responses")


def find_prompt(columns: Columns, *, has_conversation_sides: bool) -> Prompt | None:
    """The prompt from a row's prompt columns; None if it has none.

    Args:
        has_whole_sides: the responses are whole conversations, so that a column of messages is no further prompt.

    Raises:
        BadRowError: it is neither text nor a conversation, or two columns that may be the prompt differ.
    """
    for name in _MEDIA_COLUMNS:
        if columns.look(name) not in (None, "", [], {}):
            raise BadRowError(f"'{name}' is not empty, but only text is supported")
    prompt = columns.look("prompt")
    questions = columns.texts(*_QUESTION_COLUMNS, "input")
    field = "prompt"
    if prompt is None or (prompt in ("", []) and questions):
        prompt = _question(columns, questions)
    else:
        columns.take("prompt")
        _check_contained(columns, questions, prompt)
    if prompt is None and not has_conversation_sides:
        field = _conversation(columns)
        prompt = columns.take(field) if field else None
    if prompt is None:
        return None
    if is_transcript(prompt):
        turns = parse_transcript(prompt)
        prompt = turns[:-1] if len(turns) > 1 and turns[-1] == {"role": "assistant", "content": ""} else turns
    elif not isinstance(prompt, str):
        prompt = parse_messages(prompt, field)
    if not prompt:
        return "" if isinstance(prompt, str) else []
    stated = with_history(prompt, columns.look("history"))
    if isinstance(columns.look("history"), (str, list)):
        columns.take("history")
    return stated if has_conversation_sides else with_earlier_turns(columns, stated, has_no_response=False)


def with_earlier_turns(columns: Columns, prompt: Prompt, *, has_no_response: bool) -> Prompt:
    """The prompt with earlier turns from a conversation column such as ``messages``. Raises BadRowError.

    Args:
        is_alone: no response stands beside the prompt.
    """
    for name in _CONVERSATION_COLUMNS:
        if prompt and _is_conversation(columns.look(name)) and not columns.is_used(name):
            turns = parse_messages(columns.look(name), name)
            longer = with_conversation(prompt, turns, name, has_no_response=has_no_response)
            if longer is not prompt:
                columns.take(name)
                prompt = longer
    return prompt


def has_transcript_prompt(columns: Columns) -> bool:
    """Whether the row's prompt is an HH-RLHF transcript; parsing one strips the white space around its turns."""
    return any(is_transcript(columns.look(name)) for name in ("prompt", *_QUESTION_COLUMNS))


def _check_contained(columns: Columns, questions: list[str], prompt: Any) -> None:
    """Raise BadRowError if a question column has text that is not part of the prompt."""
    for name in questions:
        text = columns.look(name).strip()
        if isinstance(prompt, str):
            is_part = text in prompt
        else:
            prompt_json = json.dumps(prompt, ensure_ascii=False, default=str)
            is_part = json.dumps(text, ensure_ascii=False)[1:-1] in prompt_json
        if not is_part:
            raise BadRowError(f"'prompt' and '{name}' both have text, and 'prompt' does not contain '{name}'")


def _question(columns: Columns, questions: list[str]) -> Any:
    """The text of ``question``, ``instruction`` or ``query``, with Alpaca's ``input``.

    Instruction and input are joined as LLaMA-Factory joins them, by a line end.
    """
    main = [name for name in questions if name != "input"]
    if len({columns.look(name) for name in main}) > 1:
        raise BadRowError(f"{quote_names(main)} differ; keep the one that is the prompt")
    if main and main[0] != "instruction" and "input" in questions:
        raise BadRowError(f"'{main[0]}' and 'input' both have text; keep the one that is the prompt")
    if not questions:
        return None
    texts = dict.fromkeys(columns.take(name) for name in [*main, *(["input"] if "input" in questions else [])])
    return "\n".join(texts)


def _conversation(columns: Columns) -> str:
    """The name of the conversation column that has a value; "" if there is none."""
    names = [name for name in _CONVERSATION_COLUMNS if _is_conversation(columns.look(name))]
    if len(names) > 1:
        raise BadRowError(f"{quote_names(names)} each have a conversation; keep the one that is the prompt")
    return names[0] if names else ""


def _is_conversation(value: Any) -> bool:
    return (
        isinstance(value, list) and bool(value) and isinstance(value[0], dict) and bool({"role", "from"} & {*value[0]})
    )


def find_system(columns: Columns) -> str | None:
    """The text of a row's ``system`` column. Raises BadRowError if there are several that differ."""
    names = columns.texts(*_SYSTEM_COLUMNS)
    if len({columns.look(name) for name in names}) > 1:
        raise BadRowError(f"{quote_names(names)} differ")
    return next((str(columns.take(name)) for name in names), None)


def find_tools(columns: Columns) -> list[Any] | None:
    """The tool definitions of a row; None if it has none. Raises BadRowError."""
    value = columns.take("tools")
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise BadRowError("'tools' is text, but not valid JSON") from error
    if value in (None, "", [], {}) or (isinstance(value, str) and not value.strip()):
        return None
    if not isinstance(value, list):
        raise BadRowError("'tools' must be a list of tools")
    return value
