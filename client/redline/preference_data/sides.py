"""The prompt and the two responses of a pair, from its sides: texts, turns or whole conversations; pure."""

from __future__ import annotations

from redline.files.row_files import BadRowError
from redline.messages import Message, Prompt
from redline.preference_data.columns import Columns, Side, prompt_of, shown, states_transcript, system_of
from redline.preference_data.history import bare, turns_of
from redline.preference_data.turns import is_transcript, messages_of, reply_text, transcript_of


def checked_prompt(prompt: Prompt) -> Prompt:
    """``prompt``. Raises BadRowError if it is an empty conversation or ends with the response's turn."""
    if not isinstance(prompt, str):
        if not prompt:
            raise BadRowError("'prompt' is an empty conversation")
        if prompt[-1]["role"] == "assistant":
            raise BadRowError("'prompt' ends with an assistant turn; the response is that turn")
    return prompt


def with_system(prompt: Prompt, system: str | None) -> Prompt:
    """The prompt after a system turn, which it may hold already. Raises BadRowError if it holds another."""
    if system is None or not prompt:
        return prompt
    turns = turns_of(prompt)
    if turns[0]["role"] == "system":
        if turns[0]["content"].strip() != system.strip():
            raise BadRowError("the row's system text is not the one that its conversation begins with")
        return turns
    return [{"role": "system", "content": system}, *turns]


def prompt_and_responses(columns: Columns, chosen: Side, rejected: Side) -> tuple[Prompt, str, str, bool]:
    """``(prompt, chosen, rejected)``, and whether the two responses are in the row as they are. Raises BadRowError."""
    won, lost = texts_or_turns(chosen, rejected)
    if isinstance(won, str) or isinstance(lost, str):
        assert isinstance(won, str)
        assert isinstance(lost, str)
        stated = prompt_of(columns, has_whole_sides=False)
        if stated is not None:
            is_stripped = states_transcript(columns)  # as the turns of a whole transcript are
            texts = [text.strip() if is_stripped else text for text in (won, lost)]
            return checked_prompt(with_system(stated, system_of(columns))), texts[0], texts[1], True
        texts = columns.unused_texts()
        if texts:
            raise BadRowError(f"there is no 'prompt'; the other columns with text are {shown(texts)}")
        at = _shared_prefix(won, lost)
        return won[:at], won[at:], lost[at:], False
    prompt = prompt_before(columns, chosen, rejected, won, lost)
    texts = [_last_reply(columns, turns, field) for turns, field in ((won, chosen.field), (lost, rejected.field))]
    return prompt, texts[0], texts[1], not is_transcript(rejected.value) and _states_prompt(columns, won, lost)


def texts_or_turns(chosen: Side, rejected: Side) -> tuple[str | list[Message], str | list[Message]]:
    """Both responses as text, or both as turns; transcripts are turns. Raises BadRowError if their forms differ."""
    values = [chosen.value, rejected.value]
    if all(map(is_transcript, values)):
        return transcript_of(chosen.value), transcript_of(rejected.value)
    if isinstance(values[0], str) != isinstance(values[1], str):
        raise BadRowError(f"'{chosen.field}' and '{rejected.field}' are of different forms")
    won, lost = (
        side.value if isinstance(side.value, str) else messages_of(side.value, side.field)
        for side in (chosen, rejected)
    )
    return won, lost


def prompt_before(columns: Columns, chosen: Side, rejected: Side, won: list[Message], lost: list[Message]) -> Prompt:
    """The prompt of two sides whose turns are ``won`` and ``lost``. Raises BadRowError if they disagree with it."""
    is_whole = _are_whole(won, lost)
    stated = prompt_of(columns, has_whole_sides=is_whole)
    system = system_of(columns)
    if stated is None:
        if won[:-1] != lost[:-1] or not is_whole:
            raise BadRowError("there is no 'prompt', and the conversations differ before their last turn")
        return checked_prompt(with_system(won[:-1], system))
    prompt = checked_prompt(with_system(stated, system))
    starts = [turns_of(stated), turns_of(prompt)]
    _check_start(won, starts, chosen.field)
    _check_start(lost, starts, rejected.field)
    return prompt


def _states_prompt(columns: Columns, won: list[Message], lost: list[Message]) -> bool:
    return prompt_of(columns, has_whole_sides=_are_whole(won, lost)) is not None


def _are_whole(won: list[Message], lost: list[Message]) -> bool:
    return len(won) > 1 and len(lost) > 1


def _check_start(turns: list[Message], starts: list[list[Message]], field: str) -> None:
    """Raise BadRowError unless ``turns`` are a reply alone, or follow the prompt and nothing else."""
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


def _shared_prefix(chosen: str, rejected: str) -> int:
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
