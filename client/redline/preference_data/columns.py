"""Which columns of a preference row hold what, decided by their names and shapes; nothing is guessed. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from redline.files.row_files import BadRowError
from redline.messages import Prompt
from redline.preference_data.history import with_conversation, with_history
from redline.preference_data.turns import is_transcript, messages_of, single_reply, transcript_of

# (chosen, rejected); the last is ms-swift's
_SIDES = (
    ("chosen", "rejected"),
    ("chosen_response", "rejected_response"),
    ("response_chosen", "response_rejected"),
    ("response", "rejected_response"),
)
_QUESTIONS = ("question", "instruction", "query")
_CONVERSATIONS = ("messages", "conversations", "conversation", "context")
_SYSTEMS = ("system", "system_prompt", "system_message")
_MEDIA = ("images", "image", "audios", "audio", "videos", "video")
# what tells the prompt of a row, and with what else
PROMPT_COLUMNS = ("prompt", *_QUESTIONS, *_CONVERSATIONS)
BESIDE_PROMPT = ("input", "history", "tools", *_SYSTEMS, *_MEDIA)
_LISTS = ("completions", "answers", "responses", "generations", "output")
_NUMBERED = re.compile(r"(response|answer|completion|output|conversation|generation|candidate)_?([abAB012])")
_SUFFIXES = ({"a", "b"}, {"0", "1"}, {"1", "2"})
# columns that may say which response is better; a number is taken for a response's only in the first ones
_VERDICT_IDS = ("better_response_id", "safer_response_id", "preferred_response_id", "winner", "better", "choice")
_VERDICTS = (*_VERDICT_IDS, "better_response", "preferred_response", "preferred", "preference", "label")
_IDENTIFIER = re.compile(r"(.*_)?(id|ids|idx|uuid|index|hash)", re.IGNORECASE)
_NAMES_SHOWN = 10


class Side(NamedTuple):
    """One response of a pair: the column it stands in, and its value there."""

    field: str
    value: Any


class Columns:
    """The columns of one row that hold something, and which of them were used."""

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
        """The value of a column, which counts as used from now on."""
        self._used.add(name)
        return self._row.get(name)

    def is_used(self, name: str) -> bool:
        """Whether a column was taken."""
        return name in self._used

    def drop(self, fields: Iterable[str]) -> None:
        """Count fields inside a column as unused."""
        self._dropped += fields

    def texts(self, *names: str) -> list[str]:
        """Those of ``names`` that hold text other than white space."""
        return [name for name in names if isinstance(value := self.look(name), str) and value.strip()]

    def unused(self) -> list[str]:
        """Columns that hold something and were not used, and fields that were dropped from others."""
        left = [name for name, value in self._row.items() if name not in self._used and value not in ("", [], {})]
        return [*left, *self._dropped]

    def unused_texts(self) -> list[str]:
        """Those that hold text or messages, identifiers left out: a prompt may be among them."""
        return [
            name
            for name in self.unused()
            if name != "spans"
            and not _IDENTIFIER.fullmatch(name)
            and (isinstance(value := self.look(name), str) or (isinstance(value, list) and _holds_text(value[0])))
        ]


def _holds_text(value: Any) -> bool:
    return isinstance(value, (str, dict))


def shown(names: list[str]) -> str:
    """Names of columns for a message, the first ten."""
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(repr(name[:40]) for name in names[:_NAMES_SHOWN]) + more


def sides_of(columns: Columns) -> tuple[Side, Side] | None:
    """The preferred response and the other one; None if no column holds either.

    Raises:
        BadRowError: one of the two is missing, or nothing says which response is preferred.
    """
    for one, other in _SIDES:
        if one in columns and other in columns:
            return Side(one, columns.take(one)), Side(other, columns.take(other))
    if "rejected_response" in columns and "messages" in columns:
        return _from_messages(columns)
    for one, other in _SIDES[:-1]:
        if one in columns or other in columns:
            raise BadRowError(f"'{other if one in columns else one}' is missing")
    return _compared(columns)


def _from_messages(columns: Columns) -> tuple[Side, Side]:
    """ms-swift's form: a whole conversation, and another reply in the place of its last turn."""
    chosen = messages_of(columns.take("messages"), "messages")
    reply = single_reply(columns.take("rejected_response"), "rejected_response")
    rejected = [*chosen[:-1], {"role": "assistant", "content": reply}]
    return Side("messages", chosen), Side("rejected_response", rejected)


