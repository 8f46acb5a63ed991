"""What a row of preference data may look like; pure, standard library only.

Accepted rows (told apart by their shape):

- ``{"prompt": text or messages, "chosen": text, "rejected": text}``, further fields ignored, but for ``"spans"``:
  ``[{"start", "end"}, ...]``, characters of ``rejected`` that are marked as wrong;
- TRL's preference format, explicit prompt: the same with ``chosen``/``rejected`` as messages;
- TRL's implicit prompt: no ``prompt``; ``chosen`` and ``rejected`` are whole texts or whole conversations;
- HH-RLHF transcripts: no ``prompt``; texts with ``\\n\\nHuman:`` and ``\\n\\nAssistant:`` turns.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

Message = dict[str, str]
_HH_TURN = re.compile(r"\n\n(Human|Assistant):")
_HH_ROLE = {"Human": "user", "Assistant": "assistant"}


@dataclass(frozen=True)
class Pair:
    """One comparison; ``where`` names file and line, or whatever else the pair came from.

    ``spans``: what humans marked as wrong, in characters into ``rejected``, end exclusive; None where nobody looked.
    """

    prompt: str | list[Message]
    chosen: str
    rejected: str
    where: str
    spans: tuple[tuple[int, int], ...] | None = None

    @property
    def prompt_key(self) -> str:
        """What makes two prompts the same prompt."""
        return json.dumps(self.prompt, sort_keys=True, ensure_ascii=False)


class BadRowError(ValueError):
    """A row is no pair; the text says why."""


def parse_row(row: Any, where: str, *, teaches: bool = True) -> Pair:
    """One row of any accepted form. Raises BadRowError. With ``teaches`` False, equal sides and empty replies pass."""
    if not isinstance(row, dict):
        raise BadRowError(f"a row must be an object, this is a {type(row).__name__}")
    for field in ("chosen", "rejected"):
        if row.get(field) is None:
            raise BadRowError(f"'{field}' is missing")
    chosen, rejected = row["chosen"], row["rejected"]
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise BadRowError("'chosen' and 'rejected' are of different forms")
    prompt = row.get("prompt")
    if prompt is None:
        prompt, chosen, rejected = _split_prompt(chosen, rejected)
    if not isinstance(prompt, str):
        prompt = _messages(prompt, "prompt")
        if not prompt:
            raise BadRowError("'prompt' is an empty conversation")
        if prompt[-1]["role"] == "assistant":
            raise BadRowError("'prompt' ends with an assistant turn; the response is that turn")
    chosen, rejected = _reply(chosen, "chosen", teaches), _reply(rejected, "rejected", teaches)
    try:
        json.dumps([prompt, chosen, rejected], ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise BadRowError("is not valid Unicode: it holds half a surrogate pair") from error
    if chosen == rejected and teaches:
        raise BadRowError("'chosen' and 'rejected' are the same")
    # a text that lends its beginning to an implicit prompt is no longer the one that was marked
    spans = _spans(row.get("spans"), rejected) if row.get("prompt") is not None else None
    return Pair(prompt, chosen, rejected, where, spans)


def _spans(value: Any, text: str) -> tuple[tuple[int, int], ...] | None:
    """Error spans; None where there are none or the field is another thing. Raises BadRowError for one in disorder."""
    if not isinstance(value, list):
        return None
    whole = [isinstance(span, dict) and "start" in span and "end" in span for span in value]
    if not all(whole):
        if any(whole):
            raise BadRowError("'spans' holds one without 'start' or 'end' among others that have both")
        return None
    spans = tuple((span["start"], span["end"]) for span in value)
    for start, end in spans:
        if type(start) is not int or type(end) is not int or not 0 <= start <= end <= len(text):
            raise BadRowError(f"a span from {start!r} to {end!r} does not lie in 'rejected' ({len(text)} characters)")
    return spans


def _messages(value: Any, field: str) -> list[Message]:
    if not isinstance(value, list):
        raise BadRowError(f"'{field}' must be text or a list of messages, not {type(value).__name__}")
    messages = []
    for message in value:
        if not isinstance(message, dict):
            raise BadRowError(f"'{field}' holds a message that is not an object")
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str) or not isinstance(content, str):
            raise BadRowError(f"'{field}' holds a message without text 'role' and 'content'")
        messages.append({"role": role, "content": content})
    return messages


def _reply(value: Any, field: str, teaches: bool) -> str:
    if not isinstance(value, str):
        messages = _messages(value, field)
        if len(messages) != 1 or messages[0]["role"] != "assistant":
            raise BadRowError(f"'{field}' must be one assistant turn beyond the prompt, it has {len(messages)}")
        value = messages[0]["content"]
    if teaches and not value.strip():
        raise BadRowError(f"'{field}' is empty")
    return str(value)


def _split_prompt(chosen: Any, rejected: Any) -> tuple[Any, Any, Any]:
    """An implicit prompt: what the two sides begin with alike."""
    if isinstance(chosen, str):
        if _HH_TURN.match(chosen) and _HH_TURN.match(rejected):
            chosen, rejected = _transcript(chosen), _transcript(rejected)
        else:
            length = next((n for n, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), None)
            shared = chosen[: min(len(chosen), len(rejected)) if length is None else length]
            # TRL cuts at the first character that differs; that may be inside a word, so the cut goes back to the
            # white space before it, which stays with the responses. Scripts without white space are cut as TRL does.
            spaces = [n for n, character in enumerate(shared) if character.isspace()]
            at = spaces[-1] if spaces and spaces[-1] > 0 else len(shared)
            if at <= 0:
                raise BadRowError("there is no 'prompt', and the two sides do not begin alike")
            return chosen[:at], chosen[at:], rejected[at:]
    chosen, rejected = _messages(chosen, "chosen"), _messages(rejected, "rejected")
    if chosen[:-1] != rejected[:-1] or len(chosen) < 2:
        raise BadRowError("there is no 'prompt', and the conversations differ before their last turn")
    return chosen[:-1], chosen[-1:], rejected[-1:]


def _transcript(text: str) -> list[Message]:
    parts = _HH_TURN.split(text)[1:]
    return [
        {"role": _HH_ROLE[role], "content": content.strip()}
        for role, content in zip(parts[::2], parts[1::2], strict=True)
    ]
