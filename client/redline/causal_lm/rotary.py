"""Rotary position embeddings whose angles depend on the longest sequence of a pass (dynamic NTK, LongRoPE).

The result for a sequence must not depend on other sequences of its pass or on earlier passes. Up to a length in the
configuration all sequences have the same angles and may share a pass; a longer sequence gets a pass of its own. Angles
that transformers keeps from earlier passes are reset before each pass. Standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

_SETTINGS = ("rope_parameters", "rope_scaling")
_ORIGINAL_ANGLES = re.compile(r"(.*)original_inv_freq")


def longest_shared(config: Mapping[str, Any]) -> int | None:
    """Length in tokens up to which sequences may share a pass; None if angles do not depend on the pass.

    Args:
        config: a configuration as a dictionary. Settings may be nested by layer type or in a sub-configuration.
    """
    return min(_limits(config), default=None)


def reset_angles(modules: Iterable[Any]) -> None:
    """Reset the angles of ``modules`` to those of a newly loaded model."""
    for module in modules:
        for name in _state(module):
            match = _ORIGINAL_ANGLES.fullmatch(name)
            if match is None:
                continue
            prefix, original = match[1], getattr(module, name)
            current = getattr(module, f"{prefix}inv_freq")
            setattr(module, f"{prefix}inv_freq", original.detach().clone().to(current.device))
            if f"{prefix}max_seq_len_cached" in vars(module):
                setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)


def _limits(part: Any) -> Iterator[int]:
    if isinstance(part, (list, tuple)):
        for inner in part:
            yield from _limits(inner)
    elif isinstance(part, Mapping):
        for name, value in part.items():
            if name in _SETTINGS:
                yield from _limits_of_settings(value, part)
            else:
                yield from _limits(value)


def _limits_of_settings(settings: Any, config: Mapping[str, Any]) -> Iterator[int]:
    if not isinstance(settings, Mapping):
        return
    variant = settings.get("rope_type", settings.get("type"))
    if isinstance(variant, str) and ("dynamic" in variant or variant in {"longrope", "su"}):
        limit = config.get("max_position_embeddings")
        if "dynamic" not in variant:
            field = "original_max_position_embeddings"
            limit = settings.get(field) or config.get(field) or limit
        yield limit if isinstance(limit, int) else 0
    for inner in settings.values():
        yield from _limits_of_settings(inner, config)


class RotaryState:
    """Which sequences of a model may share a pass, and the angles that it keeps between passes."""

    def __init__(self, model: Any) -> None:
        self.longest_shared = longest_shared(model.config.to_dict())
        self._modules: list[Any] = []
        if self.longest_shared is not None:
            self._modules = [
                module for module in model.modules() if any(_ORIGINAL_ANGLES.fullmatch(name) for name in _state(module))
            ]

    @property
    def depends_on_pass(self) -> bool:
        """Whether some sequences must have a pass of their own."""
        return self.longest_shared is not None

    def parts(self, lengths: Sequence[int]) -> list[slice]:
        """Split sequences of these ``lengths`` into slices that may each be one pass."""
        limit = self.longest_shared
        if limit is None:
            return [slice(0, len(lengths))]
        parts: list[slice] = []
        for n, length in enumerate(lengths):
            if parts and length <= limit and lengths[n - 1] <= limit:
                parts[-1] = slice(parts[-1].start, n + 1)
            else:
                parts.append(slice(n, n + 1))
        return parts

    def reset(self) -> None:
        """Reset the angles to those of a newly loaded model; call it before every pass."""
        reset_angles(self._modules)


def _state(module: Any) -> list[str]:
    return [*module._buffers, *vars(module)]
