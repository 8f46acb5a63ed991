"""Tries chat templates in a limited process, see ``redline_model.untrusted.trial_process``.

A template is a program from a stranger's folder. It can run for ever or take all memory, and already does so when it
is compiled (jinja2 computes constant expressions then), so it is tried here first, in the environment that it will be
rendered in (``redline.chat_template.compile``, loaded as a file: its package would start slowly).
"""

from __future__ import annotations

import json
import runpy
from typing import Any


def trial(task: dict[str, Any]) -> str | None:
    """Why templates are refused, None if they are not.

    Args:
        task: ``environment``: the file; ``templates``; ``settings`` (the variables of a rendering, several sets);
            ``conversations``, each ``{"messages", "tools"}``; and ``characters``: how many a rendering may write beyond
            a hundred for each that it is given.
    """
    from jinja2 import TemplateError, nodes

    rendering = runpy.run_path(task["environment"])
    parse = rendering["compile_template"]("", rendering["FIXED_DATE"]).environment.parse
    for text in task["templates"]:
        for settings in task["settings"]:
            try:
                if next(parse(text).find_all(nodes.Pow), None) is not None:
                    return "it uses the operator **, whose results can be of any size"
                template = rendering["compile_template"](text, rendering["template_date"](settings))
            except TemplateError:
                break  # no template at all; whoever renders it says so
            for number, conversation in enumerate(task["conversations"]):
                for opens_turn in (True, False):
                    reason = _rendering_problem(
                        template, conversation, {**settings, "add_generation_prompt": opens_turn}, task["characters"]
                    )
                    if reason is not None and (number == 0 or not reason.startswith("it fails")):
                        return reason
    return None


def _rendering_problem(
    template: Any, conversation: dict[str, Any], variables: dict[str, Any], characters: int
) -> str | None:
    from jinja2 import TemplateError

    messages, tools = conversation["messages"], conversation["tools"]
    try:
        written = template.render(messages=messages, tools=tools, documents=None, **variables)
    except (TemplateError, ValueError, KeyError):
        return None  # its way to refuse a conversation
    except (MemoryError, RecursionError):
        raise
    except Exception as error:
        return f"it fails on a plain conversation: {type(error).__name__}: {error}"
    given = len(json.dumps([messages, tools]))
    if len(written) > characters + 100 * given:
        return f"it writes {len(written)} characters for {len(messages)} short messages"
    return None
