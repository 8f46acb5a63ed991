"""Policies whose rotary angles depend on the longest sequence of a pass (dynamic NTK, LongRoPE).

``redline_model.rotary`` has the same rule for scoring. A sequence must not depend on what stands beside it, nor on
what the model saw before: sequences within the length that the configuration names share a pass; longer ones share it
with those of their own length only; and angles that transformers keeps from earlier passes are put back before each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_SETTINGS = ("rope_parameters", "rope_scaling")
_ORIGINAL = "original_inv_freq"
_NAMED = "original_max_position_embeddings"


def longest_shared(config: Mapping[str, Any]) -> int | None:
    """Tokens up to which sequences have the same angles; None where angles never depend on the pass.

    Args:
        config: a configuration as a dictionary. Settings may lie in a part of it, and be nested by layer type.
    """
    return min(_limits(config), default=None)


def _limits(part: Any) -> Iterator[int]:
    if isinstance(part, Mapping):
        for name, value in part.items():
            yield from _variants(value, part) if name in _SETTINGS else _limits(value)
    elif isinstance(part, (list, tuple)):
        for inner in part:
            yield from _limits(inner)


def _variants(settings: Any, config: Mapping[str, Any]) -> Iterator[int]:
    if not isinstance(settings, Mapping):
        return
    variant = settings.get("rope_type", settings.get("type"))
    positions = config.get("max_position_embeddings")
    if isinstance(variant, str) and "dynamic" in variant:
        yield positions if isinstance(positions, int) else 0
    elif variant in ("longrope", "su"):
        limit = settings.get(_NAMED) or config.get(_NAMED) or positions
        yield limit if isinstance(limit, int) else 0
    for inner in settings.values():
        yield from _variants(inner, config)


def reset_angles(model: Any) -> None:
    """Put back the angles of a model that has seen nothing yet."""
    for module in model.modules():
        for name in [*module._buffers, *vars(module)]:
            if not name.endswith(_ORIGINAL):
                continue
            prefix = name.removesuffix(_ORIGINAL)
            kept = getattr(module, f"{prefix}inv_freq")
            setattr(module, f"{prefix}inv_freq", getattr(module, name).detach().clone().to(kept.device))
            if f"{prefix}max_seq_len_cached" in vars(module):
                setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)
