"""Tries chat templates in a limited process, see ``redline_model.trial_process``.

A template is a program from a stranger's folder. It can run for ever or take all memory, and already does so when it
is compiled (jinja2 computes constant expressions then), so it is tried here first. Imports nothing but jinja2 and the
standard library.
"""

from __future__ import annotations

import json
from typing import Any


def environment() -> Any:
    """As transformers makes it: sandboxed, with its filters, globals and the ``generation`` tag."""
    from datetime import datetime

    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    def tojson(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    made.filters["tojson"] = tojson
    made.globals["raise_exception"] = raise_exception
    made.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return made


def trial(task: dict[str, Any]) -> str | None:
    """Why templates are refused, None if they are not.

    Args:
        task: ``templates``, ``settings`` (the variables of a rendering, several sets), ``conversations``, and
            ``characters``: how many a rendering may write beyond a hundred for each that it is given.
    """
    from jinja2 import TemplateError, nodes

    made = environment()
    for text in task["templates"]:
        try:
            if next(made.parse(text).find_all(nodes.Pow), None) is not None:
                return "it uses the operator **, whose results can be of any size"
            template = made.from_string(text)
        except TemplateError:
            continue  # no template at all; whoever renders it says so
        for settings in task["settings"]:
            for number, messages in enumerate(task["conversations"]):
                try:
                    written = template.render(messages=messages, tools=None, documents=None, **settings)
                except (TemplateError, ValueError, KeyError):
                    continue  # its way to refuse a conversation
                except (MemoryError, RecursionError):
                    raise
                except Exception as error:
                    if number == 0:
                        return f"it fails on a plain conversation: {type(error).__name__}: {error}"
                    continue
                if len(written) > task["characters"] + 100 * sum(len(m["content"]) for m in messages):
                    return f"it writes {len(written)} characters for {len(messages)} short messages"
    return None
