"""Defaults of command-line options, taken from the configuration classes; these import no torch."""

from __future__ import annotations

from types import SimpleNamespace

from pydantic import BaseModel


def defaults_of(config: type[BaseModel]) -> SimpleNamespace:
    """The default of every field of ``config`` that has one, by the field's name."""
    fields = config.model_fields.items()
    return SimpleNamespace(
        **{name: field.get_default(call_default_factory=True) for name, field in fields if not field.is_required()}
    )
