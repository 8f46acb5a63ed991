"""Gradient checkpointing for a model in evaluation mode, where transformers leaves it off."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

from redline.errors import PolicyError


class GradientCheckpointing:
    """Layers of a model keep their input alone for the backward pass; the rest is computed again.

    transformers does so in training mode alone, which would bring dropout back. Here the layers are in training mode
    during a pass, and the modules inside them are not.

    Args:
        layers: modules for which checkpointing is enabled.
    """

    def __init__(self, layers: Sequence[Any]) -> None:
        self._layers = layers

    @classmethod
    def enable(cls, model: Any) -> Self:
        """Enable it in ``model``; dropout rates of the layers themselves are set to 0.

        Raises:
            PolicyError: the architecture does not support it.
        """
        from transformers.modeling_layers import GradientCheckpointingLayer

        try:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        except ValueError as error:
            raise PolicyError(f"gradient checkpointing is not possible with this policy: {error}") from error
        layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
        if not layers:
            raise PolicyError(f"gradient checkpointing is not possible with {type(model).__name__}")
        for layer in layers:
            for name, value in vars(layer).items():
                if "dropout" in name and isinstance(value, float):
                    setattr(layer, name, 0.0)
        return cls(layers)

    @contextmanager
    def on(self) -> Iterator[None]:
        """For one pass with gradients; sampling needs its cache and runs outside."""
        for layer in self._layers:
            layer.training = True
        try:
            yield
        finally:
            for layer in self._layers:
                layer.training = False
