"""Trial script: render chat templates in a limited process (``redline_model.untrusted.trial_process``).

A template is a program from an untrusted folder. It can run forever or take all memory, even when it is only compiled
(jinja2 computes constant expressions then). So it is tried here first, in the same environment as later
(``redline.chat_template.compile``, loaded as a file because its package takes long to import).
"""

from __future__ import annotations

import json
import runpy
from typing import Any


def trial(task: dict[str, Any]) -> str | None:
    """The reason why templates are refused, None if they are not.

    Args:
        task: ``environment``: the file; ``templates``; ``settings`` (the variables of a rendering, several sets);
            ``conversations``, each ``{"messages", "tools"}``; and ``characters``: how many a rendering may write, in
            addition to 100 per character of its input.
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
                break  # not a valid template; rendering it later reports that
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
        rendered = template.render(messages=messages, tools=tools, documents=None, **variables)
    except (TemplateError, ValueError, KeyError):
        return None  # the template refuses the conversation
    except (MemoryError, RecursionError):
        raise
    except Exception as error:
        return f"it fails on a plain conversation: {type(error).__name__}: {error}"
    input_size = len(json.dumps([messages, tools]))
    if len(rendered) > characters + 100 * input_size:
        return f"it writes {len(rendered)} characters for {len(messages)} short messages"
    return None
