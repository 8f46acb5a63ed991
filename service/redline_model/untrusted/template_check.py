"""Whether a tokenizer's chat template may be used: it is tried in a process of its own first."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from redline.chat_template import compile as environment
from redline_model.errors import BundleError
from redline_model.untrusted.bounded_json import one_line
from redline_model.untrusted.trial_process import Limits, TrialError, run_trial

LIMITS = Limits(cpu_s=2, wall_s=6.0, memory_bytes=2**29)
_MAX_TEMPLATE_CHARACTERS = 2**20
_MAX_CHARACTERS = 10**6  # that a rendering may write beyond a hundred for each character it is given
_ENVIRONMENT = Path(environment.__file__)
_TRIAL = Path(__file__).with_name("template_trial.py")
# what Redline renders with where a bundle does not say otherwise
_USUAL_SETTINGS: tuple[dict[str, Any], ...] = ({"date_string": "01 Jan 2025", "enable_thinking": False}, {})
# what a template may find beside the messages, and callers may set
_FREE_ARGUMENTS = {"self", "tools", "documents", "kwargs"}


def check_chat_template(tokenizer: Any, source: str | Path, settings: Mapping[str, Any] | None = None) -> None:
    """Raise BundleError if the tokenizer's chat template never ends, takes too much memory or writes too much.

    A template that raises an error of its own is not refused: it may do so for conversations that it does not know.

    Args:
        source: where the tokenizer comes from, for the message.
        settings: what the template will be rendered with; None tries the usual settings.
    """
    template = getattr(tokenizer, "chat_template", None)
    if not template:
        return
    if settings is not None:
        _check_settings(tokenizer, source, settings)
    templates = list(template.values()) if isinstance(template, dict) else [template]
    if not all(isinstance(text, str) for text in templates):
        raise BundleError(f"the chat template of {source} is no text")
    if sum(map(len, templates)) > _MAX_TEMPLATE_CHARACTERS:
        raise BundleError(f"the chat template of {source} has more than {_MAX_TEMPLATE_CHARACTERS} characters")
    special = {name: text for name, text in tokenizer.special_tokens_map.items() if isinstance(text, (str, list))}
    sets = _USUAL_SETTINGS if settings is None else (settings,)
    variables = [special | dict(chosen) for chosen in sets]
    reason = _refusal(json.dumps(sorted(templates)), json.dumps(variables))
    if reason is not None:
        raise BundleError(f"the chat template of {source} is refused: {one_line(reason)}")


def _check_settings(tokenizer: Any, source: str | Path, settings: Mapping[str, Any]) -> None:
    taken = set(inspect.signature(tokenizer.apply_chat_template).parameters) - _FREE_ARGUMENTS
    clashing = sorted(set(settings) & (taken | {"messages"}))
    if clashing:
        raise BundleError(f"{source}: {', '.join(clashing)} cannot be set for a chat template")


def conversations() -> list[dict[str, Any]]:
    """What templates are tried with: ``{"messages", "tools"}``.

    Every length up to 24 and some beyond, with and without a system message; the plain exchange first. Then calls of
    tools with what they gave, thoughts, content parts, other roles and names; all of it with tools, too.
    """
    lengths = [3, 1, 2, *range(4, 25), 32, 33, 64, 65, 100, 101, 256]
    shapes: list[Sequence[str]] = [["user", "assistant"] * (length // 2 + 1) for length in lengths]
    cut = [shape[:length] for shape, length in zip(shapes, lengths, strict=True)]
    plain = [
        [{"role": role, "content": f"\ue000{number}\ue001"} for number, role in enumerate(roles)]
        for roles in [*cut, *(["system", *roles] for roles in cut[:10])]
    ]
    question, answer = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
    call = {"id": "call00001", "type": "function", "function": {"name": "f", "arguments": {"x": 1, "y": ["z"]}}}
    calls = {"role": "assistant", "content": "", "tool_calls": [call, {**call, "id": "call00002"}]}
    given = {"role": "tool", "content": "r", "name": "f", "tool_call_id": "call00001"}
    odd: list[list[dict[str, Any]]] = [
        [question, calls, given, {**given, "tool_call_id": "call00002"}, answer, question],
        [question, calls, given],
        [question, {**answer, "reasoning_content": "t", "thinking": "t"}, question],
        [{"role": "user", "content": [{"type": "text", "text": "q"}]}, answer],
        [{**question, "name": "n"}, {"role": "developer", "content": "d"}, question],
        [{"role": "system", "content": "s"}, question, {**calls, "reasoning_content": "t"}, given, answer],
    ]
    parameters = {"type": "object", "properties": {"x": {"type": "integer", "description": "d"}}, "required": ["x"]}
    tool = {"type": "function", "function": {"name": "f", "description": "d", "parameters": parameters}}
    with_tools = [*plain[:3], *odd]
    return [
        *({"messages": messages, "tools": None} for messages in (*plain, *odd)),
        *({"messages": messages, "tools": [tool, tool]} for messages in with_tools),
    ]


@lru_cache(maxsize=64)
def _refusal(templates: str, settings: str) -> str | None:
    task = {
        "environment": str(_ENVIRONMENT),
        "templates": json.loads(templates),
        "settings": json.loads(settings),
        "conversations": conversations(),
        "characters": _MAX_CHARACTERS,
    }
    try:
        reason: str | None = run_trial(_TRIAL, task, LIMITS)
    except TrialError as error:
        return str(error)
    return reason
