"""Gradient checkpointing for a model in evaluation mode, for which transformers does not support it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

from redline.errors import PolicyError


class GradientCheckpointing:
    """Keeps only the inputs of a model's layers for the backward pass, which computes the rest again.

    transformers supports this in training mode only, which would enable dropout. Here the layers are in training mode
    during a pass, but the modules inside them are not.

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
        """Context of one pass with gradients. Sampling runs outside of it, because it needs its KV cache."""
        for layer in self._layers:
            layer.training = True
        try:
            yield
        finally:
            for layer in self._layers:
                layer.training = False
