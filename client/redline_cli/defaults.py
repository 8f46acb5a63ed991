"""Defaults of command-line options, taken from the configuration classes, which do not import torch."""

from __future__ import annotations

from types import SimpleNamespace

from pydantic import BaseModel


def config_defaults(config: type[BaseModel]) -> SimpleNamespace:
    """The defaults of the fields of ``config``, by field name."""
    fields = config.model_fields.items()
    return SimpleNamespace(
        **{name: field.get_default(call_default_factory=True) for name, field in fields if not field.is_required()}
    )
