"""What is drawn at random inside a model while it learns: nothing, unless it was asked for."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from redline_trainer.config import Dropout


def set_training_dropout(model: Any, dropout: Dropout) -> Any:
    """Put ``model`` into training, and return it.

    ``off``: every module of the base computes as in evaluation, whatever its configuration says: dropout in all its
    forms, layers left out, noise in routers. Dropout inside adapters stays, for it is an option of its own. ``base``:
    as the base's configuration says.
    """
    model.train()
    if dropout == "base":
        return model
    for name, module in model.named_modules():
        if "lora_dropout" in name or is_quantized_layer(module):
            continue
        if getattr(module, "gradient_checkpointing", False):
            _zero_own_rates(module)  # computing again in the backward pass is for modules in training only
        else:
            module.training = False
    return model


def is_quantized_layer(module: nn.Module) -> bool:
    """Whether ``module`` is bitsandbytes', which in evaluation repacks its weights into a form without gradients."""
    return type(module).__module__.startswith("bitsandbytes")


def _zero_own_rates(module: Any) -> None:
    """Set the rates that ``module`` itself reads to 0; its parts are others' business."""
    for name, value in vars(module).items():
        if isinstance(value, float) and _is_rate(name):
            setattr(module, name, 0.0)
    config = vars(module).get("config")
    if config is not None:  # the model's own is saved with it and stays as it is
        module.config = copy.copy(config)
        for name, value in vars(config).items():
            if isinstance(value, float) and _is_rate(name):
                setattr(module.config, name, 0.0)


def _is_rate(name: str) -> bool:
    return any(word in name for word in ("drop", "jitter"))
