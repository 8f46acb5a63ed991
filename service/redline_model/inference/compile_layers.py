"""``torch.compile`` for the parts of a model outside attention; one compilation serves every layer and length."""

from __future__ import annotations

import logging
from typing import Any

logger = logging.getLogger("redline.model")


def compile_layers(model: Any) -> int:
    """Compile each decoder layer's norms and feed-forward block in place; returns the number of modules.

    Attention is not compiled, because the layout of tokens changes from pass to pass. Compilation happens in the first
    pass. If the model's layers cannot be found, nothing is compiled and a warning is logged.
    """
    layers = getattr(getattr(model, "base_model", model), "layers", None)
    if layers is None:
        logger.warning("%s has no layers to compile", type(model).__name__)
        return 0
    parts = [part for layer in layers for name, part in layer.named_children() if not _is_attention(name)]
    for part in parts:
        part.compile(dynamic=True)
    return len(parts)


def _is_attention(name: str) -> bool:
    return ("attn" in name or "attention" in name) and "norm" not in name