def _compared(columns: Columns) -> tuple[Side, Side] | None:
    """``response_a`` and ``response_b``, and the like, in the order that another column gives them."""
    stems: dict[str, dict[str, str]] = {}
    for name in columns:
        found = _NUMBERED.fullmatch(name) if isinstance(name, str) else None
        if found is not None:
            stems.setdefault(found[1], {})[found[2].lower()] = name
    pairs = [(stem, by_suffix) for stem, by_suffix in stems.items() if set(by_suffix) in _SUFFIXES]
    if not pairs:
        for name in _LISTS:
            if isinstance(columns.look(name), list):
                raise BadRowError(f"'{name}' is a list, and which response is 'chosen' is not said")
        return None
    if len(pairs) > 1:
        raise BadRowError(f"there are several pairs of responses: {shown([n for _, p in pairs for n in p.values()])}")
    stem, by_suffix = pairs[0]
    suffixes = sorted(by_suffix)
    names = [by_suffix[suffix] for suffix in suffixes]
    verdicts = {name: _verdict(columns, name, stem, suffixes) for name in _VERDICTS if name in columns}
    if not verdicts:
        raise BadRowError(f"'chosen' is missing, and no known column says which of {shown(names)} is better")
    if len(set(verdicts.values())) > 1:
        raise BadRowError(f"{shown(list(verdicts))} disagree on which of {shown(names)} is better")
    better = next(iter(verdicts.values()))
    first, second = (Side(names[place], columns.take(names[place])) for place in (better, 1 - better))
    return first, second


def _verdict(columns: Columns, name: str, stem: str, suffixes: list[str]) -> int:
    """Which of the two is better, 0 or 1, by the column ``name``. Raises BadRowError where that would be a guess."""
    value = columns.take(name)
    is_number = type(value) is int and (name in _VERDICT_IDS or (name == "preference" and suffixes == ["1", "2"]))
    if isinstance(value, str) or is_number:
        text = str(value).strip().lower()
        for place, suffix in enumerate(suffixes):
            if text in {suffix, f"{stem}_{suffix}", f"{stem}{suffix}", f"{stem} {suffix}", f"model_{suffix}"}:
                return place
    raise BadRowError(f"'{name}' is {str(value)[:40]!r}, which does not name one of the two responses")


def prompt_of(columns: Columns, *, has_whole_sides: bool) -> Prompt | None:
    """The prompt that a row states in a column of its own; None if it states none.

    Args:
        has_whole_sides: the responses are whole conversations, so that a column of messages is no further prompt.

    Raises:
        BadRowError: it is no text and no conversation, or columns that may each be the prompt differ.
    """
    for name in _MEDIA:
        if columns.look(name) not in (None, "", [], {}):
            raise BadRowError(f"'{name}' holds something, and only text is read")
    prompt = columns.look("prompt")
    questions = columns.texts(*_QUESTIONS, "input")
    field = "prompt"
    if prompt is None or (prompt in ("", []) and questions):
        prompt = _question(columns, questions)
    else:
        columns.take("prompt")
        _check_contained(columns, questions, prompt)
    if prompt is None and not has_whole_sides:
        field = _conversation(columns)
        prompt = columns.take(field) if field else None
    if prompt is None:
        return None
    if is_transcript(prompt):
        turns = transcript_of(prompt)
        prompt = turns[:-1] if len(turns) > 1 and turns[-1] == {"role": "assistant", "content": ""} else turns
    elif not isinstance(prompt, str):
        prompt = messages_of(prompt, field)
    if not prompt:
        return "" if isinstance(prompt, str) else []
    stated = with_history(prompt, columns.look("history"))
    if isinstance(columns.look("history"), (str, list)):
        columns.take("history")
    return stated if has_whole_sides else with_conversations(columns, stated, is_alone=False)


