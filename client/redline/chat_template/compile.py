"""Chat templates compiled as transformers compiles them, but for the date, which is fixed.

``strftime_now`` gives today's date in transformers, so a score or a policy's prompt would be another tomorrow. Here it
gives the day that the settings name (``date_string``), or the first of January 2025.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any

FIXED_DATE = datetime(2025, 1, 1)
# around what a template marks as the assistant's with {% generation %}, where that is asked for
GENERATION_START, GENERATION_END = "\ue002", "\ue003"
_DATE_FORMS = ("%d %b %Y", "%d %B %Y", "%Y-%m-%d", "%B %d, %Y")


def fixed_date(settings: Mapping[str, Any]) -> datetime:
    """The day that ``date_string`` of a template's settings names; 1 January 2025 where it names none."""
    text = settings.get("date_string")
    for form in _DATE_FORMS:
        with contextlib.suppress(ValueError, TypeError):
            return datetime.strptime(text, form)  # type: ignore[arg-type]
    return FIXED_DATE


@lru_cache(maxsize=64)
def compiled(source: str, date: datetime, *, is_marked: bool = False) -> Any:
    """The jinja2 template of ``source``, in a sandbox. Raises jinja2.TemplateError.

    Args:
        date: what ``strftime_now`` writes.
        is_marked: what the template marks as generated stands between ``GENERATION_START`` and ``GENERATION_END``.
    """
    from jinja2 import TemplateError, nodes
    from jinja2.exceptions import SecurityError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            scope = nodes.Scope(body).set_lineno(line)
            if not is_marked:
                return scope
            before, behind = (
                nodes.Output([nodes.TemplateData(mark)]).set_lineno(line) for mark in (GENERATION_START, GENERATION_END)
            )
            return [before, scope, behind]

    class PlainNamespace(Namespace):
        def __setitem__(self, name: str, value: Any) -> None:
            if isinstance(name, str) and name.startswith("_"):
                raise SecurityError(f"a chat template sets the attribute {name!r}")
            super().__setitem__(name, value)

    def namespace(*args: Any, **names: Any) -> Any:
        made = PlainNamespace()
        for name, value in dict(*args, **names).items():
            made[name] = value
        return made

    def dictionary(*args: Any, **names: Any) -> dict[Any, Any]:  # a function: the class has more than a template needs
        return dict(*args, **names)

    def tojson(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    made.filters["tojson"] = tojson
    made.globals["raise_exception"] = raise_exception
    made.globals["strftime_now"] = date.strftime
    made.globals["dict"] = dictionary
    made.globals["namespace"] = namespace
    return made.from_string(source)
