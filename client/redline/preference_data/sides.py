"""Splits the two sides of a pair (texts, turns or full conversations) into prompt and responses; pure."""

from __future__ import annotations

from redline.files.row_files import BadRowError
from redline.messages import Message, Prompt
from redline.preference_data.columns import Columns, Side, find_prompt, find_system, has_transcript_prompt, quote_names
from redline.preference_data.history import as_turns, bare
from redline.preference_data.turns import is_transcript, parse_messages, parse_transcript, reply_text


def checked_prompt(prompt: Prompt) -> Prompt:
    """``prompt``. Raises BadRowError if it is an empty conversation or ends with the response's turn."""
    if not isinstance(prompt, str):
        if not prompt:
            raise BadRowError("'prompt' is an empty conversation")
        if prompt[-1]["role"] == "assistant":
            raise BadRowError("'prompt' ends with an assistant turn; that turn is the response")
    return prompt


def with_system(prompt: Prompt, system: str | None) -> Prompt:
    """The prompt with a system turn in front. Raises BadRowError if it already begins with a different one."""
    if system is None or not prompt:
        return prompt
    turns = as_turns(prompt)
    if turns[0]["role"] == "system":
        if turns[0]["content"].strip() != system.strip():
            raise BadRowError("the row's system column differs from the system turn of its conversation")
        return turns
    return [{"role": "system", "content": system}, *turns]


def prompt_and_responses(columns: Columns, chosen: Side, rejected: Side) -> tuple[Prompt, str, str, bool]:
    """``(prompt, chosen, rejected, is_verbatim)``. Raises BadRowError.

    ``is_verbatim``: the responses are the row's own texts, so that spans into them stay valid.
    """
    won, lost = texts_or_turns(chosen, rejected)
    if isinstance(won, str) or isinstance(lost, str):
        assert isinstance(won, str)
        assert isinstance(lost, str)
        prompt_column = find_prompt(columns, has_conversation_sides=False)
        if prompt_column is not None:
            is_stripped = has_transcript_prompt(columns)  # as parsing a transcript strips its turns
            texts = [text.strip() if is_stripped else text for text in (won, lost)]
            return checked_prompt(with_system(prompt_column, find_system(columns))), texts[0], texts[1], True
        texts = columns.unused_text_columns()
        if texts:
            raise BadRowError(f"there is no 'prompt'; the other columns with text are {quote_names(texts)}")
        at = _shared_prefix(won, lost)
        return won[:at], won[at:], lost[at:], False
    prompt = prompt_before(columns, chosen, rejected, won, lost)
    texts = [_last_reply(columns, turns, field) for turns, field in ((won, chosen.field), (lost, rejected.field))]
    return prompt, texts[0], texts[1], not is_transcript(rejected.value) and _has_prompt(columns, won, lost)


def texts_or_turns(chosen: Side, rejected: Side) -> tuple[str | list[Message], str | list[Message]]:
    """Both sides as texts, or both as turns (transcripts too). Raises BadRowError if their formats differ."""
    values = [chosen.value, rejected.value]
    if all(map(is_transcript, values)):
        return parse_transcript(chosen.value), parse_transcript(rejected.value)
    if isinstance(values[0], str) != isinstance(values[1], str):
        raise BadRowError(f"'{chosen.field}' and '{rejected.field}' have different formats")
    won, lost = (
        side.value if isinstance(side.value, str) else parse_messages(side.value, side.field)
        for side in (chosen, rejected)
    )
    return won, lost


def prompt_before(columns: Columns, chosen: Side, rejected: Side, won: list[Message], lost: list[Message]) -> Prompt:
    """The prompt of two sides whose turns are ``won`` and ``lost``. Raises BadRowError if they disagree with it."""
    are_conversations = _are_conversations(won, lost)
    prompt_column = find_prompt(columns, has_conversation_sides=are_conversations)
    system = find_system(columns)
    if prompt_column is None:
        if won[:-1] != lost[:-1] or not are_conversations:
            raise BadRowError("there is no 'prompt', and the conversations differ before their last turn")
        return checked_prompt(with_system(won[:-1], system))
    prompt = checked_prompt(with_system(prompt_column, system))
    starts = [as_turns(prompt_column), as_turns(prompt)]
    _check_start(won, starts, chosen.field)
    _check_start(lost, starts, rejected.field)
    return prompt


def _has_prompt(columns: Columns, won: list[Message], lost: list[Message]) -> bool:
    return find_prompt(columns, has_conversation_sides=_are_conversations(won, lost)) is not None


def _are_conversations(won: list[Message], lost: list[Message]) -> bool:
    return len(won) > 1 and len(lost) > 1


def _check_start(turns: list[Message], starts: list[list[Message]], field: str) -> None:
    """Raise BadRowError unless ``turns`` are one reply, or the prompt followed by one reply."""
    before = [bare(turn) for turn in turns[:-1]]
    if before and len(turns) > 1 and before in [[bare(turn) for turn in start] for start in starts]:
        return
    if len(turns) != 1:
        reason = "" if len(turns) < 2 else ", and the turns before the last are not 'prompt'"
        raise BadRowError(f"'{field}' must be one assistant turn beyond the prompt, it has {len(turns)}{reason}")


def _last_reply(columns: Columns, turns: list[Message], field: str) -> str:
    if not turns or turns[-1]["role"] != "assistant":
        raise BadRowError(f"'{field}' must be one assistant turn beyond the prompt")
    columns.drop(f"{field}.{name}" for name in turns[-1] if name not in {"role", "content"})
    return reply_text(turns[-1], field)


def _shared_prefix(chosen: str, rejected: str) -> int:
    """Length of the prompt that two full texts share: their common prefix."""
    length = next((n for n, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), None)
    shared = chosen[: min(len(chosen), len(rejected)) if length is None else length]
    # TRL cuts at the first character that differs; that may be inside a word, so the cut goes back to the
    # white space before it, which stays with the responses. Scripts without white space are cut as TRL does.
    spaces = [n for n, character in enumerate(shared) if character.isspace()]
    at = spaces[-1] if spaces and spaces[-1] > 0 else len(shared)
    if at <= 0:
        raise BadRowError("there is no 'prompt', and the two sides do not begin alike")
    return at
