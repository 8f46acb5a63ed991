"""Check a tokenizer's chat template by rendering test conversations in a limited process."""

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
_MAX_CHARACTERS = 10**6  # that a rendering may write, in addition to 100 per character of its input
_ENVIRONMENT = Path(environment.__file__)
_TRIAL = Path(__file__).with_name("template_trial.py")
# the settings that Redline uses unless a bundle has others
_USUAL_SETTINGS: tuple[dict[str, Any], ...] = ({"date_string": "01 Jan 2025", "enable_thinking": False}, {})
# arguments of apply_chat_template that settings may have
_ALLOWED_ARGUMENTS = {"self", "tools", "documents", "kwargs"}


def check_chat_template(tokenizer: Any, source: str | Path, settings: Mapping[str, Any] | None = None) -> None:
    """Raise BundleError if the tokenizer's chat template never ends, takes too much memory or writes too much.

    A template that raises its own error is not refused: it may do so for conversations that it does not support.

    Args:
        source: where the tokenizer comes from, for the message.
        settings: variables for the template; None tries the usual settings.
    """
    template = getattr(tokenizer, "chat_template", None)
    if not template:
        return
    if settings is not None:
        _check_settings(tokenizer, source, settings)
    templates = list(template.values()) if isinstance(template, dict) else [template]
    if not all(isinstance(text, str) for text in templates):
        raise BundleError(f"the chat template of {source} is not text")
    if sum(map(len, templates)) > _MAX_TEMPLATE_CHARACTERS:
        raise BundleError(f"the chat template of {source} has more than {_MAX_TEMPLATE_CHARACTERS} characters")
    special = {name: text for name, text in tokenizer.special_tokens_map.items() if isinstance(text, (str, list))}
    settings_list = _USUAL_SETTINGS if settings is None else (settings,)
    variables = [special | dict(options) for options in settings_list]
    reason = _refusal_reason(json.dumps(sorted(templates)), json.dumps(variables))
    if reason is not None:
        raise BundleError(f"the chat template of {source} is refused: {one_line(reason)}")


def _check_settings(tokenizer: Any, source: str | Path, settings: Mapping[str, Any]) -> None:
    reserved = set(inspect.signature(tokenizer.apply_chat_template).parameters) - _ALLOWED_ARGUMENTS
    clashing = sorted(set(settings) & (reserved | {"messages"}))
    if clashing:
        raise BundleError(f"{source}: {', '.join(clashing)} cannot be set for a chat template")


def conversations() -> list[dict[str, Any]]:
    """The test conversations for templates: ``{"messages", "tools"}`` each.

    Every length up to 24 and some beyond, with and without a system message; the ordinary exchange first. Then tool
    calls with results, reasoning, content parts, other roles and names; all of these also with tools.
    """
    lengths = [3, 1, 2, *range(4, 25), 32, 33, 64, 65, 100, 101, 256]
    shapes: list[Sequence[str]] = [["user", "assistant"] * (length // 2 + 1) for length in lengths]
    exact_shapes = [shape[:length] for shape, length in zip(shapes, lengths, strict=True)]
    plain = [
        [{"role": role, "content": f"\ue000{number}\ue001"} for number, role in enumerate(roles)]
        for roles in [*exact_shapes, *(["system", *roles] for roles in exact_shapes[:10])]
    ]
    question, answer = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
    call = {"id": "call00001", "type": "function", "function": {"name": "f", "arguments": {"x": 1, "y": ["z"]}}}
    calls = {"role": "assistant", "content": "", "tool_calls": [call, {**call, "id": "call00002"}]}
    tool_result = {"role": "tool", "content": "r", "name": "f", "tool_call_id": "call00001"}
    special_cases: list[list[dict[str, Any]]] = [
        [question, calls, tool_result, {**tool_result, "tool_call_id": "call00002"}, answer, question],
        [question, calls, tool_result],
        [question, {**answer, "reasoning_content": "t", "thinking": "t"}, question],
        [{"role": "user", "content": [{"type": "text", "text": "q"}]}, answer],
        [{**question, "name": "n"}, {"role": "developer", "content": "d"}, question],
        [{"role": "system", "content": "s"}, question, {**calls, "reasoning_content": "t"}, tool_result, answer],
    ]
    parameters = {"type": "object", "properties": {"x": {"type": "integer", "description": "d"}}, "required": ["x"]}
    tool = {"type": "function", "function": {"name": "f", "description": "d", "parameters": parameters}}
    with_tools = [*plain[:3], *special_cases]
    return [
        *({"messages": messages, "tools": None} for messages in (*plain, *special_cases)),
        *({"messages": messages, "tools": [tool, tool]} for messages in with_tools),
    ]


@lru_cache(maxsize=64)
def _refusal_reason(templates: str, settings: str) -> str | None:
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
