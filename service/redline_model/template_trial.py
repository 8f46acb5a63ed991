"""Tries chat templates in a process of its own: ``python template_trial.py``, the task on standard input.

A template is a program from a stranger's folder. It can run for ever or take all memory, and already does so when it
is compiled (jinja2 computes constant expressions then), so it is tried here first, within limits that end this
process alone. Imports nothing but jinja2 and the standard library.

The task is JSON: ``path`` (where modules are imported from), ``limits``, ``templates``, ``settings`` (the variables of
a rendering, several sets), ``conversations``. The verdict, on standard output, is a JSON object: ``{}`` or
``{"refused": reason}``.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def limit_process(cpu_s: int, memory_bytes: int) -> None:
    """Bound this process's processor time and address space, where the system can."""
    try:
        import resource
    except ImportError:  # Windows; the caller's time limit is left
        return
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


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
    """Why the templates of ``task`` are refused, None if they are not."""
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
                if len(written) > task["limits"]["characters"] + 100 * sum(len(m["content"]) for m in messages):
                    return f"it writes {len(written)} characters for {len(messages)} short messages"
    return None


def main() -> None:
    """Read the task, keep to its limits, write the verdict."""
    task = json.load(sys.stdin)
    sys.path[:] = task["path"]
    limit_process(task["limits"]["cpu_s"], task["limits"]["memory_bytes"])
    try:
        reason = trial(task)
    except MemoryError:
        reason = "it takes too much memory"
    except RecursionError:
        reason = "it is nested too deep or calls itself without end"
    json.dump({} if reason is None else {"refused": reason}, sys.stdout)


if __name__ == "__main__":
    main()
