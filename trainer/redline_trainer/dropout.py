"""Switches a base model's dropout off during training, unless the configuration enables it."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from redline_trainer.config import Dropout


def set_training_dropout(model: Any, dropout: Dropout) -> Any:
    """Put ``model`` into training mode with or without the base's dropout, and return it.

    Args:
        dropout: ``off`` makes every module of the base compute as in evaluation, without dropout, layer drop and router
            noise. Dropout inside adapters is not affected, because it is a separate option. ``base`` uses the rates of
            the base's configuration.
    """
    model.train()
    if dropout == "base":
        return model
    for name, module in model.named_modules():
        if "lora_dropout" in name or is_quantized_layer(module):
            continue
        if getattr(module, "gradient_checkpointing", False):
            _zero_own_rates(module)  # gradient checkpointing works only for modules in training mode
        else:
            module.training = False
    return model


def is_quantized_layer(module: nn.Module) -> bool:
    """Whether ``module`` is of bitsandbytes, which repacks weights without gradients in evaluation mode."""
    return type(module).__module__.startswith("bitsandbytes")


def _zero_own_rates(module: Any) -> None:
    """Set the dropout rates of ``module`` itself to 0, but not those of its submodules."""
    for name, value in vars(module).items():
        if isinstance(value, float) and _is_rate(name):
            setattr(module, name, 0.0)
    config = vars(module).get("config")
    if config is not None:  # a copy, because the model's configuration is saved with it
        module.config = copy.copy(config)
        for name, value in vars(config).items():
            if isinstance(value, float) and _is_rate(name):
                setattr(module.config, name, 0.0)


def _is_rate(name: str) -> bool:
    return any(word in name for word in ("drop", "jitter"))