def with_conversations(columns: Columns, prompt: Prompt, *, is_alone: bool) -> Prompt:
    """The prompt with the earlier turns that a column like ``messages`` holds beside it. Raises BadRowError.

    Args:
        is_alone: no response stands beside the prompt.
    """
    for name in _CONVERSATIONS:
        if prompt and _is_conversation(columns.look(name)) and not columns.is_used(name):
            turns = messages_of(columns.look(name), name)
            longer = with_conversation(prompt, turns, name, is_alone=is_alone)
            if longer is not prompt:
                columns.take(name)
                prompt = longer
    return prompt


def states_transcript(columns: Columns) -> bool:
    """Whether the prompt stands in the row as a transcript, whose turns have no white space around them."""
    return any(is_transcript(columns.look(name)) for name in ("prompt", *_QUESTIONS))


def _check_contained(columns: Columns, questions: list[str], prompt: Any) -> None:
    """Raise BadRowError where another column holds a question that is no part of the prompt."""
    for name in questions:
        text = columns.look(name).strip()
        if isinstance(prompt, str):
            is_part = text in prompt
        else:
            whole = json.dumps(prompt, ensure_ascii=False, default=str)
            is_part = json.dumps(text, ensure_ascii=False)[1:-1] in whole
        if not is_part:
            raise BadRowError(f"'prompt' and '{name}' both hold text, and '{name}' is no part of 'prompt'")


def _question(columns: Columns, questions: list[str]) -> Any:
    """The text of ``question``, ``instruction`` or ``query``, with Alpaca's ``input``.

    Instruction and input are joined as LLaMA-Factory joins them, by a line end.
    """
    main = [name for name in questions if name != "input"]
    if len({columns.look(name) for name in main}) > 1:
        raise BadRowError(f"{shown(main)} differ; which of them is the prompt is not said")
    if main and main[0] != "instruction" and "input" in questions:
        raise BadRowError(f"'{main[0]}' and 'input' both hold text; which of them is the prompt is not said")
    if not questions:
        return None
    texts = dict.fromkeys(columns.take(name) for name in [*main, *(["input"] if "input" in questions else [])])
    return "\n".join(texts)


def _conversation(columns: Columns) -> str:
    """The name of the one column like ``messages`` that holds a conversation, "" if there is none."""
    found = [name for name in _CONVERSATIONS if _is_conversation(columns.look(name))]
    if len(found) > 1:
        raise BadRowError(f"{shown(found)} each hold a conversation; which of them is the prompt is not said")
    return found[0] if found else ""


def _is_conversation(value: Any) -> bool:
    return (
        isinstance(value, list) and bool(value) and isinstance(value[0], dict) and bool({"role", "from"} & {*value[0]})
    )


def system_of(columns: Columns) -> str | None:
    """The text of a row's ``system`` column. Raises BadRowError if there are several that differ."""
    found = columns.texts(*_SYSTEMS)
    if len({columns.look(name) for name in found}) > 1:
        raise BadRowError(f"{shown(found)} differ")
    return next((str(columns.take(name)) for name in found), None)


def tools_of(columns: Columns) -> list[Any] | None:
    """The tools that the row offers to the model, None if there are none. Raises BadRowError."""
    value = columns.take("tools")
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise BadRowError("'tools' is text that is not JSON") from error
    if value in (None, "", [], {}) or (isinstance(value, str) and not value.strip()):
        return None
    if not isinstance(value, list):
        raise BadRowError("'tools' must be a list of tools")
    return value
