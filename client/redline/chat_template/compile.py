"""Compile chat templates as transformers does, but with a fixed date.

In transformers ``strftime_now`` returns today's date, so a score or a policy's prompt would be different tomorrow. Here
it returns the date in the settings (``date_string``), or 1 January 2025.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any

FIXED_DATE = datetime(2025, 1, 1)
# written around what a template marks with {% generation %}, if ``marks_generation`` is set
GENERATION_START, GENERATION_END = "\ue002", "\ue003"
_DATE_FORMS = ("%d %b %Y", "%d %B %Y", "%Y-%m-%d", "%B %d, %Y")


def template_date(settings: Mapping[str, Any]) -> datetime:
    """The date in ``date_string`` of a template's settings; 1 January 2025 if there is none."""
    text = settings.get("date_string")
    for form in _DATE_FORMS:
        with contextlib.suppress(ValueError, TypeError):
            return datetime.strptime(text, form)  # type: ignore[arg-type]
    return FIXED_DATE


@lru_cache(maxsize=64)
def compile_template(source: str, date: datetime, *, marks_generation: bool = False) -> Any:
    """The jinja2 template of ``source``, in a sandbox. Raises jinja2.TemplateError.

    Args:
        date: the date that ``strftime_now`` formats.
        marks_generation: write ``GENERATION_START`` and ``GENERATION_END`` around what the template marks as generated.
    """
    from jinja2 import TemplateError, nodes
    from jinja2.exceptions import SecurityError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line_number = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            scope = nodes.Scope(body).set_lineno(line_number)
            if not marks_generation:
                return scope
            before, after = (
                nodes.Output([nodes.TemplateData(mark)]).set_lineno(line_number)
                for mark in (GENERATION_START, GENERATION_END)
            )
            return [before, scope, after]

    class PlainNamespace(Namespace):
        def __setitem__(self, name: str, value: Any) -> None:
            if isinstance(name, str) and name.startswith("_"):
                raise SecurityError(f"a chat template sets the attribute {name!r}")
            super().__setitem__(name, value)

    def namespace(*args: Any, **names: Any) -> Any:
        created = PlainNamespace()
        for name, value in dict(*args, **names).items():
            created[name] = value
        return created

    def dictionary(
        *args: Any, **names: Any
    ) -> dict[Any, Any]:  # a function, because the class has attributes that templates must not reach
        return dict(*args, **names)

    def tojson(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = date.strftime
    environment.globals["dict"] = dictionary
    environment.globals["namespace"] = namespace
    return environment.from_string(source)
